"""A checkpoint on unlabelled images -> predictions.csv."""

import logging
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from glob import glob
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.callbacks import RichProgressBar
from torch.utils.data import DataLoader, Dataset, default_collate

from classifier.data.check import warn_of_values
from classifier.data.image import image_problem
from classifier.data.listing import EXTENSIONS, FOREIGN, list_files
from classifier.data.transforms import Preprocessing
from classifier.errors import UserError, require_flag, require_whole
from classifier.evaluation.predictions import Predictions
from classifier.files import require_outside, require_writable, write_csv
from classifier.parallel import worker_count
from classifier.runs import plain
from classifier.training.checkpoints import RUN_KEY, open_model, read_checkpoint
from classifier.training.hardware import report_out_of_memory, speed_up
from classifier.training.module import ImageClassifier
from classifier.training.trainer import make_trainer, with_usable_precision

log = logging.getLogger(__name__)

Item = tuple[int, torch.Tensor | str]
"""Position in the list of files, and the image, uint8 (C, H, W), or the reason why there is none."""


class FileList(Dataset[Item]):
    """Files without labels; an unreadable one is an item too, so that each file gets its row."""

    def __init__(self, paths: Sequence[Path], preprocessing: Preprocessing) -> None:
        self.paths = paths
        self.preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> Item:
        suffix = self.paths[position].suffix.lower()
        if suffix in FOREIGN:  # of some, Pillow would read the thumbnail
            return position, f"{suffix} is not read here: convert it to .jpg or .png"
        try:
            return position, self.preprocessing(self.paths[position])
        except UserError as error:
            return position, " ".join(image_problem(error.__cause__ or error).split())


def collate(items: Sequence[Item]) -> dict[str, Any]:
    """`image` uint8 (N, C, H, W) of the readable files, or None, and their `index`; why the others are `unreadable`."""
    images = {position: found for position, found in items if isinstance(found, torch.Tensor)}
    return {
        # not torch.stack: in shared memory at once, as a lack of that is reported here, and hangs later
        "image": default_collate(list(images.values())) if images else None,
        "index": torch.tensor(list(images)),
        "unreadable": {position: reason for position, reason in items if isinstance(reason, str)},
    }


def find_images(inputs: str) -> list[Path]:
    """The files that `inputs` means, in text order: one file, the images of a folder to the bottom, or a pattern.

    Raises:
        UserError: There is none, or a folder cannot be read.
    """
    folder = Path(inputs)
    if folder.is_dir():
        kept = Counter[str]()
        names = [*list_files(folder, left_out=kept)]
        images = [name for name in names if name.lower().endswith((*EXTENSIONS, *FOREIGN))]
        found = map(folder.joinpath, images)
        kept.update(Path(name).suffix or name for name in {*names}.difference(images))
        if kept:
            others = [f"{name} {count}" for name, count in kept.most_common(10)]
            log.info("%s: left out are %d files and folders (%s)", folder, kept.total(), ", ".join(others))
    else:
        found = map(Path, sorted({inputs, *glob(inputs, recursive=True)}))
    # with links that lead nowhere, and what is no file: its row says so
    paths = [path for path in found if os.path.lexists(path) and not path.is_dir()]
    if not paths:
        raise UserError(f"inputs={inputs} is no image, no folder with images, and no pattern that a file matches")
    return paths


def stored_values(path: Path, checkpoint: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What predict.yaml takes over from a checkpoint: the precision of its training.

    Args:
        checkpoint: What the file holds, if it has been read already.

    Raises:
        UserError: The checkpoint cannot be used.
    """
    checkpoint = read_checkpoint(path) if checkpoint is None else checkpoint
    try:
        precision = str(checkpoint[RUN_KEY]["config"]["trainer"]["precision"])
    except (LookupError, TypeError) as error:
        raise UserError(f"ckpt_path={path} does not say how it was trained ({error!r})") from error
    if not re.fullmatch(r"[\w-]+", precision):
        raise UserError(f"ckpt_path={path} is refused: it holds trainer.precision={precision}")
    return {"run": {"trainer": {"precision": precision}}}


def open_checkpoint(settings: dict[str, Any]) -> tuple[ImageClassifier, dict[str, Any], pl.Trainer, Predictions]:
    """The model that `ckpt_path` names, the checkpoint, what runs the model, and what collects its predictions.

    Raises:
        UserError: Wrong input.
    """
    require_flag("flip", settings["flip"])
    require_whole("top_k", settings["top_k"], 1)
    model, checkpoint = open_model(Path(settings["ckpt_path"]))
    model.flip = settings["flip"]
    predictions = partial(model.task.predictions, top_k=settings["top_k"])
    collector = Predictions(model.task.prediction_columns(settings["top_k"]), predictions)
    callbacks = [RichProgressBar(leave=False), collector, *speed_up(model.network, **settings["speed"])]
    off = dict.fromkeys(("logger", "enable_model_summary", "enable_checkpointing"), False)
    trainer = make_trainer(with_usable_precision(settings["trainer"]), Path(), callbacks=callbacks, **off)
    return model, checkpoint, trainer, collector


def predict(config: DictConfig) -> Path:
    """Write one row for each image that `inputs` means; return the table's path.

    Args:
        config: As configs/predict.yaml composes it with the `stored_values` of the checkpoint.

    Raises:
        UserError: Wrong input. An unreadable image is none, as its row says so; but that all are is.
    """
    settings = plain(config)
    size, devices = settings["batch_size"], settings["trainer"]["devices"]
    if devices != 1 and not (isinstance(devices, list) and len(devices) == 1):
        raise UserError(f"predict.py runs on one device: use trainer.devices=1 (not {devices})")
    require_whole("batch_size", size, 1)
    workers = worker_count(settings["num_workers"], key="num_workers")
    output, inputs = Path(settings["output"]), str(settings["inputs"])
    if output.suffix.lower() != ".csv":
        raise UserError(f"output={output}: predictions are a CSV file, use output={output.with_suffix('.csv')}")
    require_outside(output, Path(inputs))
    paths = find_images(inputs)
    model, _, trainer, collector = open_checkpoint(settings)
    files = FileList(paths, model.preprocessing)
    loader = DataLoader(files, batch_size=size, num_workers=min(workers, len(paths) // size), collate_fn=collate)
    require_writable(output)
    warn_of_values(len(paths), paths.__getitem__, model.preprocessing.value_range)
    with report_out_of_memory(f"batch_size={size}", f"use batch_size={max(1, size // 2)}", "num_workers"):
        trainer.predict(model, loader, return_predictions=False)
    # objects, as Arrow's strings hold no file name that is not UTF-8
    table = pd.DataFrame({"path": pd.Series([str(path) for path in paths], dtype=object), "status": "ok"})
    unreadable = pd.Series(collector.unreadable, dtype=object)
    table.loc[unreadable.index, "status"] = unreadable
    failed = len(unreadable) == len(paths)
    if failed and output.exists():
        output = output.with_name(f"failed_{output.name}")  # as predictions are worth more than that
    write_csv(output, table.join(collector.table()), float_format="%.6f")
    log.info("%s: images %d, unreadable %d", output, len(paths), len(unreadable))
    if failed:
        raise UserError(f"inputs={inputs}: no image can be read, the first for this: {unreadable[0]} (see {output})")
    return output
