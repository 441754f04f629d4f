"""Label images: python src/predict.py ckpt_path=latest inputs=photos/ output=predictions.csv"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from classifier.cli import from_checkpoint, main


def predict(config: DictConfig) -> object:
    from classifier import verbs  # not at the top: `--help` does without torch

    return verbs.predict(config)


def stored_precision(checkpoint: Path) -> Mapping[str, Any]:
    from classifier import verbs

    return verbs.stored_precision(checkpoint)


if __name__ == "__main__":
    main("predict", predict, from_checkpoint(stored_precision))
