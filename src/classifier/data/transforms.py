"""Where to cut and how to change an image: drawn at random for training, from stored numbers for everything else."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from classifier.data.decode import INTERPOLATIONS, decode
from classifier.data.picture import Box, Crop, Picture, Region
from classifier.errors import UserError, require_choice, require_number, require_whole
from classifier.instantiate import build

RESIZE_MODES = ("crop", "squash", "pad")


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
    """

    image_size: tuple[int, int]
    resize: str = "crop"
    crop_pct: float = 1.0
    interpolation: str = "bilinear"
    channels: int = 3

    def __post_init__(self) -> None:
        require_choice("data.resize", self.resize, RESIZE_MODES)
        require_choice("data.interpolation", self.interpolation, INTERPOLATIONS)
        if self.channels not in (1, 3):
            raise UserError(f"data.channels={self.channels}: images are read as 3 (RGB) or 1 (grey)")
        require_number("data.crop_pct", self.crop_pct)
        if not 0 < self.crop_pct <= 1:
            raise UserError(f"data.crop_pct={self.crop_pct} must lie above 0 and at most at 1")
        for side in self.image_size:
            require_whole("data.image_size", side, 1)

    @classmethod
    def from_dict(cls, numbers: Mapping[str, Any]) -> "Preprocessing":
        return cls(**{**numbers, "image_size": tuple(numbers["image_size"])})

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "image_size": list(self.image_size)}

    def region(self, width: int, height: int) -> Region:
        if self.resize == "squash":
            return (0.0, 0.0, float(width), float(height))
        target_height, target_width = self.image_size
        scales = (width / target_width, height / target_height)
        scale = max(scales) if self.resize == "pad" else min(scales) * self.crop_pct
        # whole pixels, which are resized four times as fast
        w, h = max(1, round(target_width * scale)), max(1, round(target_height * scale))
        left, top = (width - w) // 2, (height - h) // 2
        return (float(left), float(top), float(left + w), float(top + h))

    def __call__(self, picture: Picture, box: Box | None = None, crop: Crop | None = None) -> torch.Tensor:
        """Read `picture` as uint8 (channels, height, width), cut by a random `crop` instead of `region` if given."""
        return decode(
            picture,
            box,
            crop or self.region,
            self.image_size,
            interpolation=self.interpolation,
            channels=self.channels,
            exact=crop is None,
        )


class Augmentation:
    """Reads an image for training: a random crop, cut while decoding, then torchvision v2 transforms.

    All randomness comes from torch's global generator, which the dataset seeds for each sample.

    Args:
        preprocessing: Gives the size; and the crop, where `crop` is None.
        crop: `scale` (min, max share of the area) and `ratio` (min, max of width / height) of
            torchvision's RandomResizedCrop.
        transforms: Name -> config of a transform on a uint8 tensor (C, H, W), applied in this order; None is skipped.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        crop: Mapping[str, Any] | None = None,
        transforms: Mapping[str, Mapping[str, Any] | None] | None = None,
    ) -> None:
        if crop is not None and set(crop) != {"scale", "ratio"}:
            raise UserError(f"augment.crop={dict(crop)} must have scale and ratio: use augment.crop.ratio=[0.75,1.33]")
        self.preprocessing = preprocessing
        self.crop = crop
        named = (transforms or {}).items()
        self.steps = [build(config, f"augment.transforms.{name}") for name, config in named if config is not None]

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
            left, top = int(x * (width - w + 1)), int(y * (height - h + 1))
            return (float(left), float(top), float(left + w), float(top + h))
    # the image is too long or too tall: the largest part in the middle that is not
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    left, top = (width - w) // 2, (height - h) // 2
    return (float(left), float(top), float(left + w), float(top + h))
