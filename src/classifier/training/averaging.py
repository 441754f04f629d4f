"""Averaged weights: they are validated, tested, kept as best and exported, while training continues with its own."""

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from torch.optim.swa_utils import get_ema_multi_avg_fn

from classifier.errors import UserError, require_number

TRAINING_WEIGHTS = "training_weights"  # in a checkpoint whose `state_dict` is the average


class WeightAverage(pl.Callback):
    """Exponential moving average of the weights and BatchNorm statistics, over the optimiser's steps.

    Step n (from 0 on) keeps `min(decay, (1 + n) / (10 + n))` of the average: in a short run, or early in a long one, it
    covers the last tenth of the steps, and not the weights drawn at random. Frozen weights stay the same to the bit.
    What the task has chosen of a validation, as thresholds, is that of the average, and is not averaged.

    (Lightning's EMAWeightAveraging tests the training weights when `trainer.test(ckpt_path=...)` follows the fit,
    leaves the average of a GPU's weights in the CPU's memory, lets frozen weights drift by rounding, and takes ten
    times as long.)

    Args:
        decay: Above 0, at most 1; 0.999 averages over the last thousand steps or so.

    Raises:
        UserError: The decay is out of its range; the strategy divides weights among processes; or they are of half
            precision.

    Source: B. Polyak, A. Juditsky, Acceleration of stochastic approximation by averaging, 1992; the warm-up is that of
    TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, decay: float) -> None:
        require_number("ema", decay, above=0, most=1)
        self.decay = decay
        self.steps = 0  # optimiser steps that the average has followed
        self.other: dict[str, torch.Tensor] = {}  # the average; while `swapped`, the training weights
        self.swapped = False  # the module has the average

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        whole = isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy))
        if stage == "fit" and (not whole or trainer.precision in ("bf16-true", "16-true")):
            raise UserError(
                f"ema={self.decay} needs float32 weights, all of them in each process: use ema=null, or "
                "trainer.precision=bf16-mixed trainer.strategy=ddp"
            )
        if stage == "fit":
            self.other, self.swapped = {}, False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        weights = _weights(pl_module)
        start = self.other or weights  # of a resumed run, still on the CPU
        self.other = {name: start[name].to(value.device, copy=True) for name, value in weights.items()}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.steps = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step == self.steps:  # gradients are being accumulated
            return
        pairs = [(self.other[name], value) for name, value in _weights(pl_module).items()]
        averages, values = zip(*(pair for pair in pairs if pair[1].is_floating_point()), strict=True)
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        get_ema_multi_avg_fn(decay)(averages, values, self.steps)  # type: ignore[no-untyped-call]
        for average, count in (pair for pair in pairs if not pair[1].is_floating_point()):
            average.copy_(count)
        self.steps = trainer.global_step

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._swap(pl_module)

    on_validation_epoch_end = on_validation_epoch_start

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._swap(pl_module)

    @torch.no_grad()
    def _swap(self, pl_module: pl.LightningModule) -> None:
        weights = _weights(pl_module)
        incoming = {name: value.clone() for name, value in self.other.items()}
        # in place, as what a validation creates (inference tensors) cannot be trained; in two loops, as shared weights
        # have several names
        for name, value in weights.items():
            self.other[name].copy_(value)
        for name, value in weights.items():
            value.copy_(incoming[name])
        self.swapped = not self.swapped

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Save the average as `state_dict`, at whatever moment of the run."""
        current = checkpoint["state_dict"]
        average, training = (current, self.other) if self.swapped else (self.other, current)
        checkpoint |= {"state_dict": {**current, **average}, TRAINING_WEIGHTS: {**current, **training}}

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Resume a run: the module has its average by now. A test after the fit is one of the average."""
        if trainer.state.fn == "fit":
            self.other = checkpoint["state_dict"]
            pl_module.load_state_dict(checkpoint[TRAINING_WEIGHTS])


def _weights(pl_module: pl.LightningModule) -> dict[str, torch.Tensor]:
    return {name: value for name, value in pl_module.state_dict().items() if not name.startswith("task.")}
