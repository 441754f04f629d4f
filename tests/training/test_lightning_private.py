"""What fails when a private name of Lightning changes its meaning.

The bar's epochs are tested in test_callbacks.py, a repeated validation in test_stopping.py, one group of all processes
in tests/verbs/test_processes.py.
"""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl

from classifier.training.lightning_private import validation_follows
from tests.training import runs


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
    foretold: list[bool] = []
    followed: list[bool] = []

    def ask(trainer: pl.Trainer, *_: Any) -> None:
        foretold.append(validation_follows(trainer))
        followed.append(False)

    def note(*_: Any) -> None:
        followed[-1] = True

    notes = pl.callbacks.LambdaCallback(on_train_batch_end=ask, on_validation_start=note)
    trainer = runs.trainer(tmp_path, [notes], max_epochs=2, **settings)
    trainer.fit(runs.make_classifier(), runs.loader(count=20), runs.loader())
    assert foretold == followed
    assert sum(followed) == validations
