"""What the entry points share: the command line in, an exit code out. Imports no torch."""

import logging
import os
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from classifier.config import (
    CONFIG_DIR,
    on_main_process,
    restore_variable,
)
from classifier.errors import UserError
from classifier.explaining import explain, is_bug
from classifier.overrides import quoted
from classifier.preparing import HELP, prepare

log = logging.getLogger(__name__)

WRONG_INPUT = 2  # exit code
STOPPED = 130  # as of a program that SIGINT ended; `train` ends with 143 on SIGTERM
NUMBER_KEYS = ("seed", "ema", "top_k", "batch_size", "data.num_workers", "optimizer.lr", "optimizer.weight_decay",
               "trainer.max_epochs", "trainer.max_steps", "min_side", "max_pixels", "min_per_class",
               "max_imbalance")  # fmt: skip
WHOLE_KEYS = ("seed", "top_k", "batch_size", "trainer.max_epochs", "trainer.max_steps")


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
            refusals.append(_of_job(UserError(explain(error, verb))))
            return None
        finally:
            os.environ["HYDRA_FULL_ERROR"] = "1"

    refusals: list[UserError] = []
    codes = [0]
    arguments = sys.argv[1:]
    try:
        _require_options(arguments)
        sys.argv[1:] = quoted(arguments)
        config_name = prepare(verb)
        if config_name is None:
            return
        if HELP & set(sys.argv[1:]):
            _print_help(config_name)
            return
        hydra.main(config_path=str(CONFIG_DIR), config_name=config_name, version_base="1.3")(run)()
    except UserError as error:
        refusals.append(error)
    except (HydraException, OmegaConfBaseException) as error:
        if is_bug(error):
            raise
        refusals.append(UserError(explain(error, verb)))
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
