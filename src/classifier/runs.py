"""Run directories: where they lie, what they store, what may change on resume, where they came from. No torch here."""

import hashlib
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf

from classifier import __version__
from classifier.errors import UserError, as_typed
from classifier.files import alone, whole_file

PACKAGE = Path(__file__).parent
# a checkout has configs/ beside src/, an installed wheel inside the package
CONFIG_DIR = next(path for path in (PACKAGE.parents[1] / "configs", PACKAGE / "configs") if path.is_dir())
STARTS = "starts.jsonl"  # a line for each start of a run: when, with what, where
DEBUG = "debug"  # the folder of runs with debug=...
BEST = "checkpoints/best.ckpt"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # with libyaml it is fifteen times as fast
SHARDED = "sharded"  # the trainer.strategy that training/trainer.py adds
# What may change when a run is resumed: where and for how long it trains, where its data lies, what it shows. The last
# pattern that fits counts, and ! takes back: the length of an epoch, the scores of the best, and in memory the order
# of the optimiser's state have to be those of the checkpoint.
RESUME_MAY_CHANGE = (
    "resume", "run_dir", "log_dir", "name", "test",
    "trainer.*", "!trainer.accumulate_grad_batches", "!trainer.limit_train_batches", "!trainer.overfit_batches",
    "callbacks*", "!callbacks.best.monitor", "!callbacks.best.mode", "!callbacks.best.save_top_k",
    "logger*", "speed.*", "!speed.channels_last",
    "data.root", "data.table", "data.images*", "data.annotations*", "data.image_sets", "data.split_file",
    "data.batch_size", "data.num_workers", "data.train_size", "data.augment*", "data.on_error", "data.check",
    "data.cache", "data.cache_size", "data.cache_dir",
)  # fmt: skip


def folder_of(name: str, debug: str | None) -> str:
    """Where runs of a name lie below log_dir; those with debug=... apart, as `latest` never means them."""
    return name if debug is None else f"{DEBUG}/{name}"


# for configs/train.yaml; Hydra asks before a job, and so the experiment's name, is set
OmegaConf.register_new_resolver("either", lambda first, second: second if first is None else first, replace=True)
OmegaConf.register_new_resolver("folder", folder_of, replace=True)


def plain(config: DictConfig) -> dict[str, Any]:
    """The resolved config as dict, list, str and numbers."""
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True, throw_on_missing=True))


def leaves(config: Any, sections: bool = False, prefix: str = "") -> dict[str, Any]:
    """`section.key` -> value, of a nested config.

    Args:
        sections: With the sections themselves.
    """
    found: dict[str, Any] = {}
    for key, value in config.items():
        if sections or not isinstance(value, Mapping):
            found[f"{prefix}{key}"] = value
        if isinstance(value, Mapping):
            found |= leaves(value, sections, f"{prefix}{key}.")
    return found


def named_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a config in one level, such as `optimizer.lr` -> 0.001.

    A section that says what to build is a setting too: its value is its `name`, or else the last word of its
    `_target_`, such as `model` -> `resnet18`.
    """
    values, settings = leaves(config), {}
    for key, value in values.items():
        section, _, last = key.rpartition(".")
        if last == "_target_":
            settings[section] = values.get(f"{section}.name", str(value).rpartition(".")[2])
        if not (last == "name" and f"{section}._target_" in values):
            settings[key] = value
    return settings


def on_main_process() -> bool:
    """Whether this is the only process, or the first of several (as Lightning, torchrun and SLURM number them)."""
    return all(os.environ.get(key, "0") == "0" for key in ("LOCAL_RANK", "RANK", "NODE_RANK", "SLURM_PROCID"))


def set_variable(variable: str, value: str | None) -> None:
    """Set an environment variable, None to unset it."""
    if value is None:
        os.environ.pop(variable, None)
    else:
        os.environ[variable] = value


def new_run_dir(parent: Path) -> Path:
    """Make parent/<date_time>, with a number after it where another run started in the same second."""
    stamp, attempt = datetime.now().strftime("%Y-%m-%d_%H-%M-%S"), 1
    while True:
        path = parent / (stamp if attempt == 1 else f"{stamp}_{attempt}")
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            attempt += 1
        except OSError as error:
            raise UserError(f"cannot make the run directory {path} ({error}): use log_dir=...") from error


def find_runs(log_dir: Path, name: str | None = None, debug: bool = False) -> list[Path]:
    """Run directories below `log_dir` (of the given name), the one started last at the end.

    Args:
        debug: With those of debug=..., which `latest` does not mean.
    """
    runs = [path.parent for path in (log_dir if name is None else log_dir / name).rglob("config.yaml")]
    runs = [run for run in runs if debug or run.relative_to(log_dir).parts[0] != DEBUG]
    return sorted(runs, key=lambda run: ((run / "config.yaml").stat().st_mtime_ns, str(run)))


def find_run(value: str, log_dir: Path, name: str | None = None) -> Path:
    """The run directory that `resume=value` means.

    Raises:
        UserError: It does not exist or is no run directory.
    """
    runs = find_runs(log_dir, name) if value == "latest" else [Path(value)]
    return _last(runs, "config.yaml", f"resume={value}", log_dir)


def find_checkpoint(value: str, log_dir: Path, key: str = "ckpt_path") -> Path:
    """The file that `key=value` means: a file, a run directory's best checkpoint, or that of the latest run.

    Raises:
        UserError: There is no such checkpoint.
    """
    runs = [Path(value)]
    if value == "latest":
        runs = [run for run in find_runs(log_dir) if (run / BEST).is_file()]
    elif runs[0].is_file():
        return runs[0]
    return _last(runs, BEST, f"{key}={value}", log_dir) / BEST


def _is_broken(run: Path) -> bool:
    """Whether a run's files cannot be read, which is reported."""
    try:
        stored_config(run)
        read_starts(run)
    except UserError as error:
        print(f"passed over: {error}", file=sys.stderr)
        return True
    return False


