"""What the entry points share: the command line in, an exit code out. Imports no torch."""

import logging
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from classifier.config import (
    CONFIG_DIR,
    find_checkpoint,
    find_run,
    offer_stored,
    on_main_process,
    restore_variable,
    stored_config,
)
from classifier.errors import UserError, did_you_mean
from classifier.overrides import argument, quoted, replace_arguments
from classifier.resuming import is_finished, run_of_the_same_command

log = logging.getLogger(__name__)

WRONG_INPUT = 2  # exit code
STOPPED = 130  # as of a program that SIGINT ended; `train` ends with 143 on SIGTERM
HELP = {"--help", "-h"}
OF_A_CHECKPOINT = ("eval", "predict")  # verbs whose config begins with a checkpoint's own
HARDWARE = ("accelerator", "devices", "num_nodes", "strategy")
NUMBER_KEYS = ("seed", "ema", "top_k", "batch_size", "data.num_workers", "optimizer.lr", "optimizer.weight_decay",
               "trainer.max_epochs", "trainer.max_steps", "min_side", "max_pixels", "min_per_class",
               "max_imbalance")  # fmt: skip
WHOLE_KEYS = ("seed", "top_k", "batch_size", "trainer.max_epochs", "trainer.max_steps")
KEPT_ON_RESUME = ("name", "log_dir", "run_dir", "seed", "monitor", "mode", "test", "loss", "mix",
                  "ema", "init_from", "on_oom")  # fmt: skip


def main(verb: str, task: Callable[[DictConfig], Any]) -> None:
    """Run `task` on the config that configs/<verb>.yaml and the command line compose, then exit.

    Exit codes: 0 done, or the number that `task` returns; 2 wrong input, told in one message; 130 stopped by Ctrl-C;
    143 stopped by SIGTERM; 1 a bug, with its traceback.
    """
    # Hydra prints errors itself, and ends with 1, unless this is set; then they reach us
    wanted = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"

    def run(config: DictConfig) -> Any:
        restore_variable("HYDRA_FULL_ERROR", wanted)  # for the processes that a run starts
        if not on_main_process():
            logging.getLogger("classifier").setLevel(logging.WARNING)
        try:
            _require_numbers(config)
            result = task(config)
            if isinstance(result, int):  # Hydra does not hand it on
                codes.append(result)
            return result
        except UserError as error:  # kept from Hydra, which would print its own account first
            refusals.append(_of_job(error))
            return None
        except MissingMandatoryValue as error:
            refusals.append(_of_job(UserError(_explain(error, verb))))
            return None
        finally:
            os.environ["HYDRA_FULL_ERROR"] = "1"

    refusals: list[UserError] = []
    codes = [0]
    arguments = sys.argv[1:]
    try:
        _require_options(arguments)
        sys.argv[1:] = quoted(arguments)
        config_name = _prepare(verb)
        if config_name is None:
            return
        if HELP & set(sys.argv[1:]):
            _print_help(config_name)
            return
        hydra.main(config_path=str(CONFIG_DIR), config_name=config_name, version_base="1.3")(run)()
    except UserError as error:
        refusals.append(error)
    except (HydraException, OmegaConfBaseException) as error:
        if _is_bug(error):
            raise
        refusals.append(UserError(_explain(error, verb)))
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(STOPPED)
    finally:
        restore_variable("HYDRA_FULL_ERROR", wanted)
    for refusal in refusals:
        if wanted == "1":
            traceback.print_exception(refusal)
        print(f"error: {_message(refusal)}", file=sys.stderr)
    code = WRONG_INPUT if refusals else max(codes)
    if code:
        sys.exit(code)


def _require_options(arguments: list[str]) -> None:
    # argparse would take --experiment for Hydra's --experimental-rerun
    known = get_args_parser()._option_string_actions
    for text in arguments:
        option, _, value = text.partition("=")
        if option.startswith("--") and option not in known:
            raise UserError(
                f"there is no option {option}: overrides go without dashes, {option[2:]}={value or 'VALUE'}"
            )


