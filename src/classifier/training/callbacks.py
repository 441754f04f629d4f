"""What a run shows of itself, beside what Lightning's own callbacks do."""

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


class EpochProgressBar(RichProgressBar):
    """Lightning's RichProgressBar, which counts epochs from 1, as every message does."""

    def _get_train_description(self, current_epoch: int) -> str:
        last = self.trainer.max_epochs
        shown = f"Epoch {current_epoch + 1}" if last in (None, -1) else f"Epoch {current_epoch + 1}/{last}"
        return f"{shown:{len(self.validation_description)}}"  # as wide as the other bar's


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
    """Logs `train/images_per_second`, of all processes, over each epoch's training batches (not its validation)."""

    def __init__(self) -> None:
        self.images = 0
        self.seconds = 0.0
        self.last = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.images, self.seconds, self.last = 0, 0.0, time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        now = time.monotonic()
        self.images += len(batch["label"])
        self.seconds += now - self.last
        self.last = now

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.last = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.seconds > 0:
            # not `pl_module.log`: what is logged there is kept in checkpoints, and should not depend on the clock
            rate = {"train/images_per_second": trainer.world_size * self.images / self.seconds}
            for logger in trainer.loggers:
                logger.log_metrics({**rate, "epoch": trainer.current_epoch}, step=trainer.global_step)
