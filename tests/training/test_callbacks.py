import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from classifier.training import callbacks
from classifier.training.callbacks import ConfusionMatrix, FirstBatch, RunProgressBar, Throughput
from classifier.training.loggers import EpochCSVLogger, RunTensorBoardLogger
from tests.training import runs
from tests.training.test_loggers import rows


class Clock(pl.Callback):
    """A clock of its own: a training step takes 1 second, reading a batch 3, a validation 100."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1.0
        monkeypatch.setattr(callbacks, "time", SimpleNamespace(monotonic=lambda: self.now))

    def on_train_batch_start(self, *arguments: Any) -> None:
        self.now += 3

    def on_before_zero_grad(self, *arguments: Any) -> None:
        self.now += 1

    def on_validation_start(self, *arguments: Any) -> None:
        self.now += 100


@pytest.mark.parametrize("interval", [1.0, 0.5], ids=["at the end", "within the epoch"])
def test_throughput_leaves_validation_out(interval: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = [Clock(monkeypatch), Throughput()]
    logger = EpochCSVLogger(str(tmp_path))
    trainer = runs.trainer(tmp_path, watched, max_epochs=2, logger=logger, val_check_interval=interval)
    trainer.fit(runs.make_classifier(), runs.loader(count=16), runs.loader(count=4))
    assert [row["train/images_per_second"] for row in rows(tmp_path)] == ["1", "1"]
    assert [row["train/data_wait"] for row in rows(tmp_path)] == ["0.75", "0.75"]


def test_pictures_in_tensorboard(tmp_path: Path) -> None:
    """The first batch once, and the confusion matrix of each validation but for the sanity check."""
    shows, logger = [FirstBatch(count=2), ConfusionMatrix()], RunTensorBoardLogger(str(tmp_path))
    trainer = runs.trainer(tmp_path, shows, max_epochs=2, logger=logger, num_sanity_val_steps=1)
    trainer.fit(runs.make_classifier(), runs.loader(), runs.loader())
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload()
    [shown] = events.Images("images/first_batch")
    picture = Image.open(io.BytesIO(shown.encoded_image_string))
    assert (shown.step, picture.height) == (0, 180)
    assert len(picture.convert("L").getcolors() or []) > 20  # more than an empty sheet
    assert [event.step for event in events.Images("images/confusion_matrix")] == [3, 6]


@pytest.mark.parametrize("goes_on", [True, False])
def test_bar_is_updated_as_often_as_it_is_drawn(goes_on: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, screen = Clock(monkeypatch), io.StringIO()
    bar = RunProgressBar(refresh_rate=5, console_kwargs={"force_terminal": True, "file": screen, "width": 80})
    get_metrics, fetched = bar.get_metrics, []

    def counted(*given: Any) -> dict[str, Any]:
        fetched.append(get_metrics(*given))
        return fetched[-1]

    monkeypatch.setattr(bar, "get_metrics", counted)
    trainer = runs.trainer(tmp_path, [clock, bar] if goes_on else [bar], max_epochs=2, enable_progress_bar=True)
    trainer.fit(runs.make_classifier(), runs.loader(count=80), runs.loader(count=4))
    assert len(fetched) >= 40 if goes_on else len(fetched) < 20
    assert bar.train_progress_bar.completed == 20  # the last step of an epoch is always shown
    shown = screen.getvalue()
    assert ["Epoch 1/2" in shown, "Epoch 2/2" in shown, "Epoch 0" in shown] == [True, True, False]
    line = next(line for line in shown.splitlines() if "20/20" in line)
    assert [part for part in ("Epoch 1/2", "it/s", "left: ", "loss: ") if part not in line] == []


@pytest.mark.parametrize("limit", [None, "02:00:00:00"])
def test_bar_shows_the_time_left_of_the_run(limit: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the pace so far, validations included: 4 seconds a step, 100 between two epochs of 4 steps. Or of max_time."""
    bar, left = RunProgressBar(), []
    note = pl.callbacks.LambdaCallback(
        on_train_batch_end=lambda *given: left.append(bar.get_metrics(*given[:2])["left"])
    )
    watched = [Clock(monkeypatch), bar, note]
    trainer = runs.trainer(tmp_path, watched, max_epochs=2, enable_progress_bar=True, max_time=limit)
    trainer.fit(runs.make_classifier(), runs.loader(count=16), runs.loader(count=4))
    assert left[1:] == ["0:00:24", "0:00:20", "0:00:16", "0:01:27", "0:00:48", "0:00:21", "0:00:00"]
    assert (left[0] == "-:--:--") == (limit is None), "before a second step, max_time alone is known"
