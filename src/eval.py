"""Evaluate a checkpoint: python src/eval.py ckpt_path=latest split=val"""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the imports in silence; `main` takes it back

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from classifier.cli import from_checkpoint, main


def evaluate(config: DictConfig) -> object:
    from classifier.verbs.evaluate import evaluate  # not at the top: `--help` does without torch

    return evaluate(config)


def stored_values(checkpoint: Path) -> Mapping[str, Any]:
    from classifier.verbs.evaluate import stored_values

    return stored_values(checkpoint)


if __name__ == "__main__":
    main("eval", evaluate, from_checkpoint(stored_values))
