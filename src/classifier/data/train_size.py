"""Training images that are smaller than the others: at first, or all along."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from classifier.data.transforms import Augmentation, Preprocessing
from classifier.errors import UserError, require_whole

Size = tuple[int, int]
"""Height and width, in pixels."""

FORM = "data.train_size=128, or data.train_size=[[0,128],[10,192]] for 128 pixels from epoch 0 on and 192 from epoch 10"


def sides(value: Any, key: str) -> Size:
    """The size that a config gives as one number or as [height, width].

    Raises:
        UserError: It is neither.
    """
    both = tuple(value) if isinstance(value, (list, tuple)) else (value, value)
    if len(both) != 2:
        raise UserError(f"{key}={list(both)} must be one number or [height, width]")
    for side in both:
        require_whole(key, side, 1)
    return both


def train_sizes(value: Any, image_size: Size) -> dict[int, Size]:
    """The sizes of training images, each with its first epoch.

    Args:
        value: Of `data.train_size`: a size, or a list of [epoch, size] with epochs from 0 on; None for `image_size`.

    Raises:
        UserError: It is something else, or larger than `image_size`.
    """
    if value is None:
        return {0: image_size}
    if not isinstance(value, (list, tuple)) or not any(isinstance(entry, (list, tuple)) for entry in value):
        sizes = {0: sides(value, "data.train_size")}
    else:
        if not all(isinstance(entry, (list, tuple)) and len(entry) == 2 for entry in value):
            raise UserError(f"data.train_size={list(value)} must be pairs of an epoch and a size: use {FORM}")
        for epoch, _ in value:
            require_whole("data.train_size", epoch, 0, otherwise=f", where it names an epoch: use {FORM}")
        sizes = {epoch: sides(size, "data.train_size") for epoch, size in value}
        if 0 not in sizes or len(sizes) < len(value):
            raise UserError(f"data.train_size={list(value)} must name epoch 0, and none of them twice: use {FORM}")
    for height, width in sizes.values():
        if height > image_size[0] or width > image_size[1]:
            raise UserError(
                f"data.train_size={[height, width]} is larger than data.image_size={list(image_size)}, that of all "
                "other images: use a larger data.image_size"
            )
    return sizes


class EpochAugmentation:
    """An `Augmentation` for each size that training images have in the course of a run.

    Args:
        preprocessing: Of everything else.
        sizes: First epoch -> size.
        augment: Arguments of `Augmentation`.

    Raises:
        UserError: A transform turns out images of another size.

    Source: growing images: J. Howard, fast.ai's DAWNBench entry, 2018; smaller ones in training than in tests:
    H. Touvron et al., Fixing the train-test resolution discrepancy, NeurIPS 2019.
    """

    def __init__(self, preprocessing: Preprocessing, sizes: Mapping[int, Size], augment: Mapping[str, Any]) -> None:
        self.sizes = dict(sizes)
        self.by_start = {
            epoch: Augmentation(replace(preprocessing, image_size=size), **augment) for epoch, size in sizes.items()
        }
        if set(sizes.values()) != {preprocessing.image_size}:
            for size, augmentation in zip(sizes.values(), self.by_start.values(), strict=True):
                _require_kept(augmentation, size)

    def at(self, epoch: int) -> Augmentation:
        """How images are read in an epoch, counted from 0."""
        return self.by_start[max(start for start in self.by_start if start <= epoch)]

    @property
    def largest(self) -> int:
        """The first epoch of the largest images."""
        return max(self.sizes, key=lambda epoch: math.prod(self.sizes[epoch]))

    def hold(self, epoch: int) -> None:
        """Read images in every epoch as from this one on, one of `sizes`."""
        self.sizes, self.by_start = {0: self.sizes[epoch]}, {0: self.by_start[epoch]}


def _require_kept(augmentation: Augmentation, size: Size) -> None:
    grey = np.full((*size, augmentation.preprocessing.channels), 128, dtype=np.uint8)
    found = tuple(augmentation(grey).shape[1:])
    if found != size:
        raise UserError(
            f"augment makes {found[0]}x{found[1]} pixels of the {size[0]}x{size[1]} of data.train_size: take out the "
            "transform with a size of its own, or use data.train_size=null"
        )
