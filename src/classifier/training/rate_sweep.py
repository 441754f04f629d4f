"""A learning rate from the loss of a short training whose rate grows from step to step."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch

from classifier.data.dataset import Batch

LOWEST, HIGHEST, STEPS = 1e-6, 10.0, 100  # 14 steps for each power of ten
STILL = 15  # steps at the beginning, whose rates change nothing yet
WIDTH = 3.0  # steps: standard deviation of the bell that the losses are smoothed with
DIVERGED = 4.0  # times the loss of the beginning


class RateSweep(pl.Callback):
    """Multiplies the rate of all parameter groups from step to step; stops when the loss has left all bounds.

    (Lightning's `lr_find` gives all groups one rate and divides its mean loss by a wrong number. And it looks for the
    steepest slope along the rate itself, not along its logarithm: there, noise at 1e-6 is a hundred times steeper
    than learning at 1e-3.)

    Attributes:
        rates: That of `optimizer.lr` in each optimiser step. Groups keep their ratios to it.
        losses: Mean of the step, over accumulated batches and processes.

    Source: L. Smith, Cyclical Learning Rates for Training Neural Networks, arXiv:1506.01186.
    """

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.losses: list[float] = []
        self._ratios: list[float] = []
        self._of_step: list[torch.Tensor] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        [optimizer] = trainer.optimizers
        base = optimizer.defaults["lr"]
        self._ratios = [group["lr"] / base if base else 1.0 for group in optimizer.param_groups]

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        rate = _rate(trainer.global_step)
        for group, ratio in zip(trainer.optimizers[0].param_groups, self._ratios, strict=True):
            group["lr"] = rate * ratio

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._of_step.append(outputs["loss"])  # its share of the step's mean
        step = len(self.losses)
        if trainer.global_step == step:
            return  # it has more batches to accumulate
        loss = trainer.strategy.reduce(torch.stack(self._of_step).sum(), reduce_op="mean").item()
        self._of_step.clear()
        if not math.isfinite(loss):
            trainer.should_stop = True
            return
        self.rates.append(_rate(step))
        self.losses.append(loss)
        if np.mean(self.losses[-5:]) > DIVERGED * np.mean(self.losses[:5]):
            trainer.should_stop = True


def _rate(step: int) -> float:
    return float(LOWEST * (HIGHEST / LOWEST) ** (step / (STEPS - 1)))


class Suggestion(NamedTuple):
    """Where the loss falls fastest, and where it is lowest."""

    steepest: float
    lowest: float


def suggestion(rates: Sequence[float], losses: Sequence[float]) -> Suggestion | None:
    """What a sweep says; None where its loss does not fall by more than it varies between batches."""
    if len(losses) < 2 * STILL:
        return None
    curve = smoothed(losses)
    bottom = int(curve.argmin())
    still = np.asarray(losses[:STILL])
    if still.mean() - curve[bottom] <= 2 * still.std():
        return None
    slope = np.gradient(curve, np.log(rates))
    return Suggestion(rates[int(slope[: bottom + 1].argmin())], rates[bottom])


def smoothed(losses: Sequence[float]) -> np.ndarray:
    """Each loss averaged with its neighbours on both sides, so that the curve is not shifted."""
    # one that has left all bounds would outweigh its neighbours
    bounded = np.minimum(losses, 2 * np.mean(losses[:STILL]))
    steps = np.arange(len(losses))
    weights = np.exp(-0.5 * ((steps[:, None] - steps) / WIDTH) ** 2)
    mean: np.ndarray = weights @ bounded / weights.sum(1)
    return mean
