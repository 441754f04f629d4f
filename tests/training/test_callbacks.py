import io
import time
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader, Dataset

from classifier.training.callbacks import ConfusionMatrix, FirstBatch, Throughput
from classifier.training.loggers import EpochCSVLogger, RunTensorBoardLogger
from tests.training import runs
from tests.training.test_loggers import rows


class Stopwatch(pl.Callback):
    """Makes validation slow, and measures each epoch and the validation in it, in seconds."""

    def __init__(self) -> None:
        self.started = 0.0
        self.epoch = 0.0
        self.validation = 0.0

    def on_train_epoch_start(self, *arguments: Any) -> None:
        self.started, self.validation = time.monotonic(), 0.0

    def on_train_batch_start(self, *arguments: Any) -> None:
        time.sleep(0.05)

    def on_validation_start(self, *arguments: Any) -> None:
        start = time.monotonic()
        time.sleep(0.5)
        self.validation += time.monotonic() - start

    def on_train_epoch_end(self, *arguments: Any) -> None:
        self.epoch = time.monotonic() - self.started


@pytest.mark.parametrize("interval", [1.0, 0.5], ids=["at the end", "within the epoch"])
def test_throughput_leaves_validation_out(interval: float, tmp_path: Path) -> None:
    watch = Stopwatch()
    logger = EpochCSVLogger(str(tmp_path))
    trainer = runs.trainer(tmp_path, [watch, Throughput()], max_epochs=2, logger=logger, val_check_interval=interval)
    trainer.fit(runs.make_classifier(), runs.loader(count=16), runs.loader(count=4))
    for row in rows(tmp_path)[-1:]:
        seconds = 16 / float(row["train/images_per_second"])
        assert 4 * 0.05 <= seconds <= watch.epoch - watch.validation + 0.01
    assert watch.validation >= 0.5 / interval


class SlowImages(Dataset[Any]):
    """Takes a twentieth of a second for each image."""

    def __init__(self) -> None:
        self.items: Any = runs.loader(count=8).dataset

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        time.sleep(0.05)
        return self.items[index]


@pytest.mark.parametrize(("slow", "low", "high"), [(True, 0.7, 1.0), (False, 0.0, 0.5)])
def test_throughput_tells_waiting_from_computing(slow: bool, low: float, high: float, tmp_path: Path) -> None:
    loader = DataLoader(SlowImages(), batch_size=4) if slow else runs.loader(count=8)
    callbacks = [Throughput()] if slow else [Throughput(), Stopwatch()]  # whose steps are slow
    trainer = runs.trainer(tmp_path, callbacks, max_epochs=2, logger=EpochCSVLogger(str(tmp_path)))
    trainer.fit(runs.make_classifier(), loader)
    assert low <= float(rows(tmp_path)[-1]["train/data_wait"]) <= high


def pictures(run_dir: Path, tag: str) -> list[tuple[int, Image.Image]]:
    events = EventAccumulator(str(run_dir), size_guidance={"images": 0}).Reload()
    shown = events.Images(tag) if tag in events.Tags()["images"] else []
    return [(event.step, Image.open(io.BytesIO(event.encoded_image_string))) for event in shown]


def fit(run_dir: Path, callback: pl.Callback, **settings: Any) -> None:
    logger = RunTensorBoardLogger(str(run_dir))
    trainer = runs.trainer(run_dir, [callback], max_epochs=2, logger=logger, **settings)
    trainer.fit(runs.make_classifier(), runs.loader(), runs.loader())


@pytest.mark.parametrize(("count", "height"), [(2, 180), (32, 180)])
def test_first_batch_is_shown_once(count: int, height: int, tmp_path: Path) -> None:
    fit(tmp_path, FirstBatch(count))
    [(step, picture)] = pictures(tmp_path, "images/first_batch")
    assert step == 0
    assert picture.height == height
    assert len(picture.convert("L").getcolors() or []) > 20  # more than an empty sheet


def test_confusion_matrix_of_each_validation_is_shown(tmp_path: Path) -> None:
    fit(tmp_path, ConfusionMatrix(), num_sanity_val_steps=1)
    assert [step for step, _ in pictures(tmp_path, "images/confusion_matrix")] == [3, 6]


def test_pictures_need_no_tensorboard(tmp_path: Path) -> None:
    trainer = runs.trainer(tmp_path, [FirstBatch(), ConfusionMatrix(), Throughput()], max_epochs=1)
    trainer.fit(runs.make_classifier(), runs.loader(), runs.loader())
    assert trainer.global_step == 3
