import io
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl

from classifier.training.callbacks import RunProgressBar
from classifier.training.loggers import ConsoleLogger
from tests.training import runs


class Told(RunProgressBar):
    """Counts what reaches the bar."""

    def __init__(self, refresh_rate: int, screen: io.StringIO) -> None:
        super().__init__(refresh_rate, console_kwargs={"force_terminal": True, "file": screen, "width": 80})
        self.times = 0

    def _update_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.times += 1
        super()._update_metrics(trainer, pl_module)


def fit(tmp_path: Path, bar: pl.Callback, **settings: Any) -> None:
    trainer = runs.trainer(tmp_path, [bar], max_epochs=2, enable_progress_bar=True, **settings)
    trainer.fit(runs.make_classifier(), runs.loader(count=80), runs.loader(count=4))


def test_bar_is_told_as_often_as_it_is_drawn(tmp_path: Path) -> None:
    seldom, often = Told(1, io.StringIO()), Told(100_000, io.StringIO())
    fit(tmp_path, seldom)
    fit(tmp_path, often)
    assert often.times >= 2 * 20
    assert seldom.times < often.times / 2
    assert seldom.train_progress_bar.completed == 20, "the last step of an epoch is always shown"


def test_bar_counts_epochs_from_one_and_fits_a_terminal(tmp_path: Path) -> None:
    screen = io.StringIO()
    fit(tmp_path, Told(100, screen))
    shown = screen.getvalue()
    assert "Epoch 1/2" in shown
    assert "Epoch 2/2" in shown
    assert "Epoch 0" not in shown
    [line, *_] = [line for line in shown.splitlines() if "20/20" in line]
    assert "loss:" in line


def test_each_epoch_leaves_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = runs.trainer(tmp_path, max_epochs=2, logger=ConsoleLogger())
    trainer.fit(runs.make_classifier(), runs.loader(), runs.loader())
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert [line.partition(":")[0] for line in lines] == ["epoch 1", "epoch 2"]
    loss, acc = (trainer.callback_metrics[f"val/{name}"].item() for name in ("loss", "acc"))
    assert f"val loss {loss:.4f}  acc {acc:.4f}" in lines[1]
    assert lines[1].startswith(f"epoch 2: train loss {trainer.callback_metrics['train/loss'].item():.4f}")