def _require_numbers(config: DictConfig) -> None:
    for key in NUMBER_KEYS:
        value = OmegaConf.select(config, key, throw_on_missing=False)
        if isinstance(value, str) and value != "auto":
            raise UserError(f"{key}={value} must be a number")
        if isinstance(value, float) and key in WHOLE_KEYS:
            raise UserError(f"{key}={value} must be a whole number")


def _message(error: UserError) -> str:
    # one that was raised in a DataLoader worker comes with that process's traceback in its text
    return str(error).rsplit("Error: ", 1)[-1].strip() if "Original Traceback" in str(error) else str(error)


def _of_job(error: UserError) -> UserError:
    """`error`, with the job that it refused where that is one of several."""
    settings = HydraConfig.get()
    if settings.mode == RunMode.MULTIRUN:
        log.warning("job %d is refused: why comes at the end", settings.job.num)
        error.args = (f"job {settings.job.num} ({' '.join(settings.overrides.task)}): {_message(error)}",)
    return error


def _prepare(verb: str) -> str | None:
    """Look up what `resume` or `ckpt_path` stored, offer it to Hydra, and name the config to compose.

    None where there is nothing to do.
    """
    log_dir = Path(argument("log_dir") or "logs")
    if verb == "train":
        resume = argument("resume")
        if resume is not None and {"-m", "--multirun"} & set(sys.argv):
            raise UserError(f"resume={resume} goes on with one run: leave out -m")
        if resume == "auto":
            if argument("init_from") == "latest":
                raise UserError("init_from=latest is another one at the next start: name it, to use resume=auto")
            replace_arguments({}, drop=("resume",))
            _prepare_new(log_dir)
            begun, overrides = run_of_the_same_command(sys.argv[1:], log_dir)
            if begun is None:
                return "train"
            if is_finished(begun) and not overrides:
                if on_main_process():
                    print(f"{begun} is done: nothing to go on with")
                return None
            options = [text for text in sys.argv[1:] if text.startswith("-")]
            resume, sys.argv[1:] = str(begun), [*overrides, *options]
        if resume is None:
            _prepare_new(log_dir)
            return "train"
        run = find_run(resume, log_dir, argument("name") or argument("experiment"))
        stored = stored_config(run)
        offer_stored(stored, {key: stored[key] for key in KEPT_ON_RESUME})
        if (hardware := argument("trainer")) is not None:  # another machine, but as many epochs as before
            chosen = {**_yaml("trainer", "default"), **_yaml("trainer", hardware)}
            sys.argv[1:] = [
                *(f"trainer.{key}={chosen[key]}" for key in HARDWARE),
                *(text for text in sys.argv[1:] if not text.startswith("trainer=")),
            ]
        replace_arguments({"resume": str(run), "run_dir": str(run)}, drop=("experiment", "name", "log_dir"))
        return "resume"
    if verb not in OF_A_CHECKPOINT:
        return verb
    path = argument("ckpt_path")
    if path is not None:
        found = find_checkpoint(path, log_dir)
        from classifier.training.checkpoint import RUN_KEY, read_checkpoint

        config = read_checkpoint(found)[RUN_KEY]["config"]
        # the precision of the training, on the devices of this machine
        offer_stored(config, {"trainer": {"precision": config["trainer"]["precision"]}})
        replace_arguments({"ckpt_path": str(found)})
    elif (HELP | {"--cfg", "-c", "--info", "-i", "--shell-completion", "-sc"}) & set(sys.argv[1:]):
        offer_stored({"data": {}}, {})
    else:
        raise UserError(f"{verb}.py needs a checkpoint: ckpt_path=FILE, a run directory, or ckpt_path=latest")
    return verb


