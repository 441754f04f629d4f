"""A checkpoint on unlabelled images -> predictions.csv."""

import glob
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.callbacks import RichProgressBar
from torch.utils.data import DataLoader, Dataset

from classifier.data.image import image_problem
from classifier.data.image_folder import EXTENSIONS, image_files
from classifier.data.transforms import Preprocessing
from classifier.errors import UserError, require_flag
from classifier.evaluation.predictions import label_columns, top_labels, write_table
from classifier.files import require_writable
from classifier.parallel import worker_count
from classifier.runs import plain
from classifier.training.checkpoints import RUN_KEY, open_model, read_checkpoint
from classifier.training.memory import report_out_of_memory
from classifier.training.speed import speed_up
from classifier.training.trainer import make_trainer, with_usable_precision

log = logging.getLogger(__name__)

Item = tuple[int, torch.Tensor | None, str]
"""Position in the list of files, image uint8 (C, H, W) or None, and `ok` or the reason why there is none."""


class FileList(Dataset[Item]):
    """Files without labels; an unreadable one is an item too, so that each file gets its row."""

    def __init__(self, paths: Sequence[Path], preprocessing: Preprocessing) -> None:
        self.paths = paths
        self.preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> Item:
        try:
            return position, self.preprocessing(self.paths[position]), "ok"
        except UserError as error:
            cause = error.__cause__ or error
            return position, None, " ".join(image_problem(cause).split())


def collate(items: Sequence[Item]) -> dict[str, Any]:
    """`image` uint8 (readable files, C, H, W) or None where no file is, `positions` of these; `status` of all."""
    readable = [(position, image) for position, image, _ in items if image is not None]
    return {
        "image": torch.stack([image for _, image in readable]) if readable else None,
        "positions": [position for position, _ in readable],
        "status": {position: status for position, _, status in items},
    }


class Rows(pl.Callback):
    """Collects the cells behind each file's path."""

    def __init__(self, classes: tuple[str, ...], top_k: int) -> None:
        self.classes = classes
        self.top_k = min(top_k, len(classes))
        self.cells: dict[int, list[str]] = {}

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: torch.Tensor | None,
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        for position, status in batch["status"].items():
            self.cells[position] = [status]
        if outputs is not None:
            for position, probabilities in zip(batch["positions"], outputs.cpu(), strict=True):
                self.cells[position] += top_labels(probabilities, self.classes, self.top_k)


def find_images(inputs: str) -> list[Path]:
    """The files that `inputs` means, in text order: one file, a folder to the bottom, or a pattern.

    Raises:
        UserError: There is none.
    """
    path = Path(inputs)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = list(image_files(path))
        if not found:
            raise UserError(f"inputs={inputs} holds no image ({', '.join(EXTENSIONS)}): name another folder or file")
        return found
    found = sorted(Path(match) for match in glob.glob(inputs, recursive=True) if Path(match).is_file())
    if not found:
        raise UserError(f"inputs={inputs} is no file, no folder, and no pattern that a file matches")
    return found


def stored_precision(checkpoint: Path) -> dict[str, Any]:
    """The precision of the training, for the devices of this machine.

    Raises:
        UserError: The checkpoint cannot be used.
    """
    precision = str(read_checkpoint(checkpoint)[RUN_KEY]["config"]["trainer"]["precision"])
    if not re.fullmatch(r"[\w-]+", precision):
        raise UserError(f"ckpt_path={checkpoint} is refused: it holds trainer.precision={precision}")
    return {"run": {"trainer": {"precision": precision}}}


def predict(config: DictConfig) -> Path:
    """Write one row for each image that `inputs` means; return the table's path.

    Args:
        config: As configs/predict.yaml composes it.

    Raises:
        UserError: Wrong input. An unreadable image is none, as its row says so; but that all are is.
    """
    settings = plain(config)
    devices = settings["trainer"]["devices"]
    if devices != 1 and not (isinstance(devices, list) and len(devices) == 1):
        raise UserError(f"predict.py runs on one device: use trainer.devices=1 (not {settings['trainer']['devices']})")
    paths = find_images(settings["inputs"])
    require_flag("flip", settings["flip"])
    model, _ = open_model(Path(settings["ckpt_path"]))
    model.flip = settings["flip"]
    rows = Rows(model.classes, settings["top_k"])
    trainer = make_trainer(
        with_usable_precision(settings["trainer"]),
        Path(),
        callbacks=[RichProgressBar(leave=False), rows, *speed_up(model.network, **settings["speed"])],
        logger=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    loader = DataLoader(
        FileList(paths, model.preprocessing),
        batch_size=settings["batch_size"],
        num_workers=min(worker_count(settings["num_workers"]), len(paths) // settings["batch_size"]),
        collate_fn=collate,
    )
    output = Path(settings["output"])
    require_writable(output)
    size = settings["batch_size"]
    with report_out_of_memory(f"batch_size={size}", f"use batch_size={max(1, size // 2)}"):
        trainer.predict(model, loader, return_predictions=False)
    columns = ["path", "status", *label_columns(rows.top_k)]
    cells = [rows.cells[position] for position in range(len(paths))]
    padding = [""] * (len(columns) - 2)  # an unreadable image has no labels
    table = [
        [str(path), *(found if len(found) > 1 else [*found, *padding])]
        for path, found in zip(paths, cells, strict=True)
    ]
    write_table(output, columns, table)
    unreadable = sum(found[0] != "ok" for found in cells)
    log.info("%s: %d images, %d of them unreadable", output, len(paths), unreadable)
    if unreadable == len(paths):
        raise UserError(f"inputs={settings['inputs']}: none of {unreadable} images can be read ({cells[0][0]})")
    return output
