"""What the training images are like: mean and standard deviation of their pixels, classes, sizes."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch.utils.data import DataLoader, Dataset

from classifier.data import ClassificationDataModule
from classifier.data.image import upright_size
from classifier.data.loader import Images
from classifier.data.samples import SPLITS
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
        require_outside(path, datamodule.root, key="json")
    histograms, sizes = measure(datamodule)
    mean, std = mean_and_std(histograms)
    sizes = sizes.assign(aspect=sizes["width"] / sizes["height"]).agg(["min", "median", "max"]).astype(float)
    counts = class_counts(datamodule.samples)
    found = {
        "images": int(histograms[0].sum() // np.prod(datamodule.preprocessing.image_size)),
        "image_size": list(datamodule.preprocessing.image_size),
        "mean": mean.tolist(),
        "std": std.tolist(),
        "sizes": sizes.to_dict(),
        "classes": counts.to_dict(orient="index"),
    }
    _print(found, sizes, counts)
    if path is not None:
        with whole_file(path, key="json") as scratch:
            scratch.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        log.info("%s", path)
    return found


def measure(datamodule: ClassificationDataModule) -> tuple[np.ndarray, pd.DataFrame]:
    """Read each training image once, as evaluation does.

    Returns:
        int64 (C, 256), how often each pixel value occurs in each channel; and the `width` and `height` of each
        upright image, or box of one, in pixels, before it is resized.

    Raises:
        UserError: There is no training part.
    """
    if "train" not in datamodule.parts:
        raise UserError(
            f"{datamodule.root} has no training images, and these numbers are of them alone: "
            "name another split with data.split_file=..., or lower data.test_fraction"
        )
    rows = datamodule.rows("train")
    images = Images.of(datamodule.samples.iloc[rows], datamodule.root, datamodule.read_images)
    loader = DataLoader(
        _Measured(images, datamodule.preprocessing),
        batch_size=datamodule.batch_size,
        num_workers=worker_count(datamodule.num_workers),
    )
    total = np.zeros((datamodule.preprocessing.channels, 256), dtype=np.int64)
    sizes: list[np.ndarray] = []
    for histograms, size in tracked(loader, "reading batches", len(loader)):
        total += histograms.sum(0).numpy()
        sizes.append(size.numpy())
    return total, pd.DataFrame(np.concatenate(sizes), columns=["width", "height"])


class _Measured(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """For each image, its histograms int64 (C, 256) and its size int64 (2,): all that has to leave a worker."""

    def __init__(self, images: Images, read: Preprocessing) -> None:
        self.images = images
        self.read = read

    def __len__(self) -> int:
        return len(self.images.labels)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        picture, box = self.images.picture(row), self.images.box(row)
        image, size = self.read(picture, box), upright_size(picture, box)
        return torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in image]), torch.tensor(size)


def mean_and_std(histograms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of pixels in 0 to 1, from their histograms int64 (C, 256): float64 (C,) each, over the whole population.

    The mean of the images' own standard deviations would be too small: it leaves out that images differ.
    """
    shares = histograms / histograms.sum(1, keepdims=True)
    mean = shares @ VALUES
    return mean, np.sqrt((shares * (VALUES - mean[:, None]) ** 2).sum(1))


def class_counts(samples: pd.DataFrame) -> pd.DataFrame:
    """Number of samples of each class (index) in each part that has any (columns)."""
    counts = pd.crosstab(samples["label"], samples["split"], dropna=False)
    parts = [part for part in SPLITS if part in counts]
    return counts.reindex(samples["label"].cat.categories, fill_value=0)[parts]


def _print(found: dict[str, Any], sizes: pd.DataFrame, counts: pd.DataFrame) -> None:
    console = Console()
    table = Table("", *sizes.index, title="training images")
    for name, values in sizes.items():
        table.add_row(str(name), *(f"{value:.2f}" if name == "aspect" else f"{value:g}" for value in values))
    console.print(table)

    counts = counts.assign(all=counts.sum(axis=1))
    shown, title = counts, "images"
    if len(counts) > SHOWN:
        shown = counts.sort_values("all", ascending=False, kind="stable")
        shown = pd.concat([shown.head(SHOWN // 2), shown.tail(SHOWN // 2)])
        title = f"the largest and smallest of {len(counts)} classes"
    table = Table(title=title)
    table.add_column("class", overflow="fold")
    for part in counts:
        table.add_column(str(part), justify="right", no_wrap=True)
    for name, *numbers in shown.itertuples():
        table.add_row(Text(name), *map(str, numbers))  # Text: brackets in a name are not markup
    table.add_section()
    table.add_row("all", *map(str, counts.sum()))
    console.print(table)

    height, width = found["image_size"]
    print(f"pixels of {found['images']} training images at {width}x{height}, from 0 to 1; to train with them:")
    # quoted for shells to which brackets are a pattern
    print(" ".join(f'"model.{key}=[{",".join(f"{value:.4g}" for value in found[key])}]"' for key in ("mean", "std")))