def _prepare_new(log_dir: Path) -> None:
    """Complete the arguments of a new run."""
    if (source := argument("init_from")) is not None:
        replace_arguments({"init_from": str(find_checkpoint(source, log_dir, "init_from"))})
    if argument("data") is not None and argument("experiment") is None and "~experiment" not in sys.argv:
        sys.argv.insert(1, "~experiment")  # the default one is for its own data


def _yaml(group: str, option: str) -> dict[str, Any]:
    path = CONFIG_DIR / group / f"{option}.yaml"
    if not path.is_file():
        raise UserError(
            f"{group}={option} does not exist: {did_you_mean(option, (p.stem for p in path.parent.iterdir()))}"
        )
    return dict(OmegaConf.load(path))


def _print_help(config_name: str) -> None:
    """What can be typed. (Hydra's own help lists the groups twice over and takes three times as long.)"""
    overrides = [text for text in sys.argv[1:] if not text.startswith("-")]
    with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = hydra.compose(config_name, overrides)
    head, _, defaults = (CONFIG_DIR / f"{config_name}.yaml").read_text().partition("\ndefaults:")
    print(f"{head}\n\nGROUPS, of which GROUP=NAME picks one:")
    for group in re.findall(r"^  - (?:optional )?(\w+):", defaults, re.MULTILINE):
        names = sorted(path.stem for path in (CONFIG_DIR / group).glob("[!_]*.yaml"))
        if names:
            print(f"  {group}: {', '.join(names)}")
    print("\nKEYS, which KEY=VALUE overrides (-m KEY=A,B runs each value, --cfg job prints these alone):\n")
    print(OmegaConf.to_yaml(config))


def _is_bug(error: Exception) -> bool:
    """Whether an exception of Hydra's comes from our code, not from the command line."""
    return (
        isinstance(error, OmegaConfBaseException)
        and not isinstance(error, MissingMandatoryValue)
        and not error.full_key
    )


def _explain(error: Exception, verb: str) -> str:
    """Hydra's message, with the near matches of what was mistyped."""
    text = str(error)
    if isinstance(error, MissingMandatoryValue):
        key = error.full_key or text.rsplit(" ", 1)[-1]
        return f"{key} is not set: type {key}=..."
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        return f"{group}={option} does not exist: {did_you_mean(option, error.options)}"
    if isinstance(error, OverrideParseException) and "=" not in str(error.override):
        return f"{error.override} has no value: type {error.override}=VALUE"
    if isinstance(error, OverrideParseException):
        return f"cannot read the override {error.override!r}: put its value into quotes, such as \"key='a value'\""
    if isinstance(error, ConfigCompositionException) and (found := re.search(r"Could not override '([^'@]+)", text)):
        key = found[1]
        return f"there is no key {key}: {_near_key(key, _known_keys(verb, key))}"
    return " ".join(text.split())


def _near_key(wrong: str, known: list[str]) -> str:
    """`optimizer.lr` for `lr`, `trainer.max_epochs` for `epochs`; else what is spelt alike."""
    last = wrong.rpartition(".")[2]
    same = [key for key in known if key.rpartition(".")[2] == last]
    same = same or [key for key in known if last in key.rpartition(".")[2].split("_")]
    same.sort(key=lambda key: not key.startswith("trainer."))  # whose epochs and steps are mostly meant
    return f"did you mean {' or '.join(same[:3])}?" if same else did_you_mean(wrong, known)


def _known_keys(verb: str, wrong: str) -> list[str]:
    """All keys that can be overridden beside the ones that are right on this command line."""
    overrides = [
        text
        for text in sys.argv[1:]
        if re.match(r"[\w/]+=[\w/]+$", text)
        and text.partition("=")[0] != wrong
        and Path(CONFIG_DIR, text.partition("=")[0]).is_dir()
    ]
    with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = hydra.compose(verb, overrides)
    keys = ["experiment"]  # a group that is no key

    def walk(node: Any, prefix: str) -> None:
        for key, value in node.items():
            keys.append(prefix + str(key))
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")

    walk(OmegaConf.to_container(config, resolve=False), "")
    return keys
