"""What a run shows while it trains: pictures in TensorBoard, its speed, and the bar."""

import time
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
from matplotlib.figure import Figure
from pytorch_lightning.callbacks import Timer
from pytorch_lightning.loggers import TensorBoardLogger

from classifier.evaluation.figures import image_grid
from classifier.training.lightning_private import ProgressBarFromOne
from classifier.training.module import Batch


def _show(trainer: pl.Trainer, tag: str, figure: Figure) -> None:
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_figure(tag, figure, global_step=trainer.global_step)


class FirstBatch(pl.Callback):
    """Shows the first training batch with its labels in TensorBoard, as the network gets it.

    Args:
        count: How many images at most.
    """

    def __init__(self, count: int = 32) -> None:
        self.count = count

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        if trainer.global_step == 0 and batch_idx == 0 and trainer.is_global_zero:
            titles = pl_module.task.names(batch["label"][: self.count])
            _show(trainer, "images/first_batch", image_grid(batch["image"][: self.count].cpu(), titles))


class ConfusionMatrix(pl.Callback):
    """Shows the confusion matrix of each validation in TensorBoard; of several labels an image, AP by class."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if pl_module.details and trainer.is_global_zero and not trainer.sanity_checking:
            name, figure = pl_module.task.figure(pl_module.details)
            _show(trainer, f"images/{name}", figure)


class Throughput(pl.Callback):
    """Logs of each epoch's training batches (not of its validation) `train/images_per_second`, of all processes, and
    `train/data_wait`, the share of the time that this process waited for the next batch to come to the device.
    """

    def on_train_start(self, *args: Any, **kwargs: Any) -> None:
        self.images, self.seconds, self.waited, self.last = 0, 0.0, 0.0, time.monotonic()

    on_train_epoch_start = on_train_start  # an epoch that is resumed has none

    def on_train_batch_start(self, *_: Any) -> None:
        self.waited += time.monotonic() - self.last

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        now = time.monotonic()
        self.images += len(batch["label"])
        self.seconds, self.last = self.seconds + now - self.last, now

    def on_validation_end(self, *_: Any) -> None:
        self.last = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if self.seconds > 0:
            # not `pl_module.log`: what is logged there is kept in checkpoints, and should not depend on the clock
            images = trainer.world_size * self.images / self.seconds
            shown = {"train/images_per_second": images, "train/data_wait": self.waited / self.seconds}
            for logger in trainer.loggers:  # with epochs and steps from 0, as Lightning logs
                logger.log_metrics({**shown, "epoch": trainer.current_epoch}, step=trainer.global_step - 1)


class RunProgressBar(ProgressBarFromOne):
    """Lightning's RichProgressBar with the loss of the last logged step, updated no more often than it is drawn.

    It fits into 80 columns and shows the time left of the whole run. (Lightning's own shows that of the epoch, and
    fetches every metric from the device at each step.)
    """

    due = 0.0
    first: tuple[float, int] | None = None  # when the first step was seen, and its number

    def configure_columns(self, trainer: pl.Trainer) -> list[Any]:
        description, bar, batches, of_epoch, speed = super().configure_columns(trainer)
        bar.bar_width = 10
        return [description, bar, batches, speed, *([] if trainer.state.fn == "fit" else [of_epoch])]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        if now >= self.due or batch_idx + 1 == self.total_train_batches:
            self.due = now + 1 / self.refresh_rate
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        loss = {"loss": metrics["train/loss_step"]} if "train/loss_step" in metrics else {}
        # at the pace of the steps so far, with all that came between them
        now, step = time.monotonic(), trainer.global_step
        self.first = began, first = self.first or (now, step)
        limits = [item.time_remaining() for item in trainer.callbacks if isinstance(item, Timer)]  # type: ignore[attr-defined]
        if step > first:
            limits.append((now - began) / (step - first) * (trainer.estimated_stepping_batches - step))
        left = min((limit for limit in limits if limit is not None), default=None)
        return {"left": "-:--:--" if left is None else str(timedelta(seconds=round(left))), **loss}
