"""What the training images are like: mean and standard deviation of their pixels, classes, sizes."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch.utils.data import DataLoader, Dataset

from classifier.data import ClassificationDataModule
from classifier.data.image import upright_size
from classifier.data.samples import Samples
from classifier.data.transforms import Preprocessing
from classifier.errors import UserError
from classifier.files import require_outside, whole_file
from classifier.parallel import tracked, worker_count
from classifier.tools.data import open_data

log = logging.getLogger(__name__)

VALUES = np.arange(256) / 255  # what uint8 pixels stand for
SHOWN = 40  # classes; of more, those with most and fewest images


def statistics(config: DictConfig) -> dict[str, Any]:
    """Print the statistics, write them to `json` where that is set, and return what was written.

    Args:
        config: As configs/data_statistics.yaml composes it.

    Raises:
        UserError: Wrong input; no training images.
    """
    path = None if config.json is None else Path(config.json)
    datamodule = open_data(config)
    if path is not None:
        require_outside(path, datamodule.source.root, key="json")
    counts, sizes = measure(datamodule)
    mean, std = mean_and_std(counts)
    found = {
        "images": len(sizes),
        "image_size": list(datamodule.preprocessing.image_size),
        "mean": mean.tolist(),
        "std": std.tolist(),
        "sizes": _summary(sizes),
        "classes": _classes(datamodule),
    }
    _print(found, list(datamodule.split))
    if path is not None:
        with whole_file(path, key="json") as scratch:
            scratch.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8", errors="backslashreplace")
        log.info("%s", path)
    return found


def measure(datamodule: ClassificationDataModule) -> tuple[np.ndarray, np.ndarray]:
    """Read each training image once, as evaluation does.

    Returns:
        int64 (C, 256), how often each pixel value occurs in each channel; int64 (N, 2), width and height of each
        upright image, or box of one, in pixels, before it is resized.

    Raises:
        UserError: There is no training part.
    """
    if "train" not in datamodule.split:
        raise UserError(
            f"{datamodule.source.root} has no training images, and these numbers are of them alone: "
            "name another split with data.split_file=..., or lower data.test_fraction"
        )
    images = _Counted(datamodule.samples, datamodule.split["train"], datamodule.preprocessing)
    workers = worker_count(datamodule.num_workers)
    loader = DataLoader(images, batch_size=datamodule.batch_size, num_workers=workers)
    total = np.zeros((datamodule.preprocessing.channels, 256), dtype=np.int64)
    sizes: list[np.ndarray] = []
    for counts, size in tracked(loader, "reading batches", len(loader)):
        total += counts.sum(0).numpy()
        sizes.append(size.numpy())
    return total, np.concatenate(sizes)


class _Counted(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """For each row, its histograms int64 (C, 256) and its size int64 (2,): all that has to leave a worker."""

    def __init__(self, samples: Samples, rows: np.ndarray, read: Preprocessing) -> None:
        self.samples = samples
        self.rows = rows
        self.read = read

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> tuple[torch.Tensor, torch.Tensor]:
        row = int(self.rows[position])
        picture, box = self.samples.image(row), self.samples.box(row)
        image, size = self.read(picture, box), upright_size(picture, box)
        return torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in image]), torch.tensor(size)


def mean_and_std(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of pixels in 0 to 1, from their histograms int64 (C, 256): float64 (C,) each, over the whole population.

    The mean of the images' own standard deviations would be too small: it leaves out that images differ.
    """
    shares = counts / counts.sum(1, keepdims=True)
    mean = shares @ VALUES
    return mean, np.sqrt((shares * (VALUES - mean[:, None]) ** 2).sum(1))


def _summary(sizes: np.ndarray) -> dict[str, dict[str, float]]:
    columns = {"width": sizes[:, 0], "height": sizes[:, 1], "aspect": sizes[:, 0] / sizes[:, 1]}
    return {
        name: {"min": float(values.min()), "median": float(np.median(values)), "max": float(values.max())}
        for name, values in columns.items()
    }


def _classes(datamodule: ClassificationDataModule) -> dict[str, dict[str, int]]:
    labels, classes = datamodule.samples.labels, datamodule.classes
    counts = {part: np.bincount(labels[rows], minlength=len(classes)) for part, rows in datamodule.split.items()}
    return {name: {part: int(counts[part][label]) for part in counts} for label, name in enumerate(classes)}


def _print(found: dict[str, Any], parts: list[str]) -> None:
    console = Console()
    height, width = found["image_size"]
    sizes = Table("", "min", "median", "max", title="training images")
    for name, row in found["sizes"].items():
        sizes.add_row(name, *(f"{value:.2f}" if name == "aspect" else f"{value:g}" for value in row.values()))
    console.print(sizes)

    classes: dict[str, dict[str, int]] = found["classes"]
    order = list(classes)
    if len(order) > SHOWN:
        order.sort(key=lambda name: -sum(classes[name].values()))
        order = [*order[: SHOWN // 2], *order[-SHOWN // 2 :]]
    table = Table(
        title="images" if len(order) == len(classes) else f"the largest and smallest of {len(classes)} classes"
    )
    table.add_column("class", overflow="fold")
    for part in (*parts, "all"):
        table.add_column(part, justify="right", no_wrap=True)
    for name in order:
        # Text: brackets in a name are no markup
        table.add_row(Text(name), *(str(count) for count in classes[name].values()), str(sum(classes[name].values())))
    totals = [sum(row[part] for row in classes.values()) for part in parts]
    table.add_section()
    table.add_row("all", *(str(total) for total in totals), str(sum(totals)))
    console.print(table)

    print(f"pixels of {found['images']} training images at {width}x{height}, from 0 to 1; to train with them:")
    # quoted for shells to which brackets are a pattern
    print(" ".join(f'"model.{key}=[{",".join(f"{value:.4g}" for value in found[key])}]"' for key in ("mean", "std")))
