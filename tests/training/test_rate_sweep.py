from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.optim import SGD, Optimizer

from classifier.training.module import ImageClassifier
from classifier.training.tuning import HIGHEST, LOWEST, STEPS, RateSweep, suggestion
from tests.training import runs

RATES = np.geomspace(LOWEST, HIGHEST, STEPS).tolist()


def sweep(run_dir: Path, model: ImageClassifier | None = None, **trainer: Any) -> RateSweep:
    found = RateSweep()
    settings = {"max_epochs": -1, "max_steps": STEPS, "limit_val_batches": 0, **trainer}
    runs.trainer(run_dir, [found], **settings).fit(model or runs.make_classifier(), runs.loader())
    return found


def noisy(losses: np.ndarray, noise: float = 0.05) -> list[float]:
    return [float(loss) for loss in losses + noise * np.random.default_rng(0).standard_normal(len(losses))]


def fall(at: float, depth: float = 2.0) -> np.ndarray:
    """A loss that falls by `depth` around the rate `at`, and rises again beyond ten times that."""
    logs = np.log10(RATES) - np.log10(at)
    return np.asarray(2.5 - depth / (1 + np.exp(-6 * logs)) + np.where(logs > 1, 10 * (logs - 1), 0))


@pytest.mark.parametrize("at", [1e-4, 1e-3, 3e-2])
def test_suggestion_is_where_the_loss_falls_fastest(at: float) -> None:
    found = suggestion(RATES, noisy(fall(at)))
    assert found is not None
    assert found.steepest == pytest.approx(at, rel=0.4)
    assert at < found.lowest <= 15 * at


def test_losses_beyond_all_bounds_do_not_move_it() -> None:
    losses = fall(1e-3)
    losses[80:] = 1e30
    found = suggestion(RATES, noisy(losses))
    assert found is not None
    assert found.steepest == pytest.approx(1e-3, rel=0.4)


@pytest.mark.parametrize("losses", [np.full(STEPS, 2.3), 2.3 + np.geomspace(1e-6, 10, STEPS)], ids=["flat", "rising"])
def test_no_suggestion_where_the_loss_does_not_fall(losses: np.ndarray) -> None:
    assert suggestion(RATES, noisy(losses)) is None
    assert suggestion(RATES[:20], fall(1e-5)[:20].tolist()) is None  # it diverged before it could tell


def test_sweep_over_more_steps_than_an_epoch_has(tmp_path: Path) -> None:
    found = sweep(tmp_path, max_steps=20)
    assert found.rates == pytest.approx(RATES[:20])
    assert len(found.losses) == 20


class Groups(ImageClassifier):
    """One layer learns ten times slower."""

    def configure_optimizers(self) -> Optimizer:
        first, *rest = self.network.parameters()
        groups: list[dict[str, Any]] = [{"params": rest}, {"params": [first], "lr": 0.01}]
        return SGD(groups, lr=0.1)


class Seen(pl.Callback):
    def __init__(self) -> None:
        self.rates: list[list[float]] = []

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        self.rates.append([group["lr"] for group in optimizer.param_groups])


def test_groups_keep_their_ratios(tmp_path: Path) -> None:
    seen, found = Seen(), RateSweep()
    model = Groups(**runs.make_classifier().hparams)
    runs.trainer(tmp_path, [found, seen], max_epochs=-1, max_steps=10).fit(model, runs.loader())
    torch.testing.assert_close(seen.rates, [[rate, rate / 10] for rate in RATES[:10]])


def test_losses_of_accumulated_batches_are_averaged(tmp_path: Path) -> None:
    """At rates that change nothing, the mean over the three batches of an epoch."""
    model = {**runs.CNN, "drop_rate": 0.0}
    each = sweep(tmp_path, runs.make_classifier(model=model), max_steps=3)
    together = sweep(tmp_path, runs.make_classifier(model=model), max_steps=1, accumulate_grad_batches=3)
    assert together.losses == pytest.approx([sum(each.losses) / 3], rel=1e-4)


def test_sweep_stops_when_it_diverges(tmp_path: Path) -> None:
    wild = {"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.99}
    model = runs.make_classifier(optimizer=wild, model={**runs.CNN, "batch_norm": False})
    found = sweep(tmp_path, model)
    assert 40 < len(found.losses) == len(found.rates) < STEPS
    assert all(np.isfinite(found.losses))
