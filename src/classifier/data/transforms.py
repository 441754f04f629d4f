"""How an image becomes a network's input: preprocessing, augmentation, and the size of training images."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from classifier.data.image import INTERPOLATIONS, Box, Crop, Picture, Region, ValueRange, decode, everything
from classifier.errors import UserError, as_typed, require_choice, require_number, require_whole
from classifier.instantiate import build

MOST_NUMBERS = 1 << 26  # of an image as the network gets it: 4729 x 4729 pixels in colour


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a network's input outside of training; kept in every checkpoint.

    Args:
        image_size: Height and width, in pixels.
        resize: `crop` cuts the middle in the wanted shape, `squash` keeps everything and gives up the shape, `pad`
            keeps both in a grey frame.
        crop_pct: Share of the short side that `crop` keeps, 0 to 1.
        interpolation: One of `INTERPOLATIONS`.
        channels: 3 for RGB, 1 for grey.
        value_range: The values that become black and white, in images of more than 8 bits and of fractions; see
            `classifier.data.image.to_uint8`.
    """

    image_size: tuple[int, int]
    resize: str = "crop"
    crop_pct: float = 1.0
    interpolation: str = "bilinear"
    channels: int = 3
    value_range: ValueRange | None = None

    def __post_init__(self) -> None:
        require_choice("data.resize", self.resize, ("crop", "squash", "pad"))
        require_choice("data.interpolation", self.interpolation, INTERPOLATIONS)
        if self.channels not in (1, 3):
            raise UserError(f"data.channels={as_typed(self.channels)}: images are read as 3 (RGB) or 1 (grey)")
        require_number("data.crop_pct", self.crop_pct, above=0, most=1)
        for side in self.image_size:
            require_whole("data.image_size", side, 1)
        if len(self.image_size) != 2 or math.prod((*self.image_size, self.channels)) > MOST_NUMBERS:
            raise UserError(f"data.image_size={self.image_size!s:.99} must be two numbers, of {MOST_NUMBERS} in all")
        if (stated := self.value_range) is not None:
            fits = isinstance(stated, tuple) and len(stated) == 2 and all(isinstance(v, (int, float)) for v in stated)
            if not fits or not -math.inf < stated[0] < stated[1] < math.inf:
                advice = "must be two numbers, the lower one first, as data.value_range=[0,4095]"
                raise UserError(f"data.value_range={as_typed(stated)} {advice}")

    @classmethod
    def from_dict(cls, numbers: Mapping[str, Any]) -> "Preprocessing":
        plain: Any = {name: tuple(value) if isinstance(value, list) else value for name, value in numbers.items()}
        return cls(**plain)

    def to_dict(self) -> dict[str, Any]:
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def region(self, width: int, height: int) -> Region:
        if self.resize == "squash":
            return everything(width, height)
        target_height, target_width = self.image_size
        scales = (width / target_width, height / target_height)
        scale = max(scales) if self.resize == "pad" else min(scales) * self.crop_pct
        # whole pixels, which are resized four times as fast
        w, h = max(1, round(target_width * scale)), max(1, round(target_height * scale))
        return _region((width - w) // 2, (height - h) // 2, w, h)

    def __call__(self, picture: Picture, box: Box | None = None, crop: Crop | None = None) -> torch.Tensor:
        """Read `picture` as uint8 (channels, height, width), cut by a random `crop` instead of `region` if given."""
        region, exact = crop or self.region, crop is None
        return decode(picture, box, region, self.image_size, self.interpolation, self.channels, exact, self.value_range)

    def whole(self, picture: Picture, box: Box | None, size: tuple[int, int]) -> torch.Tensor:
        """All of `picture`, or of `box`, as uint8 (channels, *size)."""
        return decode(picture, box, everything, size, self.interpolation, self.channels, value_range=self.value_range)


class Augmentation:
    """Reads an image for training: a random crop, cut while decoding, then transforms, such as torchvision's v2.

    All randomness comes from torch's global generator, which the dataset seeds for each sample.

    Args:
        preprocessing: Gives the size; and the crop, where `crop` is None.
        crop: `scale` (min, max share of the area) and `ratio` (min, max of width / height) of
            torchvision's RandomResizedCrop.
        transforms: Name -> config of a transform, uint8 (C, H, W) to the same, applied in this order; None is skipped.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        crop: Mapping[str, Any] | None = None,
        transforms: Mapping[str, Mapping[str, Any] | None] | None = None,
    ) -> None:
        if crop is not None and set(crop) != {"scale", "ratio"}:
            raise UserError(f"data.augment.crop={as_typed(crop)} lacks scale or ratio: add data.augment.crop.ratio=...")
        self.preprocessing = preprocessing
        self.crop = crop
        named = (transforms or {}).items()
        self.steps = [build(config, f"data.augment.transforms.{name}") for name, config in named if config is not None]

    def region(self, width: int, height: int) -> Region:
        if self.crop is None:
            return self.preprocessing.region(width, height)
        return random_region(width, height, self.crop["scale"], self.crop["ratio"])

    def __call__(self, picture: Picture, box: Box | None = None) -> torch.Tensor:
        """Read `picture` as uint8 (channels, height, width), a new draw at each call."""
        image = self.preprocessing(picture, box, None if self.crop is None else self.region)
        for step in self.steps:
            image = step(image)
        return image


class Albumentations:
    """An albumentations transform, which takes and gives numpy arrays, as one of `Augmentation`.

    Args:
        transform: One of albumentations, or a Compose of several.

    Source: A. Buslaev et al., Albumentations: fast and flexible image augmentations, Information 11 (2), 2020.
    """

    def __init__(self, transform: Any) -> None:
        if not hasattr(transform, "set_random_state"):
            raise UserError(
                f"Albumentations needs a transform of albumentations, not {transform!r}: name it with "
                "data.augment.transforms.<name>.transform._target_=albumentations.<Transform>"
            )
        self.transform = transform

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Apply it to uint8 (C, H, W), drawing from torch's global generator."""
        seed = int(torch.randint(2**62, ()))
        # one state for all steps of a Compose: equal seeds, as set_random_seed gives, would make them draw the same
        self.transform.set_random_state(np.random.default_rng(seed), random.Random(seed))
        array = self.transform(image=np.ascontiguousarray(image.permute(1, 2, 0).numpy()))["image"]
        return torch.from_numpy(np.ascontiguousarray(array)).view(*array.shape[:2], -1).permute(2, 0, 1)


def random_region(width: int, height: int, scale: Sequence[float], ratio: Sequence[float]) -> Region:
    """What torchvision's RandomResizedCrop draws, in the same distribution and a third of the time.

    Args:
        width: Of the image, in pixels.
        height: Of the image, in pixels.
        scale: Least and largest share of the area.
        ratio: Least and largest width / height.
    """
    for _ in range(10):
        share, shape, x, y = torch.rand(4).tolist()
        area = width * height * (scale[0] + share * (scale[1] - scale[0]))
        aspect = ratio[0] * (ratio[1] / ratio[0]) ** shape  # uniform in its logarithm
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return _region(int(x * (width - w + 1)), int(y * (height - h + 1)), w, h)
    # the image is too long or too tall: the largest part in the middle that is not
    w, h = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
    return _region((width - w) // 2, (height - h) // 2, w, h)


def _region(left: int, top: int, width: int, height: int) -> Region:
    return (float(left), float(top), float(left + width), float(top + height))


Size = tuple[int, int]
"""Height and width, in pixels."""


def sides(value: Any, key: str) -> Size:
    """The size that a config gives as one number or as [height, width].

    Raises:
        UserError: It is neither.
    """
    both = tuple(value) if isinstance(value, (list, tuple)) else (value, value)
    if len(both) != 2:
        raise UserError(f"{key}={as_typed(both)} must be one number or [height, width]")
    for side in both:
        require_whole(key, side, 1)
    return both


def train_sizes(value: Any, image_size: Size) -> dict[int, Size]:
    """The sizes of training images, each with its first epoch, counted from 0 as Lightning does.

    Args:
        value: Of `data.train_size`: a size, or a list of [epoch, size] with epochs from 1 on; None for `image_size`.

    Raises:
        UserError: It is something else, or larger than `image_size`.
    """
    entries: list[list[Any]] = [[1, image_size if value is None else value]]
    if isinstance(value, (list, tuple)) and any(isinstance(entry, (list, tuple)) for entry in value):
        entries = [[*entry] if isinstance(entry, (list, tuple)) else [entry] for entry in value]
    sizes = {entry[0]: sides(entry[1], "data.train_size") for entry in entries if len(entry) == 2}
    whole = all(isinstance(epoch, int) and epoch >= 1 for epoch in sizes)
    fits = all(size[0] <= image_size[0] and size[1] <= image_size[1] for size in sizes.values())
    if not (1 in sizes and len(sizes) == len(entries) and whole and fits):
        limit = f"a size up to data.image_size={as_typed(image_size)}"
        form = "[[1,128],[10,192]] for 128 pixels from epoch 1 on and 192 from epoch 10"
        raise UserError(f"data.train_size={as_typed(value)} must be {limit}, or {form}")
    return {epoch - 1: size for epoch, size in sizes.items()}


class EpochAugmentation:
    """An `Augmentation` for each size that training images have in the course of a run.

    Args:
        preprocessing: Of everything else.
        sizes: As `train_sizes` gives them.
        augment: Arguments of `Augmentation`.

    Raises:
        UserError: A transform makes images of another size.

    Source: growing images: J. Howard, fast.ai's DAWNBench entry, 2018; smaller ones in training than in tests:
    H. Touvron et al., Fixing the train-test resolution discrepancy, NeurIPS 2019.
    """

    def __init__(self, preprocessing: Preprocessing, sizes: Mapping[int, Size], augment: Mapping[str, Any]) -> None:
        self.sizes, self.by_start = dict(sizes), {}
        for epoch, size in sizes.items():
            self.by_start[epoch] = read = Augmentation(replace(preprocessing, image_size=size), **augment)
            if set(sizes.values()) != {preprocessing.image_size}:
                found = read(np.full((*size, preprocessing.channels), 128, dtype=np.uint8)).shape[1:]
                if found != size:
                    found_size = "x".join(map(str, found))
                    raise UserError(
                        f"data.augment makes {found_size} pixels of data.train_size={as_typed(size)}: take out the "
                        "transform with a size of its own, or use data.train_size=null"
                    )

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
