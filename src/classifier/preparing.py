"""What comes before Hydra composes a config: a stored run's own becomes what the command line overrides.

Imports no torch, but where a checkpoint is read.
"""

import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from classifier.config import CONFIG_DIR, find_checkpoint, find_run, offer_stored, on_main_process, stored_config
from classifier.errors import UserError, did_you_mean
from classifier.overrides import argument, replace_arguments
from classifier.resuming import is_finished, run_of_the_same_command

HELP = {"--help", "-h"}
OF_A_CHECKPOINT = ("eval", "predict")  # verbs whose config begins with a checkpoint's own
HARDWARE = ("accelerator", "devices", "num_nodes", "strategy")
KEPT_ON_RESUME = ("name", "log_dir", "run_dir", "seed", "monitor", "mode", "test", "loss", "mix",
                  "ema", "init_from")  # fmt: skip


def prepare(verb: str) -> str | None:
    """Look up what `resume` or `ckpt_path` stored, offer it to Hydra, and name the config to compose.

    None where there is nothing to do.
    """
    log_dir = Path(argument("log_dir") or "logs")
    if verb == "train":
        return _prepare_training(log_dir)
    if verb in OF_A_CHECKPOINT:
        _prepare_checkpoint(verb, log_dir)
    return verb


def _prepare_training(log_dir: Path) -> str | None:
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
    _prepare_run(find_run(resume, log_dir, argument("name") or argument("experiment")))
    return "resume"


def _prepare_run(run: Path) -> None:
    """Offer a run's config, to go on with it."""
    stored = stored_config(run)
    offer_stored(stored, {key: stored[key] for key in KEPT_ON_RESUME})
    if (hardware := argument("trainer")) is not None:  # another machine, but as many epochs as before
        chosen = {**_yaml("trainer", "default"), **_yaml("trainer", hardware)}
        sys.argv[1:] = [
            *(f"trainer.{key}={chosen[key]}" for key in HARDWARE),
            *(text for text in sys.argv[1:] if not text.startswith("trainer=")),
        ]
    replace_arguments({"resume": str(run), "run_dir": str(run)}, drop=("experiment", "name", "log_dir"))


def _prepare_checkpoint(verb: str, log_dir: Path) -> None:
    """Offer the config in the checkpoint that `ckpt_path` names."""
    path = argument("ckpt_path")
    if path is not None:
        found = find_checkpoint(path, log_dir)
        from classifier.training.checkpoints import RUN_KEY, read_checkpoint

        config = read_checkpoint(found)[RUN_KEY]["config"]
        # the precision of the training, on the devices of this machine
        offer_stored(config, {"trainer": {"precision": config["trainer"]["precision"]}})
        replace_arguments({"ckpt_path": str(found)})
    elif (HELP | {"--cfg", "-c", "--info", "-i", "--shell-completion", "-sc"}) & set(sys.argv[1:]):
        offer_stored({"data": {}}, {})
    else:
        raise UserError(f"{verb}.py needs a checkpoint: ckpt_path=FILE, a run directory, or ckpt_path=latest")


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
