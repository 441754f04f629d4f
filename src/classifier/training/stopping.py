"""Where a run stops, and the checkpoint that it resumes from."""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint, EarlyStopping
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason
from pytorch_lightning.trainer.states import TrainerFn

from classifier.errors import UserError, require_number, require_whole
from classifier.training.lightning_private import repeat_validation, validation_follows
from classifier.training.loggers import EpochCSVLogger

log = logging.getLogger(__name__)


def exit_code(signum: int) -> int:
    """That of a program which a signal ended, as shells count: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + signum


def _end(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(exit_code(signum))


@contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """SIGTERM ends the program as an exception does, so that unfinished files are removed."""
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class StopSignals:
    """Notes SIGTERM and Ctrl-C, for a run that then stops where it can be resumed; a second Ctrl-C stops at once.

    (Lightning's own handler stops between accumulated gradients, saves nothing, and has processes wait for each other
    within the handler.)
    """

    def __init__(self) -> None:
        self.received, self._since = 0, 0.0
        self._group: Any = None

    def watch(self, trainer: pl.Trainer) -> None:
        """Replace the handlers that Lightning has set for this fit. Its teardown restores those before its own."""
        for signum in (signal.SIGTERM, signal.SIGINT):
            if threading.current_thread() is threading.main_thread():  # no other thread may
                signal.signal(signum, self._note)
        if trainer.world_size > 1:
            # on the CPU: a GPU then does not wait for the agreement
            self._group = torch.distributed.new_group(backend="gloo")

    def _note(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        # within a second, it is the same one: torchrun passes on what a terminal has sent to all
        if signum == signal.SIGINT and self.received and now - self._since > 1:
            raise KeyboardInterrupt
        if not self.received:
            self.received, self._since = signum, now
            # not the log, which the signal may have interrupted while it writes
            os.write(2, b"stopping after this step, with a checkpoint\n")

    def agreed(self, due: bool) -> tuple[int, bool]:
        """The signal that any process got, 0 for none; and whether any wants a checkpoint. All must ask together."""
        if self._group is None:
            return self.received, due
        wishes = torch.tensor([self.received, int(due)])
        torch.distributed.all_reduce(wishes, torch.distributed.ReduceOp.MAX, group=self._group)
        return int(wishes[0]), bool(wishes[1])


class LastCheckpoint(Checkpoint):
    """Keeps the whole state of the run, to resume from: at each epoch's end, and more often where asked for.

    Mid-epoch checkpoints are written after an optimiser step, or after the validation that follows it (Lightning would
    skip that validation on resume). A signal stops the run at the same points, and where it trains in one process also
    within that validation, which the resumed run then repeats. (Of several, some validate fewer batches.)

    Args:
        every_n_train_steps: Optimiser steps; None for none.
        every_n_minutes: Minutes, fractions too; None for none.
        filename: `step={step}` keeps every one.

    Raises:
        UserError: A number is out of its range.
    """

    def __init__(
        self,
        *,
        dirpath: str | Path,
        every_n_train_steps: int | None = None,
        every_n_minutes: float | None = None,
        filename: str = "last",
    ) -> None:
        if every_n_train_steps is not None:
            require_whole("callbacks.last.every_n_train_steps", every_n_train_steps, 1, otherwise=", or null")
        if every_n_minutes is not None:
            require_number("callbacks.last.every_n_minutes", every_n_minutes, above=0)
        self.every_n_steps, self.every_n_minutes = every_n_train_steps, every_n_minutes
        self.path = str(Path(dirpath, f"{filename}.ckpt"))
        self.signals = StopSignals()
        self._stopped_by, self._saved_at, self._step = 0, 0.0, 0
        self._stepped = True  # whether no batch has passed since the last step
        self._between = False  # whether a resume could begin there

    def on_test_start(self, *_: Any) -> None:
        signal.signal(signal.SIGTERM, _end)  # in a test there is nothing to save

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._saved_at, self._step, self._stepped = time.monotonic(), trainer.global_step, True
        self.signals.watch(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._stepped, self._step = trainer.global_step != self._step, trainer.global_step
        self._between = self._stepped and not (trainer.is_last_batch or validation_follows(trainer))
        if self._between:
            self._save_if(trainer, self.every_n_steps is not None and self._step % self.every_n_steps == 0)

    def on_validation_start(self, trainer: pl.Trainer, *_: Any) -> None:
        trainer.fit_loop.epoch_loop.val_loop.batch_progress.total.reset_on_restart()  # after `repeat_validation`

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        # after the last batch, the end is near; and a resumed run would not validate once more where it has to end
        ending = trainer.should_stop or trainer.global_step == trainer.max_steps
        last = trainer.fit_loop.epoch_loop.val_loop.batch_progress.is_last_batch
        if self.signals.received and self._stepped and not (ending or last) and trainer.world_size == 1:
            repeat_validation(trainer)
            self._save_if(trainer, True)
            self._leave(trainer)

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if self._stepped and not (trainer.sanity_checking or trainer.is_last_batch):
            self._save_if(trainer, self.every_n_steps is not None)

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, EpochCSVLogger):  # Lightning logs after this, and a kill could come in between
                logger.log_epoch(trainer)
        self._save_if(trainer, True)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Save where an error came between two steps, as one of reading the data does."""
        batches = trainer.fit_loop.epoch_loop.batch_progress.current
        position = {} if trainer.datamodule is None else trainer.datamodule.state_dict().get("train_loader", {})  # type: ignore[attr-defined]
        nothing_has_begun = batches.ready == batches.completed == position.get("batches", batches.completed)
        if isinstance(exception, Exception) and self._between and nothing_has_begun and trainer.world_size == 1:
            with suppress(UserError):  # a full disk, say; the exception itself is what to report
                trainer.save_checkpoint(self.path.format(step=trainer.global_step))

    def _leave(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """End a run that received a signal, now that Lightning has logged what belongs to the checkpoint."""
        if self._stopped_by:
            # when a process fails, Lightning's first process kills all the others, and itself
            raise SystemExit(exit_code(self._stopped_by) if trainer.local_rank == 0 else 0)

    on_train_epoch_start = on_train_batch_start = on_train_end = _leave

    def on_fit_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._stopped_by = self.signals.agreed(False)[0]  # since the end of the last epoch
        self._leave(trainer)

    def _save_if(self, trainer: pl.Trainer, due: bool) -> None:
        now = time.monotonic()
        late = self.every_n_minutes is not None and now - self._saved_at >= 60 * self.every_n_minutes
        self._stopped_by, due = self.signals.agreed(due or late)
        if (due or self._stopped_by) and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._saved_at = now
            trainer.save_checkpoint(self.path.format(step=trainer.global_step))


class RunEarlyStopping(EarlyStopping):
    """Lightning's EarlyStopping, which after a resume keeps its decision, and has the patience of the config.

    (Lightning's trains an epoch more, with the patience of the checkpoint.)
    """

    def __init__(self, monitor: str, **settings: Any) -> None:
        # not strict: a run that ends before its first validation has nothing to stop for
        at_train_end = monitor.startswith("train/") or None
        super().__init__(monitor, strict=False, check_on_train_epoch_end=at_train_end, **settings)

    def on_train_end(self, *_: Any) -> None:
        if self.stopping_reason != EarlyStoppingReason.NOT_STOPPED:
            log.info("early stopping (train on with callbacks.early_stopping=null): %s", self.stopping_reason_message)

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["callbacks"].get(self.state_key, {})
        reason = EarlyStoppingReason(state.get("stopping_reason", EarlyStoppingReason.NOT_STOPPED))
        patient = reason == EarlyStoppingReason.PATIENCE_EXHAUSTED and state["wait_count"] < self.patience
        if trainer.state.fn == TrainerFn.FITTING and reason != EarlyStoppingReason.NOT_STOPPED and not patient:
            trainer.should_stop = True
            log.info("early stopping has ended this run: callbacks.early_stopping=null trains it further")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({**state_dict, "patience": self.patience})
