"""The private names of Lightning that this project uses, each with the public way that is missing.

tests/training/test_lightning_private.py fails when the meaning of one of them changes.
"""

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar


def validation_follows(trainer: pl.Trainer) -> bool:
    """Whether Lightning validates right after the current training batch; to be asked in `on_train_batch_end`.

    (Missing: a public answer. It depends on val_check_interval, check_val_every_n_epoch, limits and early stopping.)
    """
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    return trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


class ProgressBarFromOne(RichProgressBar):
    """Lightning's RichProgressBar, which counts epochs from 1.

    (Missing: a public method for the text of the training bar, as `validation_description` is.)
    """

    def _get_train_description(self, current_epoch: int) -> str:
        total = "" if self.trainer.max_epochs in (None, -1) else f"/{self.trainer.max_epochs}"
        # as wide as the bar of the validation that takes its place
        return f"Epoch {current_epoch + 1}{total}".ljust(len(self.validation_description))
