"""Rows of a Samples table -> uint8 images with labels and indices."""

from typing import Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from classifier.data.decode import Box, Picture
from classifier.data.samples import Samples
from classifier.seeding import seed_place

Key = tuple[int, int, int]
"""Epoch, position in `rows`, and how many times the epoch has drawn that position before."""


class ReadImage(Protocol):
    """`Preprocessing` or `Augmentation`."""

    def __call__(self, picture: Picture, box: Box | None = None) -> torch.Tensor: ...


class ImageDataset(Dataset[dict[str, torch.Tensor]]):
    """The samples at `rows`, read by `read`.

    An item is asked for by `Key` in training, where all random draws are a function of (seed, epoch, row, times drawn
    before in the epoch), and by the position in `rows` alone otherwise.

    Returns, for an item: `image` uint8 (C, H, W), `label` int64 (), `index` int64 (), the row in `samples`.
    """

    def __init__(self, samples: Samples, rows: np.ndarray, read: ReadImage, seed: int = 0) -> None:
        self.samples = samples
        self.rows = rows
        self.read = read
        self.seed = seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | Key) -> dict[str, torch.Tensor]:
        row = int(self.rows[key[1] if isinstance(key, tuple) else key])
        if isinstance(key, tuple):
            epoch, _, repeat = key
            seed_place(self.seed, epoch, row, *([repeat] if repeat else []))
        return {
            "image": self.read(self.samples.image(row), self.samples.box(row)),
            "label": torch.tensor(self.samples.labels[row]),
            "index": torch.tensor(row),
        }
