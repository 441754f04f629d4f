"""The bar of a run, at a cost that small networks do not feel."""

import time
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter

from classifier.evaluation.figures import confusion_figure, image_grid
from classifier.training.module import Batch, ImageClassifier


def _tensorboards(trainer: pl.Trainer) -> Iterator[SummaryWriter]:
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
            yield logger.experiment


class FirstBatch(pl.Callback):
    """Shows the first training batch with its labels in TensorBoard, as the network gets it.

    Args:
        count: How many images at most.
    """

    def __init__(self, count: int = 32) -> None:
        self.count = count

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        if trainer.global_step > 0 or batch_idx > 0:
            return
        assert isinstance(pl_module, ImageClassifier)
        titles = [pl_module.classes[label] for label in batch["label"][: self.count].tolist()]
        for board in _tensorboards(trainer):
            board.add_figure("images/first_batch", image_grid(batch["image"][: self.count].cpu(), titles))


class ConfusionMatrix(pl.Callback):
    """Shows the confusion matrix of each validation in TensorBoard."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, ImageClassifier)
        if trainer.sanity_checking or pl_module.confusion is None:
            return
        for board in _tensorboards(trainer):
            figure = confusion_figure(pl_module.confusion.cpu(), pl_module.classes)
            board.add_figure("images/confusion_matrix", figure, global_step=trainer.global_step)


class Throughput(pl.Callback):
    """Logs of each epoch's training batches (not of its validation) `train/images_per_second`, of all processes, and
    `train/data_wait`, the share of the time that this process waited for the next batch to come to the device.
    """

    def __init__(self) -> None:
        self.images = 0
        self.seconds = 0.0
        self.waited = 0.0
        self.last = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.images, self.seconds, self.waited, self.last = 0, 0.0, 0.0, time.monotonic()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        if self.last:  # not so where an epoch is resumed, which has no start
            self.waited += time.monotonic() - self.last

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        now = time.monotonic()
        if self.last:
            self.images += len(batch["label"])
            self.seconds += now - self.last
        self.last = now

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.last = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.seconds > 0:
            # not `pl_module.log`: what is logged there is kept in checkpoints, and should not depend on the clock
            rate = {
                "train/images_per_second": trainer.world_size * self.images / self.seconds,
                "train/data_wait": self.waited / self.seconds,
            }
            for logger in trainer.loggers:
                logger.log_metrics({**rate, "epoch": trainer.current_epoch}, step=trainer.global_step)


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
