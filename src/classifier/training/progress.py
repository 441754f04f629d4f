"""The bar of a run, at a cost that small networks do not feel."""

import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar


class RunProgressBar(RichProgressBar):
    """Lightning's RichProgressBar, told of a step no more often than it is drawn.

    (Lightning's own fetches every metric from the device at each step. And it counts epochs from 0.)

    Args:
        refresh_rate: Times a second.
        leave: Keep the bar of each epoch on the screen.
        console_kwargs: Arguments of rich's Console.
    """

    def __init__(
        self, refresh_rate: int = 5, leave: bool = False, console_kwargs: dict[str, Any] | None = None
    ) -> None:
        super().__init__(refresh_rate=refresh_rate, leave=leave, console_kwargs=console_kwargs)
        self.due = 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        if now >= self.due or batch_idx + 1 == self.total_train_batches:
            self.due = now + 1 / self.refresh_rate
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """The loss of the last logged step, under a short name: what is known of an epoch has a line of its own."""
        metrics = super().get_metrics(trainer, pl_module)
        return {"loss": metrics["train/loss_step"]} if "train/loss_step" in metrics else {}

    def _get_train_description(self, current_epoch: int) -> str:
        total = "" if self.trainer.max_epochs in (None, -1) else f"/{self.trainer.max_epochs}"
        # as wide as the bar of the validation that takes its place
        return f"Epoch {current_epoch + 1}{total}".ljust(len(self.validation_description))
