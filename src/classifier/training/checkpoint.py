"""Reading checkpoints: opened without running code, good for eval, predict and resume alone.

Writing them is in `saving`.
"""

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from classifier.errors import UserError
from classifier.training.module import ImageClassifier

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
        model = ImageClassifier(**checkpoint["hyper_parameters"])
        model.load_state_dict(checkpoint["state_dict"])
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
