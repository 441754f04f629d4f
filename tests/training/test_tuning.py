from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LambdaCallback
from torch.optim import SGD, Optimizer

from classifier.models import SimpleCNN
from classifier.training.module import ImageClassifier
from classifier.training.tuning import RATES, RateSweep, largest_batch, suggestion
from tests.training import runs

STEPS = len(RATES)


def sweep(run_dir: Path, model: ImageClassifier, *callbacks: pl.Callback, **trainer: Any) -> list[float]:
    found = RateSweep()
    runs.trainer(run_dir, [found, *callbacks], **{"max_epochs": -1, **trainer}).fit(model, runs.loader())
    return found.losses


def noisy(losses: np.ndarray) -> list[float]:
    return list(losses + 0.05 * np.random.default_rng(0).standard_normal(len(losses)))


def fall(at: float) -> np.ndarray:
    """A loss that falls around the rate `at`, and rises again beyond ten times that."""
    logs = np.log10(RATES) - np.log10(at)
    return np.asarray(2.5 - 2 / (1 + np.exp(-6 * logs)) + np.where(logs > 1, 10 * (logs - 1), 0))


@pytest.mark.parametrize(("at", "diverged"), [(1e-4, False), (1e-3, True), (3e-2, True)])
def test_suggestion_is_where_the_loss_falls_fastest(at: float, diverged: bool) -> None:
    losses = fall(at)
    losses[95:] = 1e30 if diverged else losses[95:]
    found = suggestion(noisy(losses))
    assert found is not None
    assert found[0] == pytest.approx(at, rel=0.4)
    assert at < found[1] <= 15 * at


@pytest.mark.parametrize("losses", [np.full(STEPS, 2.3), 2.3 + np.geomspace(1e-6, 10, STEPS), fall(1e-5)[:20]])
def test_no_suggestion_where_the_loss_does_not_fall(losses: np.ndarray) -> None:
    assert suggestion(noisy(losses)) is None


class Groups(ImageClassifier):
    """One layer learns ten times slower."""

    def configure_optimizers(self) -> Optimizer:
        first, *rest = self.network.parameters()
        groups: list[dict[str, Any]] = [{"params": rest}, {"params": [first], "lr": 0.01}]
        return SGD(groups, lr=0.1)


def test_groups_keep_their_ratios_over_several_epochs(tmp_path: Path) -> None:
    rates: list[list[float]] = []
    seen = LambdaCallback(
        on_before_optimizer_step=lambda trainer, _, optimizer: rates.append([g["lr"] for g in optimizer.param_groups])
    )
    assert len(sweep(tmp_path, Groups(**runs.make_classifier().hparams), seen, max_steps=10)) == 10
    torch.testing.assert_close(rates, [[rate, rate / 10] for rate in RATES[:10]])


def test_losses_of_accumulated_batches_are_averaged(tmp_path: Path) -> None:
    """At rates that change nothing, the mean over the three batches of an epoch."""
    model = {**runs.CNN, "drop_rate": 0.0}
    each = sweep(tmp_path, runs.make_classifier(model=model), max_steps=3)
    together = sweep(tmp_path, runs.make_classifier(model=model), max_steps=1, accumulate_grad_batches=3)
    assert together == pytest.approx([sum(each) / 3], rel=1e-4)


def test_sweep_stops_when_it_diverges(tmp_path: Path) -> None:
    wild = {"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.99}
    model = runs.make_classifier(optimizer=wild, model={**runs.CNN, "batch_norm": False})
    losses = sweep(tmp_path, model, max_steps=STEPS)
    assert 40 < len(losses) < STEPS
    assert np.isfinite(losses).all()


class Limited(SimpleCNN):
    """Has memory for so many images."""

    room = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) > self.room:
            raise torch.OutOfMemoryError
        return super().forward(images)


class Data(pl.LightningDataModule):
    """Twenty images, in batches as large as is tried."""

    batch_size = 4
    augmentation = SimpleNamespace(largest=0, hold=lambda epoch: None)

    def rows(self, part: str) -> range:
        return range(20)

    def train_dataloader(self) -> Any:
        return runs.loader(20, batch_size=self.batch_size)


@pytest.mark.parametrize(("room", "largest"), [(1, 0), (9, 8), (100, 16)])
def test_largest_batch(room: int, largest: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of powers of two up to 20 images."""
    monkeypatch.setattr(Limited, "room", room)
    trainer = {**runs.TRAINER, "accumulate_grad_batches": 3, "strategy": "auto", "gradient_clip_val": None}
    settings: dict[str, Any] = {"trainer": trainer, "ema": 0.9}
    model = runs.make_classifier(model={**runs.CNN, "_target_": "tests.training.test_tuning.Limited"})
    assert largest_batch(settings, model, Data(), tmp_path) == largest  # type: ignore[arg-type]
