"""Which checkpoints a run keeps as its best. (The last, to resume from, is in `last_checkpoint`.)"""

import os
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from classifier.errors import require_whole
from classifier.files import replacing


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
            save_on_train_epoch_end=monitor.startswith("train/") or None,  # None: where validation ends, if any
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