def _last(runs: list[Path], file: str, typed: str, log_dir: Path) -> Path:
    while typed.endswith("=latest") and runs and _is_broken(runs[-1]):
        runs = runs[:-1]
    if not runs or not (runs[-1] / file).is_file():
        where = runs[-1] if runs else f"any run below {log_dir}"
        raise UserError(
            f"{typed}: there is no {file} in {where}. Type latest, a run as logs/digits_cnn/2026-11-21_12-30-05, or "
            "another log_dir=...; a checkpoint can be a file too, such as RUN/checkpoints/last.ckpt"
        )
    return runs[-1]


def find_same_run(typed: list[str], log_dir: Path, run_dir: str | None) -> tuple[Path | None, list[str]]:
    """The run that `resume=auto` means, None to begin one; and those overrides that it did not begin with.

    It is the one in `run_dir`, where that is typed, or else the latest below `log_dir` that began with the same
    overrides.

    Args:
        typed: The command line, as it is for a new run.

    Raises:
        UserError: The run in `run_dir` began with other keys, or its files cannot be read.
    """
    typed = [text for text in typed if not text.startswith(("-", "hydra."))]
    keys = {text.partition("=")[0] for text in typed}
    for run in reversed(find_runs(log_dir, debug=True)) if run_dir is None else [Path(run_dir)]:
        starts = read_starts(run) if (run / "config.yaml").is_file() and (run_dir or not _is_broken(run)) else []
        first = starts[0]["overrides"] if starts else []
        if starts and run_dir is not None:
            if missing := " ".join(text for text in first if text.partition("=")[0] not in keys):
                raise UserError(f"run_dir={run} holds a run that began with {missing}: type that, or another run_dir")
            return run, [text for text in typed if text not in first]
        if starts and sorted(first) == sorted(typed):
            return run, []
    return None, []


def only_start(typed: list[str], log_dir: Path) -> AbstractContextManager[None]:
    """Keep other processes from beginning or resuming the same run by `resume=auto`; see `alone`."""
    name = hashlib.sha256("\0".join(sorted(typed)).encode()).hexdigest()[:16]
    return alone(log_dir / f".{name}.lock", "runs this command with resume=auto: wait for its end, or use run_dir=...")


def run_dir_of(checkpoint: Path) -> Path:
    """The run directory that a checkpoint lies in, or else its own folder."""
    run = checkpoint.parent.parent
    return run if checkpoint.parent.name == "checkpoints" and (run / "config.yaml").is_file() else checkpoint.parent


def stored_config(run: Path) -> dict[str, Any]:
    """The config of a run, with its paths as they are now, should its directory have been moved.

    Raises:
        UserError: It cannot be read.
    """
    with _readable(run / "config.yaml") as text:
        config: dict[str, Any] = parsed(text)
        old = str(config["run_dir"])

    def here(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: here(item) for key, item in value.items()}
        if isinstance(value, list):
            return [here(item) for item in value]
        if isinstance(value, str) and (value == old or value.startswith(old + "/")):
            return str(run) + value.removeprefix(old)
        return value

    return cast(dict[str, Any], here(config))


def parsed(text: str | bytes) -> Any:
    """The value of a run's YAML.

    Raises:
        ValueError: It has aliases, of which a few lines can mean more values than fit into memory, or more than 100
            levels, of which many end libyaml. A run writes neither.
        yaml.YAMLError: It is no YAML.
    """
    depth = 0
    for event in yaml.parse(text, LOADER):  # to the first that is wrong: libyaml takes minutes for 100,000 levels
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or depth > 100:
            raise ValueError("it has aliases, or is nested too deeply")
    return yaml.load(text, LOADER)


