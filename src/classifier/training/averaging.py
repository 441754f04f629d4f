"""Averaged weights: those validated, tested, kept as best and exported, while training goes on with its own."""

import logging
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from torch.optim.swa_utils import get_ema_multi_avg_fn

from classifier.errors import UserError, require_number

log = logging.getLogger(__name__)

TRAINING_WEIGHTS = "training_weights"  # of a checkpoint whose `state_dict` is the average


class WeightAverage(pl.Callback):
    """Exponential moving average of the weights and BatchNorm statistics, over the optimiser's steps.

    Step n (from 0 on) keeps `min(decay, (1 + n) / (10 + n))` of the average, so that in a short run, or early in a
    long one, it reaches over the last tenth of the steps and not back to the weights drawn at random. Equal values,
    as of a frozen backbone, stay as they are to the bit.

    (Lightning's EMAWeightAveraging tests the training weights when `trainer.test(ckpt_path=...)` follows the fit,
    leaves the average of a GPU's weights in the CPU's memory, lets frozen weights drift by rounding, and takes ten
    times as long.)

    Args:
        decay: 0 to 1, both excluded; 0.999 averages over the last thousand steps or so.

    Raises:
        UserError: The decay is out of its range; weights are shared out over processes, or of half precision.

    Source: B. Polyak, A. Juditsky, Acceleration of stochastic approximation by averaging, 1992; the warm-up is that of
    TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, decay: float) -> None:
        require_number("ema", decay)
        if not 0 < decay < 1:
            raise UserError(f"ema={decay} must lie between 0 and 1: ema=0.999 is common, ema=null does without")
        self.decay = decay
        self.steps = 0  # of the optimiser, that the average has followed
        # the average; but the training weights while the module has the average
        self.waiting: dict[str, torch.Tensor] = {}
        self.swapped = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if not isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
            raise UserError(
                f"ema={self.decay} needs all weights in each process, which {type(trainer.strategy).__name__} shares "
                "out: use ema=null, or trainer.strategy=ddp"
            )
        self.waiting, self.swapped = {}, False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        weights = pl_module.state_dict()
        if any(value.is_floating_point() and torch.finfo(value.dtype).bits < 32 for value in weights.values()):
            raise UserError(
                f"ema={self.decay} is lost in the rounding of trainer.precision={trainer.precision}: use ema=null, or "
                "trainer.precision=bf16-mixed"
            )
        # one that was loaded is on the CPU still
        start = self.waiting or weights
        self.waiting = {name: start[name].to(value.device, copy=True) for name, value in weights.items()}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.steps = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.steps:  # gradients are being accumulated
            return
        averages: list[torch.Tensor] = []
        values: list[torch.Tensor] = []
        for name, value in pl_module.state_dict().items():
            if value.is_floating_point():
                averages.append(self.waiting[name])
                values.append(value)
            else:
                self.waiting[name].copy_(value)
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        get_ema_multi_avg_fn(decay)(averages, values, self.steps)  # type: ignore[no-untyped-call]
        self.steps = trainer.global_step

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._swap(pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._swap(pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._swap(pl_module)

    @torch.no_grad()
    def _swap(self, pl_module: pl.LightningModule) -> None:
        weights = pl_module.state_dict()
        incoming = {name: value.clone() for name, value in self.waiting.items()}
        # in place, as what is made during a validation cannot be trained on; one after the other, as weights that
        # layers share have several names
        for name, value in weights.items():
            self.waiting[name].copy_(value)
        for name, value in weights.items():
            value.copy_(incoming[name])
        self.swapped = not self.swapped

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the average as `state_dict`, at whatever moment of the run."""
        current = checkpoint["state_dict"]
        average, training = (current, self.waiting) if self.swapped else (self.waiting, current)
        checkpoint |= {"state_dict": average, TRAINING_WEIGHTS: training}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go on with a run; its average is in the module by now. A test after the fit is one of the average."""
        if trainer.state.fn != "fit":
            return
        if TRAINING_WEIGHTS in checkpoint:
            self.waiting = checkpoint["state_dict"]
            pl_module.load_state_dict(checkpoint[TRAINING_WEIGHTS])
        else:
            log.info("ema=%s: the run had no average until now, which begins with its weights", self.decay)


def require_average(checkpoint: dict[str, Any], ema: float | None) -> None:
    """Refuse to go on without the average with a run that has one.

    Raises:
        UserError: So it is.
    """
    if ema is None and TRAINING_WEIGHTS in checkpoint:
        raise UserError(
            "ema=null: this run averages its weights, and its checkpoints would lose them: use the ema of before, or "
            "start a new run from it with init_from=..."
        )
