"""What the training images are like: mean and standard deviation of their pixels, classes, sizes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig

from classifier.data import ClassificationDataModule
from classifier.data.image import upright_size
from classifier.errors import UserError
from classifier.files import require_outside, whole_file
from classifier.parallel import parallel_map, tracked, worker_count
from classifier.tools.data import class_counts, class_table, open_data

VALUES = np.arange(256) / 255  # what uint8 pixels stand for


def statistics(config: DictConfig) -> dict[str, Any]:
    """Print the statistics, write them to `json` where that is set, and return what was written.

    Args:
        config: As configs/data_statistics.yaml composes it.

    Raises:
        UserError: Wrong input; no training images.
    """
    datamodule = open_data(config)
    if config.json is not None:
        require_outside(Path(config.json), datamodule.root, key="json")
    histograms, sizes = measure(datamodule)
    shares = histograms / histograms.sum(1, keepdims=True)
    mean = shares @ VALUES
    # over all pixels: the mean of the images' own deviations would leave out that images differ
    std = np.sqrt((shares * (VALUES - mean[:, None]) ** 2).sum(1))
    ranges = sizes.assign(aspect=sizes["width"] / sizes["height"]).agg(["min", "median", "max"]).astype(float)
    counts = class_counts(datamodule.samples[datamodule.samples["split"].notna()], datamodule.task)
    height, width = datamodule.preprocessing.image_size
    found: dict[str, Any] = {
        "images": len(sizes),
        "image_size": [height, width],
        "mean": mean.tolist(),
        "std": std.tolist(),
        "sizes": ranges.to_dict(),
        "classes": counts.drop(columns="all").to_dict(orient="index"),
    }
    print(f"training images:\n{ranges.T.to_string(float_format='{:.4g}'.format)}\n\n{class_table(counts)}")
    print(f"pixels of {len(sizes)} training images at {width}x{height}, from 0 to 1; to train with them:")
    # quoted for shells to which brackets are a pattern
    print(" ".join(f'"model.{key}=[{",".join(f"{value:.4g}" for value in found[key])}]"' for key in ("mean", "std")))
    if config.json is not None:
        with whole_file(Path(config.json), key="json") as scratch:
            scratch.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
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
        raise UserError(f"{datamodule.root} has no training images: use data.split_file=... or data.test_fraction=0.2")

    def read(row: int) -> tuple[list[np.ndarray], tuple[int, int]]:
        picture, box = datamodule.image(row), datamodule.box(row)
        channels = datamodule.preprocessing(picture, box).flatten(1).numpy()
        return [np.bincount(channel, minlength=256) for channel in channels], upright_size(picture, box)

    rows = datamodule.rows("train").tolist()
    total = np.zeros((datamodule.preprocessing.channels, 256), dtype=np.int64)
    sizes = []
    found = parallel_map(read, rows, max(1, worker_count(datamodule.num_workers)))
    for histograms, size in tracked(found, "reading", len(rows)):
        total += histograms
        sizes.append(size)
    return total, pd.DataFrame(sizes, columns=["width", "height"])
