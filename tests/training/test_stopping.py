import logging
import signal
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from classifier.training.callbacks import RunProgressBar
from classifier.training.stopping import LastCheckpoint
from classifier.training.stopping import RunEarlyStopping, ending_on_sigterm
from tests.training import runs


class Score(pl.Callback):
    """A validation score of each epoch: it falls, or is no number from an epoch on."""

    def __init__(self, broken_from: int) -> None:
        self.broken_from = broken_from

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        broken = trainer.current_epoch >= self.broken_from
        pl_module.log("score", torch.tensor(float("nan") if broken else -float(trainer.current_epoch)))


def fit(run_dir: Path, resume: bool = False, patience: int = 2, broken_from: int = 100) -> pl.Trainer:
    stopping = RunEarlyStopping(monitor="score", mode="max", patience=patience)
    last = LastCheckpoint(dirpath=run_dir)
    trainer = runs.trainer(run_dir, [Score(broken_from), stopping, last], max_epochs=8)
    path = run_dir / "last.ckpt" if resume else None
    trainer.fit(runs.make_classifier(), runs.loader(), runs.loader(), ckpt_path=path, weights_only=True)
    return trainer


@pytest.mark.parametrize(("broken_from", "steps"), [(100, 9), (1, 6)])
def test_a_run_that_stopped_early_does_not_go_on(
    broken_from: int, steps: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "classifier"):
        assert fit(tmp_path, broken_from=broken_from).global_step == steps
    assert "early stopping (callbacks.early_stopping=null goes on)" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, "classifier"):
        assert fit(tmp_path, resume=True, broken_from=broken_from).global_step == steps
    assert "early stopping has ended this run" in caplog.text


def test_more_patience_takes_it_further(tmp_path: Path) -> None:
    assert fit(tmp_path).global_step == 9
    assert fit(tmp_path, resume=True, patience=4).global_step == 15
    assert fit(tmp_path, resume=True, patience=4).global_step == 15


def test_sigterm_ends_as_an_exception_does() -> None:
    before = signal.getsignal(signal.SIGTERM)
    cleared: list[str] = []

    def work() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            cleared.append("here")

    with pytest.raises(SystemExit) as stop, ending_on_sigterm():
        work()
    assert (stop.value.code, cleared) == (143, ["here"])
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(("limit", "shown"), [({"max_epochs": 3}, "Epoch 1/3"), ({"max_epochs": -1}, "Epoch 1")])
def test_the_bar_counts_epochs_from_one(limit: dict[str, Any], shown: str, tmp_path: Path) -> None:
    bar = RunProgressBar()
    bar._trainer = runs.trainer(tmp_path, **limit)
    assert bar._get_train_description(0).rstrip() == shown
