"""Checkpoints: opening them, writing them whole, what a run records in them, and which are kept as the best."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from classifier.data import ClassificationDataModule
from classifier.data.samples import fingerprint
from classifier.data.split import write_split
from classifier.errors import UserError, require_whole
from classifier.files import replacing, whole_file
from classifier.runs import record_start, versions
from classifier.training.module import ImageClassifier, load_plain

RUN_KEY = "run"  # of what `RunRecord` adds: config, data_root, data_fingerprint, metrics, versions


def read_checkpoint(path: Path, key: str = "ckpt_path") -> dict[str, Any]:
    """Open a checkpoint of this project on the CPU; nothing in it is executed.

    Args:
        key: The override that named it, for messages.

    Raises:
        UserError: The file is missing, cut off, no checkpoint, holds code, or was written by something else.
    """
    if not path.is_file():
        raise UserError(f"{key}={path} does not exist: name a .ckpt file, a run directory, or latest")
    checkpoint = load_plain(path, key)
    if not (isinstance(checkpoint, dict) and {RUN_KEY, "hyper_parameters", "state_dict"} <= checkpoint.keys()):
        raise UserError(f"{key}={path} was not written by src/train.py: it holds no model of this project")
    return checkpoint


def open_model(path: Path) -> tuple[ImageClassifier, dict[str, Any]]:
    """The model of a checkpoint, on the CPU and ready to evaluate; and the checkpoint.

    Raises:
        UserError: The file cannot be used, see `read_checkpoint`, or its weights do not fit its config.
    """
    checkpoint = read_checkpoint(path)
    with _report_other_content(path, "ckpt_path"):
        model = ImageClassifier.from_checkpoint(checkpoint)
    return model.eval(), checkpoint


@contextmanager
def _report_other_content(path: Path, key: str) -> Iterator[None]:
    """Turn any error of using what a checkpoint holds into a UserError; `key` is the setting that named it."""
    try:
        yield
    except Exception as error:  # whatever is met in values, and by a network in numbers, that are not our own
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{key}={path} holds another kind of model than this version builds ({reason})") from error


def require_same_model(checkpoint: Mapping[str, Any], model: ImageClassifier, path: Path) -> None:
    """Refuse to resume from a checkpoint whose classes or weights are not those of `model`.

    Raises:
        UserError: With what differs.
    """
    with _report_other_content(path, "resume"):
        classes = tuple(map(str, checkpoint["hyper_parameters"]["classes"]))
        stored, built = ({k: v.shape for k, v in s.items()} for s in (checkpoint["state_dict"], model.state_dict()))
    different = sorted({*classes} ^ {*model.classes}) or [k for k in stored | built if stored.get(k) != built.get(k)]
    if different or classes != model.classes:
        raise UserError(
            f"{path} has other classes, in another order, or another network ({different[:5]}): restore the data and "
            f"the code, or use init_from={path} for a new run"
        )


def init_from(model: pl.LightningModule, path: Path) -> str:
    """Copy weights of equal name and shape from a checkpoint into `model`; return what matched and what did not.

    Raises:
        UserError: The file cannot be used, or none of its weights fits.
    """
    checkpoint = read_checkpoint(path, "init_from")
    with _report_other_content(path, "init_from"):
        # the statistics of `normalize` are this run's own
        source, target = (
            {name: value for name, value in state.items() if name.startswith("network.")}
            for state in (checkpoint["state_dict"], model.state_dict())
        )
        matched = {k: v for k, v in source.items() if k in target and v.shape == target[k].shape}
        model.load_state_dict(matched, strict=False)
    if not matched:
        raise UserError(f"init_from={path} fits none of the network's weights: is it another kind of model?")
    lines = [f"init_from={path}: {len(matched)} of {len(target)} tensors matched"]
    for title, names in (
        ("not in the file, or of another shape", [name for name in target if name not in matched]),
        ("left unused", [name for name in source if name not in target]),
    ):
        lines += [f"  {title}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"] if names else []
    return "\n".join(lines)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, syncs and renames, so that a file under its final name is always whole.

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


class RunRecord(pl.Callback):
    """Records what the run was: config.yaml, starts.jsonl, split.csv and skipped.tsv in its directory, and in each
    checkpoint the config, the data's fingerprint, the metrics and the versions.

    Args:
        config: The resolved run config, plain values.
        datamodule: Set up.
        overrides: What was typed.
    """

    def __init__(
        self, config: Mapping[str, Any], datamodule: ClassificationDataModule, overrides: Sequence[str]
    ) -> None:
        self.config, self.datamodule, self.overrides = dict(config), datamodule, list(overrides)
        self.record = {
            "config": self.config,
            "data_root": str(datamodule.root.resolve()),
            "data_fingerprint": fingerprint(datamodule.samples),
            "versions": versions(),
        }

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Write the files, now that nothing of the input was refused: a directory with config.yaml is a run."""
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        run_dir = Path(self.config["run_dir"])
        (run_dir / "metrics.json").unlink(missing_ok=True)  # written again when the run is done
        write_split(run_dir / "split.csv", self.datamodule.samples)
        if len(self.datamodule.skipped):
            with whole_file(run_dir / "skipped.tsv", "log_dir") as scratch:
                self.datamodule.skipped.rename(columns={"problem": "reason"}).to_csv(scratch, sep="\t", index=False)
        record_start(run_dir, self.overrides)
        with whole_file(run_dir / "config.yaml", "log_dir") as scratch:
            scratch.write_text(yaml.safe_dump({**self.config, "resume": None}, sort_keys=False), encoding="utf-8")

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
        if isinstance(pl_module, ImageClassifier):
            metrics |= pl_module.train_results()  # Lightning knows those of the epoch before
        checkpoint[RUN_KEY] = {**self.record, "metrics": metrics}


class BestCheckpoint(ModelCheckpoint):
    """The checkpoints that are best by `monitor`: best.ckpt and, with `save_top_k` above 1, best_step000120.ckpt, ...

    best.ckpt is then the best of these once more. Once there was one, there is no moment without it. (Lightning's
    ModelCheckpoint forgets its best when the run directory is moved.)

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
        self.first_epoch = from_epoch - 1

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._keep(super().on_validation_end, trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._keep(super().on_train_epoch_end, trainer, pl_module)

    def _keep(self, save_if_better: Callable[..., None], trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        before = self.best_model_path
        if trainer.current_epoch >= self.first_epoch:
            save_if_better(trainer, pl_module)
        if self.save_top_k != 1 and self.best_model_path != before:
            trainer.save_checkpoint(Path(str(self.dirpath), "best.ckpt"))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def here(path: str) -> str:
            # what is no longer among the best is removed: never anything but a checkpoint of this folder
            return str(Path(str(self.dirpath), Path(path).name)) if path.endswith(".ckpt") else ""

        moved = {key: here(state_dict[key]) for key in ("best_model_path", "kth_best_model_path", "last_model_path")}
        models = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **moved, "best_k_models": models, "dirpath": self.dirpath})
