"""Every private name of Lightning that this project uses, as no public one does the same; each has a test."""

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.strategies import ModelParallelStrategy


def validation_follows(trainer: pl.Trainer) -> bool:
    """Whether Lightning validates right after the current training batch; to be asked in `on_train_batch_end`.

    That depends on val_check_interval, limits, early stopping and more, and Lightning tells it nowhere.
    """
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    return trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def repeat_validation(trainer: pl.Trainer) -> None:
    """Have a checkpoint that is saved within a validation, in `on_validation_batch_end`, resume at its first batch.

    No name here is private, but what Lightning takes the counts for is. `total` is to be settled when the validation
    starts again: by then it would say so of a checkpoint that is saved later, too.
    """
    progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
    for counts in (progress.total, progress.current):
        begun = counts.completed - progress.current.completed + 1
        counts.load_state_dict({"ready": begun, "started": begun, "processed": begun - 1, "completed": begun - 1})


class ProgressBarFromOne(RichProgressBar):
    """Lightning's RichProgressBar, with epochs counted from 1."""

    def _get_train_description(self, current_epoch: int) -> str:
        return f"Epoch {current_epoch + 1}/{self.trainer.max_epochs}".ljust(len(self.validation_description))


class DataParallelStrategy(ModelParallelStrategy):
    """Lightning's ModelParallelStrategy, with all processes in one data-parallel group.

    Their number is an argument of `__init__`, but not known before the Trainer has looked at the machine.
    """

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()
