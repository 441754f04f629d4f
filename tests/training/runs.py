"""A small classifier, small random data and a Trainer, for tests of what happens in a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from classifier.training.module import Batch, ImageClassifier
from classifier.training.trainer import make_trainer

CNN: dict[str, Any] = {"_target_": "classifier.models.SimpleCNN", "widths": [4, 8], "hidden": [], "drop_rate": 0.2}
ADAMW: dict[str, Any] = {"_target_": "torch.optim.AdamW", "lr": 0.01}


def make_classifier(
    num_classes: int = 3, size: int = 8, channels: int = 1, weight_seed: int = 0, **settings: Any
) -> ImageClassifier:
    torch.manual_seed(weight_seed)
    classes = [f"class {number}" for number in range(num_classes)]
    preprocessing = {"image_size": [size, size], "channels": channels}
    given: dict[str, Any] = {"model": CNN, "classes": classes, "preprocessing": preprocessing, "optimizer": ADAMW}
    return ImageClassifier(**{**given, "trusted": True, **settings})


def random_images(count: int, size: int = 8, channels: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8)


def loader(
    count: int = 12, num_classes: int = 3, batch_size: int = 4, seed: int = 0, size: int = 8, channels: int = 1
) -> DataLoader[Batch]:
    """Images with the labels 0, 1, 2, 0, 1, ..."""
    items = [
        {"image": image, "label": torch.tensor(index % num_classes), "index": torch.tensor(index)}
        for index, image in enumerate(random_images(count, size, channels, seed))
    ]
    return DataLoader(items, batch_size=batch_size)  # type: ignore[arg-type]


TRAINER: dict[str, Any] = {
    "_target_": "pytorch_lightning.Trainer",
    "accelerator": "cpu",
    "devices": 1,
    "precision": "32-true",
    "num_sanity_val_steps": 0,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "log_every_n_steps": 1,
}


def trainer(run_dir: Path, callbacks: Sequence[pl.Callback] = (), **settings: Any) -> pl.Trainer:
    arguments: dict[str, Any] = {"logger": False, "enable_checkpointing": False, **settings}
    if any(isinstance(callback, pl.callbacks.Checkpoint) for callback in callbacks):
        arguments["enable_checkpointing"] = True
    return make_trainer(TRAINER, run_dir, callbacks=list(callbacks), **arguments)
