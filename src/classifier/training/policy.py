"""Which checkpoints a run keeps, and when they are written: the best ones, and the last to resume from."""

import logging
import os
import shutil
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from classifier.errors import UserError, require_number, require_whole
from classifier.files import replacing
from classifier.training.loggers import EpochCSVLogger
from classifier.training.stopping import StopSignals, exit_code

log = logging.getLogger(__name__)


class RunCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, whose memory of the best survives another rhythm, and that the run was moved."""

    @cached_property
    def state_key(self) -> str:  # Lightning asks for it at each of the six hooks of a step
        return self._generate_state_key(filename=self.filename, monitor=self.monitor, mode=self.mode)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        folder = Path(str(self.dirpath))

        def moved(path: str) -> str:
            return str(folder / Path(path).name) if path else path

        here = {
            **state_dict,
            "dirpath": self.dirpath,
            "best_model_path": moved(state_dict["best_model_path"]),
            "kth_best_model_path": moved(state_dict["kth_best_model_path"]),
            "last_model_path": moved(state_dict["last_model_path"]),
            "best_k_models": {moved(path): score for path, score in state_dict["best_k_models"].items()},
        }
        super().load_state_dict(here)


class BestCheckpoint(RunCheckpoint):
    """The checkpoints that are best by `monitor`: best.ckpt and, with `save_top_k` above 1, best_step000120.ckpt, ...

    best.ckpt is then another name of the best of these. There is no moment without it, once there was one.

    Args:
        monitor: Name of a metric.
        mode: `max` or `min`.
        save_top_k: How many; -1 for one of each epoch.
        from_epoch: The first epoch, counted from 1, at whose end one is kept.
    """

    def __init__(
        self, *, dirpath: str | Path, monitor: str, mode: str, save_top_k: int = 1, from_epoch: int = 1
    ) -> None:
        if save_top_k != -1:
            require_whole("callbacks.best.save_top_k", save_top_k, 1, otherwise=", or -1 for all")
        require_whole("callbacks.best.from_epoch", from_epoch, 1)
        super().__init__(
            dirpath=dirpath,
            filename="best" if save_top_k == 1 else "best_step{step:06d}",
            auto_insert_metric_name=False,
            monitor=monitor,
            mode=mode,
            save_top_k=save_top_k,
            enable_version_counter=False,
        )
        self.from_epoch = from_epoch

    def _save_topk_checkpoint(self, trainer: pl.Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        if trainer.current_epoch + 1 >= self.from_epoch:
            super()._save_topk_checkpoint(trainer, monitor_candidates)

    def _update_best_and_save(
        self, current: Tensor, trainer: pl.Trainer, monitor_candidates: dict[str, Tensor]
    ) -> None:
        super()._update_best_and_save(current, trainer, monitor_candidates)
        if self.save_top_k != 1 and trainer.is_global_zero:
            with replacing(Path(str(self.dirpath), "best.ckpt")) as scratch:
                try:
                    os.link(self.best_model_path, scratch)
                except OSError:  # a file system without links
                    shutil.copyfile(self.best_model_path, scratch)


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
            require_number("callbacks.last.every_n_minutes", every_n_minutes)
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
