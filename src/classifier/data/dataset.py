"""Rows of a Samples table -> uint8 images with labels and indices."""

from collections.abc import Sequence
from typing import Protocol, TypedDict

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate

from classifier.data.picture import Box, Picture
from classifier.data.samples import Samples
from classifier.data.train_size import EpochAugmentation
from classifier.seeding import seed_place

Key = tuple[int, int, int]
"""Epoch, position in `rows`, and how many times the epoch has drawn that position before."""


class ReadImage(Protocol):
    """`Preprocessing` or `Augmentation`."""

    def __call__(self, picture: Picture, box: Box | None = None) -> torch.Tensor: ...


class Item(TypedDict):
    """An image, uint8 (C, H, W), the number of its class, and its row in the Samples table."""

    image: torch.Tensor
    label: int
    index: int


Batch = dict[str, torch.Tensor]
"""`image` uint8 (B, C, H, W), `label` int64 (B,), `index` int64 (B,): the row in the Samples table."""


def collate(items: Sequence[Item]) -> Batch:
    """Stack items into a batch, whose images are channels_last in memory."""
    # the decoder leaves an image as (H, W, C): stacked like this, it is copied in one piece
    images = default_collate([item["image"].permute(1, 2, 0) for item in items])
    return {
        "image": images.permute(0, 3, 1, 2),
        "label": torch.tensor([item["label"] for item in items]),
        "index": torch.tensor([item["index"] for item in items]),
    }


class ImageDataset(Dataset[Item]):
    """The samples at `rows`, read by `read`.

    An item is asked for by `Key` in training, where all random draws are a function of (seed, epoch, row, times drawn
    before in the epoch), and by the position in `rows` alone otherwise.
    """

    def __init__(self, samples: Samples, rows: np.ndarray, read: ReadImage | EpochAugmentation, seed: int = 0) -> None:
        self.samples = samples
        self.rows = rows
        self.read = read
        self.seed = seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | Key) -> Item:
        epoch, position, repeat = key if isinstance(key, tuple) else (0, key, 0)
        row = int(self.rows[position])
        if isinstance(key, tuple):
            seed_place(self.seed, epoch, row, *([repeat] if repeat else []))
        read = self.read.at(epoch) if isinstance(self.read, EpochAugmentation) else self.read
        return {
            "image": read(self.samples.image(row), self.samples.box(row)),
            "label": int(self.samples.labels[row]),
            "index": row,
        }
