"""Which checkpoints a run keeps as its best. (The last, to resume from, is in `last_checkpoint`.)"""

import os
import pickle
import shutil
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor

from classifier.data import ClassificationDataModule
from classifier.data.split import write_split
from classifier.errors import UserError, require_whole
from classifier.files import replacing, whole_file
from classifier.training.module import ImageClassifier
from classifier.training.provenance import record_start, versions

RUN_KEY = "run"  # of what `saving.RunRecord` adds: config, data_fingerprint, metrics, versions


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
        model = ImageClassifier.from_checkpoint(checkpoint)
    except (TypeError, KeyError, RuntimeError, UserError) as error:
        raise UserError(
            f"ckpt_path={path} holds another kind of model than this version builds ({str(error).splitlines()[0]})"
        ) from error
    return model.eval(), checkpoint


def require_same_model(checkpoint: Mapping[str, Any], model: ImageClassifier, path: Path) -> None:
    """Refuse to resume from a checkpoint whose classes or weights are not those of `model`.

    Raises:
        UserError: With what differs.
    """
    classes = tuple(checkpoint["hyper_parameters"]["classes"])
    if classes != model.classes:
        come = ", ".join(map(repr, sorted({*model.classes} - {*classes}))) or "none"
        gone = ", ".join(map(repr, sorted({*classes} - {*model.classes}))) or "none"
        raise UserError(
            f"the data has other classes than {path} (new: {come}; missing: {gone}): restore the data, or use "
            f"init_from={path} for a new run"
        )
    stored, built = checkpoint["state_dict"], model.state_dict()
    different = [name for name in {**stored, **built} if name not in stored or name not in built]
    different += [name for name in stored if name in built and stored[name].shape != built[name].shape]
    if different:
        raise UserError(
            f"{path} holds another network than this code builds, {different[0]} first: restore the code, or use "
            f"init_from={path} for a new run"
        )


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
