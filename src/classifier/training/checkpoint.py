"""Checkpoints: written whole or not at all, opened without running code, good for eval, predict and resume alone."""

import os
import pickle
import platform
import warnings
from collections.abc import Mapping
from contextlib import suppress
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
from classifier.data.split import write_split
from classifier.errors import UserError
from classifier.training.module import ImageClassifier

RUN_KEY = "run"  # of what `RunRecord` adds


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames, so that a file under its final name is always whole.

    (Lightning writes into the system's temporary folder and moves: a copy, where that is another disk.)
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        target = Path(path)
        scratch = target.with_name(f".{target.name}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with scratch.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(target)
        except (OSError, RuntimeError) as error:  # torch's zip writer reports a full disk as a RuntimeError
            with suppress(OSError):
                scratch.unlink()
            kept = "the previous one is unharmed" if target.exists() else "there was none before"
            raise UserError(
                f"cannot write the checkpoint {target} ({error}); {kept}. "
                f"Make room, then continue with resume={target.parent.parent}"
            ) from error


class RunCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, whose memory of the best survives that the run directory was moved."""

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
    """The whole state of the run at each epoch's end, and every `every_n_train_steps` in between.

    (Lightning's own does the one or the other. And what it saves behind an epoch's last batch skips that epoch's
    validation when it is resumed.)
    """

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
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


def read_checkpoint(path: Path, key: str = "ckpt_path") -> dict[str, Any]:
    """Open a checkpoint of this project on the CPU; nothing in it is executed.

    Args:
        key: The override that named it, for messages.

    Raises:
        UserError: The file is missing, cut off, no checkpoint, holds code, or was written by something else.
    """
    if not path.is_file():
        raise UserError(f"{key}={path} does not exist: name a .ckpt file, a run directory, or latest")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about the pickle protocol of files that are refused anyway
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        with path.open("rb") as file:
            is_zip = file.read(4) == b"PK\x03\x04"
        if is_zip:
            raise UserError(
                f"{key}={path} is refused: it holds more than tensors and plain values, and opening it could run code"
            ) from error
        raise UserError(f"{key}={path} is no checkpoint: name one that src/train.py wrote") from error
    except PermissionError as error:
        raise UserError(f"{key}={path} cannot be read: {error}") from error
    except Exception as error:  # torch raises many kinds on files that are cut off or hold something else
        raise UserError(f"{key}={path} is cut off, or no checkpoint: name one that src/train.py wrote") from error
    if not isinstance(checkpoint, dict) or RUN_KEY not in checkpoint or "hyper_parameters" not in checkpoint:
        raise UserError(f"{key}={path} was not written by src/train.py: it holds no model of this project")
    return checkpoint


def open_model(path: Path) -> tuple[ImageClassifier, dict[str, Any]]:
    """The model of a checkpoint, on the CPU and ready to evaluate; and the checkpoint.

    Raises:
        UserError: The file cannot be used, see `read_checkpoint`, or its weights do not fit its config.
    """
    checkpoint = read_checkpoint(path)
    try:
        model = ImageClassifier(**checkpoint["hyper_parameters"])
        model.load_state_dict(checkpoint["state_dict"])
    except (TypeError, KeyError, RuntimeError, UserError) as error:
        raise UserError(
            f"ckpt_path={path} holds another kind of model than this version builds ({str(error).splitlines()[0]})"
        ) from error
    return model.eval(), checkpoint


def init_from(model: pl.LightningModule, path: Path) -> str:
    """Copy weights of equal name and shape from a checkpoint into `model`; return an account of the rest.

    Raises:
        UserError: The file cannot be used, or none of its weights fits.
    """
    # the statistics of `normalize` are this run's own
    stored: dict[str, torch.Tensor] = read_checkpoint(path, "init_from")["state_dict"]
    source = {name: value for name, value in stored.items() if name.startswith("network.")}
    target = {name: value for name, value in model.state_dict().items() if name.startswith("network.")}
    reshaped = [name for name in source if name in target and source[name].shape != target[name].shape]
    missing = [name for name in target if name not in source]
    unused = [name for name in source if name not in target]
    matched = {name: value for name, value in source.items() if name in target and name not in reshaped}
    if not matched:
        raise UserError(f"init_from={path} fits none of the network's weights: is it another kind of model?")
    model.load_state_dict(matched, strict=False)
    lines = [f"init_from={path}: {len(matched)} of {len(target)} tensors matched"]
    for title, names in (
        ("made new, as the shapes differ", reshaped),
        ("made new, as the file lacks them", missing),
        ("left unused", unused),
    ):
        if names:
            shown = ", ".join(_with_shapes(name, source, target) for name in names[:5])
            lines.append(f"  {title}: {shown}{f' and {len(names) - 5} more' if len(names) > 5 else ''}")
    return "\n".join(lines)


def _with_shapes(name: str, source: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor]) -> str:
    if name in source and name in target:
        return f"{name} {tuple(source[name].shape)} -> {tuple(target[name].shape)}"
    return name
