"""Label images: python src/predict.py ckpt_path=latest inputs=photos/ output=predictions.csv"""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the imports in silence; `main` takes it back

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from classifier.cli import from_checkpoint, main


def predict(config: DictConfig) -> object:
    from classifier.verbs.predict import predict  # not at the top: `--help` does without torch

    return predict(config)


def stored_values(checkpoint: Path) -> Mapping[str, Any]:
    from classifier.verbs.predict import stored_values

    return stored_values(checkpoint)


if __name__ == "__main__":
    main("predict", predict, from_checkpoint(stored_values))
