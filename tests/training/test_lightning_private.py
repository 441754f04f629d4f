from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl

from classifier.training.lightning_private import ProgressBarFromOne, validation_follows
from tests.training import runs


class Foretold(pl.Callback):
    """Notes of each training batch whether a validation was to follow, and whether it did."""

    def __init__(self) -> None:
        self.foretold: list[bool] = []
        self.followed: list[bool] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        self.foretold.append(validation_follows(trainer))
        self.followed.append(False)

    def on_validation_start(self, *arguments: Any) -> None:
        self.followed[-1] = True


@pytest.mark.parametrize(
    ("settings", "validations"),
    [
        ({}, 2),
        ({"val_check_interval": 2}, 4),
        ({"check_val_every_n_epoch": 2}, 1),
        ({"check_val_every_n_epoch": None, "val_check_interval": 3}, 3),
        ({"limit_val_batches": 0}, 0),
        ({"accumulate_grad_batches": 4, "val_check_interval": 1}, 10),
    ],
)
def test_a_validation_is_foretold(settings: dict[str, Any], validations: int, tmp_path: Path) -> None:
    notes = Foretold()
    trainer = runs.trainer(tmp_path, [notes], max_epochs=2, **settings)
    trainer.fit(runs.make_classifier(), runs.loader(count=20), runs.loader())
    assert notes.foretold == notes.followed
    assert sum(notes.followed) == validations


@pytest.mark.parametrize(("max_epochs", "shown"), [(3, "Epoch 1/3 "), (-1, "Epoch 1   ")])
def test_the_bar_counts_epochs_from_one(max_epochs: int, shown: str, tmp_path: Path) -> None:
    bar = ProgressBarFromOne()
    bar.setup(runs.trainer(tmp_path, max_epochs=max_epochs), runs.make_classifier(), "fit")
    assert bar._get_train_description(0) == shown
