"""Writing checkpoints: whole or not at all, and with all that eval, predict and resume need.

Reading them is in `checkpoint`.
"""

import os
import platform
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy
import pytorch_lightning as pl
import timm
import torch
import torchvision
import yaml
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

import classifier
from classifier.data import ClassificationDataModule
from classifier.data.split_file import write_split
from classifier.errors import UserError
from classifier.files import replacing
from classifier.training.checkpoint import RUN_KEY


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames, so that a file under its final name is always whole.

    (Lightning writes into the system's temporary folder and moves: a copy, where that is another disk.)
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        target = Path(path)
        try:
            with replacing(target) as scratch, scratch.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:  # torch's zip writer reports a full disk as a RuntimeError
            kept = "the previous one is unharmed" if target.exists() else "there was none before"
            raise UserError(
                f"cannot write the checkpoint {target} ({error}); {kept}. "
                f"Make room, then continue with resume={target.parent.parent}"
            ) from error


class RunCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, whose memory of the best survives that the run directory was moved."""

    @cached_property
    def state_key(self) -> str:
        """As Lightning's, which builds it anew for each of the six hooks of a step."""
        return super().state_key

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


class LastCheckpoint(RunCheckpoint):
    """The whole state of the run at each epoch's end; and, in between, every `every_n_train_steps` and behind each
    validation, where that is set.

    (Lightning's own does the one or the other. And what it saves behind a batch that a validation follows skips that
    validation when it is resumed.)
    """

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loop = trainer.fit_loop
        assert loop._data_fetcher is not None
        if not loop.epoch_loop._should_check_val_fx(loop._data_fetcher) and not self._at_epoch_end(trainer):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._every_n_train_steps and not self._at_epoch_end(trainer):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._save(trainer)

    def _at_epoch_end(self, trainer: pl.Trainer) -> bool:
        return trainer.fit_loop.epoch_loop.batch_progress.is_last_batch

    def _save(self, trainer: pl.Trainer) -> None:
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))


class RunRecord(pl.Callback):
    """Keeps what the run was: in its directory config.yaml, split.csv and skipped.tsv, and in each checkpoint the
    config, the data's fingerprint, the metrics and the versions.

    Args:
        config: The resolved run config, plain values.
        datamodule: Set up.
    """

    def __init__(self, config: Mapping[str, Any], datamodule: ClassificationDataModule) -> None:
        self.config = dict(config)
        self.datamodule = datamodule
        fingerprint = datamodule.samples.fingerprint()
        self.record = {"config": self.config, "data_fingerprint": fingerprint, "versions": versions()}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the files, now that nothing of the input was refused: a directory with config.yaml is a run."""
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        run_dir = Path(self.config["run_dir"])
        write_split(run_dir / "split.csv", self.datamodule.samples, self.datamodule.split)
        if self.datamodule.skipped:
            lines = [f"{problem.path}\t{problem.reason}\n" for problem in self.datamodule.skipped]
            text = "path\treason\n" + "".join(lines)
            (run_dir / "skipped.tsv").write_text(text, encoding="utf-8", errors="surrogateescape")
        config = {**self.config, "resume": None}
        (run_dir / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
        checkpoint[RUN_KEY] = {**self.record, "metrics": metrics}


def versions() -> dict[str, str]:
    """Library -> version."""
    modules = (classifier, torch, torchvision, pl, timm, numpy)
    return {"python": platform.python_version()} | {module.__name__: str(module.__version__) for module in modules}
