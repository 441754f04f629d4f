"""The checkpoint to resume from: when it is written, and how the run ends where a signal says so."""

import logging
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from classifier.errors import UserError, require_number, require_whole
from classifier.training.checkpoints import RunCheckpoint
from classifier.training.loggers import EpochCSVLogger
from classifier.training.stopping import StopSignals, exit_code

log = logging.getLogger(__name__)


class LastCheckpoint(RunCheckpoint):
    """The whole state of the run, to resume from: at each epoch's end, and in between where that is asked for.

    In between is behind a step of the optimiser, or behind the validation that follows it, which Lightning's resume
    would skip. There too the run stops when a signal tells it to, and saves before; a validation is cut off then, and
    made anew by the resume.

    Args:
        every_n_train_steps: Steps of the optimiser; None for none.
        every_n_minutes: Minutes, parts of one too; None for none.
        filename, save_top_k: `step{step}` and -1 keep every one.
    """

    def __init__(
        self,
        *,
        dirpath: str | Path,
        every_n_train_steps: int | None = None,
        every_n_minutes: float | None = None,
        filename: str = "last",
        save_top_k: int = 1,
    ) -> None:
        if every_n_train_steps is not None:
            require_whole("callbacks.last.every_n_train_steps", every_n_train_steps, 1, otherwise=", or null")
        if every_n_minutes is not None:
            require_number("callbacks.last.every_n_minutes", every_n_minutes, above=0)
        super().__init__(dirpath=dirpath, filename=filename, save_top_k=save_top_k, enable_version_counter=False)
        self.every_n_steps = every_n_train_steps
        self.every_n_minutes = every_n_minutes
        self.signals = StopSignals()
        self._saved_at = 0.0
        self._stopped_by = 0
        self._between_steps = False  # and so, what an exception leaves behind can be resumed
        self._cuts_validation = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self.signals.attach(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved_at = time.monotonic()
        self.signals.connect(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._leave(trainer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._leave(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._leave(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loop = trainer.fit_loop
        assert loop._data_fetcher is not None
        validates = loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
        self._between_steps = not (loop._should_accumulate() or validates or self._at_epoch_end(trainer))
        if self._between_steps:
            steps = self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0
            self._save_if(trainer, steps or self._time_is_up())

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._between_steps = False
        if not trainer.sanity_checking:
            # one that was cut off has left a batch begun
            trainer.fit_loop.epoch_loop.val_loop.batch_progress.total.reset_on_restart()
            self._cut_validation(trainer, self.signals.agreed(False)[0])

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.world_size == 1 and not trainer.sanity_checking:  # several have not always as many batches
            self._cut_validation(trainer, self.signals.received)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        within = not (trainer.sanity_checking or trainer.fit_loop._should_accumulate() or self._at_epoch_end(trainer))
        if within:
            self._save_if(trainer, self.every_n_steps is not None or self._time_is_up())

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._between_steps = False
        for logger in trainer.loggers:
            if isinstance(logger, EpochCSVLogger):  # Lightning logs behind this, and a kill could come in between
                logger.log_epoch(trainer)
        self._save_if(trainer, True)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Save where an error came between two steps, as one of reading the data does."""
        if not isinstance(exception, Exception) or not self._is_whole(trainer):
            return
        try:
            self._save(trainer)
        except UserError as error:  # beside the exception itself
            log.warning("%s", error)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._cuts_validation:  # what Lightning takes for the sign to make it anew: its first batch is begun
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            total = progress["total"]
            total["ready"] = total["started"] = total["completed"] + 1
            total["processed"] = total["completed"]
            progress["current"] = dict.fromkeys(progress["current"], 0)

    def _cut_validation(self, trainer: pl.Trainer, signum: int) -> None:
        if signum and not trainer.fit_loop._should_accumulate():
            self._stopped_by, self._cuts_validation = signum, True
            self._save(trainer)
            self._leave(trainer)

    def _save_if(self, trainer: pl.Trainer, due: bool) -> None:
        self._stopped_by, due = self.signals.agreed(due)
        if due or self._stopped_by:
            self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        self._saved_at = time.monotonic()
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    def _leave(self, trainer: pl.Trainer) -> None:
        """End the run, now that Lightning has logged what belongs to the checkpoint."""
        if self._stopped_by:
            # Lightning's first process kills all that it has started when one of them fails, and itself too
            raise SystemExit(exit_code(self._stopped_by) if trainer.local_rank == 0 else 0)

    def _time_is_up(self) -> bool:
        return self.every_n_minutes is not None and time.monotonic() - self._saved_at >= 60 * self.every_n_minutes

    def _is_whole(self, trainer: pl.Trainer) -> bool:
        """Whether the state is that behind a step: nothing of the next one has begun, and no batch of it is taken."""
        batches = trainer.fit_loop.epoch_loop.batch_progress.current
        position = {} if trainer.datamodule is None else trainer.datamodule.state_dict().get("train_loader", {})  # type: ignore[attr-defined]
        taken = position.get("batches", batches.completed)
        return self._between_steps and trainer.world_size == 1 and batches.ready == batches.completed == taken

    def _at_epoch_end(self, trainer: pl.Trainer) -> bool:
        return trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
