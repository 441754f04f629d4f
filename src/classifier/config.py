"""Run directories, and the way from a run or a checkpoint back to its config. Imports no torch: `--help` is fast."""

import json
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from classifier.errors import UserError

PACKAGE = Path(__file__).parent
# a checkout has configs/ beside src/, an installed wheel inside the package
CONFIG_DIR = next(path for path in (PACKAGE.parents[1] / "configs", PACKAGE / "configs") if path.is_dir())
GROUPS = ("data", "model", "finetune", "optimizer", "scheduler", "trainer", "speed", "callbacks", "logger")
STARTS = "starts.jsonl"  # a line for each start of a run: when, with what, where
DEBUG = "debug"  # the folder of runs with debug=...
STORED = "checkpoint"  # the option of each group that holds a stored run's config

# two values of which the first may be null; Hydra asks for it before a job, and so the experiment's name, is set
OmegaConf.register_new_resolver("either", lambda first, second: second if first is None else first, replace=True)


def folder_of(name: str, debug: str | None) -> str:
    """Where runs of a name lie below log_dir; those with debug=... apart, as `latest` never means them."""
    return name if debug is None else f"{DEBUG}/{name}"


OmegaConf.register_new_resolver("folder", folder_of, replace=True)


def plain(config: DictConfig) -> dict[str, Any]:
    """The resolved config as dict, list, str and numbers."""
    container = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def offer_stored(config: Mapping[str, Any], run: Mapping[str, Any]) -> None:
    """Make a stored run's config available to Hydra: each section as the option `checkpoint` of its group.

    eval.yaml and resume.yaml list these options among their defaults, so that what is typed on the command line
    overrides them by Hydra's own grammar.

    Args:
        run: What to carry over beside the sections, as the option `checkpoint` of the group `run`.
    """
    store = ConfigStore.instance()
    for group in GROUPS:
        if (section := config.get(group)) is not None:
            store.store(group=group, name=STORED, node=section)
        else:  # nor that of another run that was offered before
            store.repo.get(group, {}).pop(f"{STORED}.yaml", None)
    store.store(group="run", name=STORED, node=dict(run), package="_global_")


def new_run_dir(parent: Path) -> Path:
    """Make parent/<date_time>, with a number behind it where another run started in the same second."""
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    for attempt in range(1, 1000):
        path = parent / (stamp if attempt == 1 else f"{stamp}_{attempt}")
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"cannot make the run directory {path} ({error}): use log_dir=...") from error
    raise AssertionError("a thousand runs in one second")


def find_runs(log_dir: Path, name: str | None = None, debug: bool = False) -> list[Path]:
    """Run directories below `log_dir` (of the given name), the one started last at the end.

    Args:
        debug: With those of debug=..., which are not meant to be gone on with.
    """
    runs = [path.parent for path in (log_dir if name is None else log_dir / name).rglob("config.yaml")]
    runs = [run for run in runs if debug or run.relative_to(log_dir).parts[0] != DEBUG]
    return sorted(runs, key=lambda run: ((run / "config.yaml").stat().st_mtime_ns, str(run)))


def read_starts(run: Path) -> list[dict[str, Any]]:
    """What `provenance.record_start` wrote, the first start first."""
    if not (run / STARTS).is_file():
        return []
    return [json.loads(line) for line in (run / STARTS).read_text(encoding="utf-8").splitlines()]


def find_run(value: str, log_dir: Path, name: str | None = None) -> Path:
    """The run directory that `resume=value` means.

    Raises:
        UserError: It does not exist or is no run directory.
    """
    if value == "latest":
        runs = find_runs(log_dir, name)
        if not runs:
            where = log_dir if name is None else log_dir / name
            raise UserError(
                f"resume=latest: no run below {where}: name a run directory with resume=..., or log_dir=..."
            )
        return runs[-1]
    run = Path(value)
    if not (run / "config.yaml").is_file():
        what = "is no run directory (it holds no config.yaml)" if run.exists() else "does not exist"
        raise UserError(f"resume={value} {what}: name one, such as logs/digits_cnn/2026-11-21_12-30-05, or latest")
    return run


def find_checkpoint(value: str, log_dir: Path, key: str = "ckpt_path") -> Path:
    """The file that `key=value` means: a file, a run directory's best checkpoint, or that of the latest run.

    Raises:
        UserError: There is no such checkpoint.
    """
    if value == "latest":
        found = [run / "checkpoints" / "best.ckpt" for run in find_runs(log_dir)]
        found = [path for path in found if path.is_file()]
        if not found:
            raise UserError(f"{key}=latest: no run below {log_dir} has a checkpoint: use {key}=... or log_dir=...")
        return found[-1]
    path = Path(value)
    if path.is_dir():
        best = path / "checkpoints" / "best.ckpt"
        if not best.is_file():
            last = best.with_name("last.ckpt")
            instead = f"use {key}={last}" if last.is_file() else "name a run directory or a file"
            raise UserError(f"{key}={value} is a folder without checkpoints/best.ckpt: {instead}")
        return best
    if not path.is_file():
        raise UserError(f"{key}={value} does not exist: name a .ckpt file, a run directory, or latest")
    return path


def run_dir_of(checkpoint: Path) -> Path:
    """The run directory that a checkpoint lies in, or else its own folder."""
    run = checkpoint.parent.parent
    return run if checkpoint.parent.name == "checkpoints" and (run / "config.yaml").is_file() else checkpoint.parent


def on_main_process() -> bool:
    """Whether this is the only process, or the first of several (as Lightning, torchrun and SLURM number them)."""
    return all(os.environ.get(key, "0") == "0" for key in ("LOCAL_RANK", "RANK", "NODE_RANK", "SLURM_PROCID"))


def stored_config(run: Path) -> dict[str, Any]:
    """The config of a run, with its paths as they are now, should its directory have been moved."""
    config = OmegaConf.load(run / "config.yaml")
    assert isinstance(config, DictConfig)
    old = str(config["run_dir"])

    def here(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: here(item) for key, item in value.items()}
        if isinstance(value, list):
            return [here(item) for item in value]
        if isinstance(value, str) and (value == old or value.startswith(old + "/")):
            return str(run) + value.removeprefix(old)
        return value

    moved: dict[str, Any] = here(plain(config))
    return moved


def restore_variable(variable: str, value: str | None) -> None:
    """Set an environment variable back to `value`, None for unset."""
    if value is None:
        os.environ.pop(variable, None)
    else:
        os.environ[variable] = value
