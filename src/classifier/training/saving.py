"""Writing checkpoints: whole or not at all, and with all that eval, predict and resume need.

When they are written is in `policy` and `last_checkpoint`, reading them in `checkpoint`.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.plugins.io import TorchCheckpointIO

from classifier.data import ClassificationDataModule
from classifier.data.split_file import write_split
from classifier.errors import UserError
from classifier.files import replacing, whole_file
from classifier.training.checkpoint import RUN_KEY
from classifier.training.module import ImageClassifier
from classifier.training.provenance import record_start, versions


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
            _keep_names(target.parent)
        except (OSError, RuntimeError) as error:  # torch's zip writer reports a full disk as a RuntimeError
            kept = "the previous one is unharmed" if target.exists() else "there was none before"
            raise UserError(
                f"cannot write the checkpoint {target} ({error}); {kept}. "
                f"Make room, then continue with resume={target.parent.parent}"
            ) from error


def _keep_names(folder: Path) -> None:
    """Have the disk keep a rename through a power cut, too."""
    with suppress(OSError):  # some systems cannot: the file itself is safe
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class RunRecord(pl.Callback):
    """Keeps what the run was: in its directory config.yaml, starts.jsonl, split.csv and skipped.tsv, and in each
    checkpoint the config, the data's fingerprint, the metrics and the versions.

    Args:
        config: The resolved run config, plain values.
        datamodule: Set up.
        overrides: What was typed.
    """

    def __init__(
        self, config: Mapping[str, Any], datamodule: ClassificationDataModule, overrides: Sequence[str] = ()
    ) -> None:
        self.config = dict(config)
        self.overrides = list(overrides)
        self.datamodule = datamodule
        fingerprint = datamodule.samples.fingerprint()
        self.record = {"config": self.config, "data_fingerprint": fingerprint, "versions": versions()}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the files, now that nothing of the input was refused: a directory with config.yaml is a run."""
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        run_dir = Path(self.config["run_dir"])
        (run_dir / "metrics.json").unlink(missing_ok=True)  # there again when it is done
        write_split(run_dir / "split.csv", self.datamodule.samples, self.datamodule.split)
        if self.datamodule.skipped:
            lines = [f"{problem.path}\t{problem.reason}\n" for problem in self.datamodule.skipped]
            with whole_file(run_dir / "skipped.tsv", "log_dir") as scratch:
                scratch.write_text("path\treason\n" + "".join(lines), encoding="utf-8", errors="surrogateescape")
        record_start(run_dir, self.overrides)
        with whole_file(run_dir / "config.yaml", "log_dir") as scratch:
            scratch.write_text(yaml.safe_dump({**self.config, "resume": None}, sort_keys=False), encoding="utf-8")

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
        if isinstance(pl_module, ImageClassifier):
            metrics |= pl_module.train_results()  # what is logged of training is of the epoch before
        checkpoint[RUN_KEY] = {**self.record, "metrics": metrics}