def require_changeable(stored: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Refuse changes to a run's config that would have no effect, or a wrong one, on the rest of the run.

    Args:
        stored: The run's own.
        config: That to resume with.

    Raises:
        UserError: With the first such key.
    """
    before, after = leaves(stored), leaves(config)
    for key in {**after, **before}:
        begun, now = before.get(key), after.get(key)
        # Lightning finds the parameters of an optimiser's state by their order, which groups of them change
        regrouped = key == "trainer.strategy" and SHARDED in (begun, now)
        if now != begun and (regrouped or not _may_change(key, gone=key not in after)):
            raise UserError(
                f"{key}={as_typed(now)} is not possible in a resumed run, which began with {as_typed(begun)}: what can "
                "change is where it runs, for how long (trainer.max_epochs), and what it shows. For a new run from its "
                "weights, use init_from=... instead of resume"
            )


def prolongs(stored: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether a finished run has more to do by `config` than by its own, `stored`."""
    before, after = leaves(stored), leaves(config)
    changed = {key for key in before | after if before.get(key) != after.get(key)}
    return any(re.match(r"test$|callbacks|trainer\.(max|min|limit)_", key) for key in changed)


def _may_change(key: str, gone: bool) -> bool:
    fitting = [pattern for pattern in RESUME_MAY_CHANGE if fnmatchcase(key, pattern.removeprefix("!"))]
    return bool(fitting) and (gone or not fitting[-1].startswith("!"))


def versions() -> dict[str, str]:
    """Library -> version."""
    import torch

    found = {name.replace("-", "_"): version(name) for name in ("torchvision", "pytorch-lightning", "timm", "numpy")}
    # torch's own, as it also names the build, such as +cu132
    return {"python": platform.python_version(), "classifier": __version__, "torch": str(torch.__version__), **found}


def read_starts(run: Path) -> list[dict[str, Any]]:
    """What `record_start` wrote, the first start first.

    Raises:
        UserError: It cannot be read.
    """
    if not (run / STARTS).exists():
        return []
    with _readable(run / STARTS) as text:
        starts = [json.loads(line) for line in text.splitlines()]
        "".join(text for start in starts for text in start["overrides"])  # are they texts?
    return starts


@contextmanager
def _readable(path: Path) -> Iterator[str]:
    """The text of a run's file, as a UserError where it or what is read from it is broken."""
    try:
        yield path.read_text(encoding="utf-8")
    except (OSError, ValueError, LookupError, TypeError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(f"{type(error).__name__} {error}".split())
        raise UserError(f"{path} cannot be read ({reason}): mend or remove it, or name another run") from error


def record_start(run_dir: Path, overrides: list[str]) -> None:
    """Add a line to the run's starts.jsonl, and the changes to the code since its git revision as a file beside it.

    Args:
        overrides: What was typed, in Hydra's grammar.

    Raises:
        UserError: They cannot be written.
    """
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    start = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.orig_argv),
        "overrides": overrides,
        "versions": versions(),
        "git": _git(run_dir),
        "machine": {"host": platform.node(), "system": platform.platform(), "cores": os.cpu_count(), "gpus": gpus},
    }
    with whole_file(run_dir / STARTS, "log_dir") as scratch:
        lines = [f"{json.dumps(line)}\n" for line in [*read_starts(run_dir), start]]
        scratch.write_text("".join(lines), encoding="utf-8")


def _git(run_dir: Path) -> dict[str, Any] | None:
    """Revision of the code, and the name of a file with what differs from it; None where git knows nothing."""
    revision = _ask_git("rev-parse", "HEAD")
    if revision is None:
        return None
    new = (_ask_git("ls-files", "-z", "--others", "--exclude-standard", ":/*.py", ":/*.yaml") or b"").split(b"\0")
    texts = [b"new file: %s\n%s\n" % (path, (PACKAGE / os.fsdecode(path)).read_bytes()) for path in new if path]
    diff = b"".join([_ask_git("diff", "HEAD") or b"", *texts])
    # starts from the same code share one
    name = f"git_{hashlib.sha256(diff).hexdigest()[:8]}.diff" if diff else None
    if name is not None:
        with whole_file(run_dir / name, "log_dir") as scratch:
            scratch.write_bytes(diff)
    return {"revision": revision.decode().strip(), "diff": name}


def _ask_git(*arguments: str) -> bytes | None:
    try:
        return subprocess.run(["git", *arguments], cwd=PACKAGE, capture_output=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return None
