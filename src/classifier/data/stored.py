"""Image files opened and their pixels read, as they are stored: not yet turned upright, cut or resized."""

from io import BytesIO
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

from classifier.data import jpeg
from classifier.data.jpeg import ORIENTATION_TAG
from classifier.data.picture import Box, Picture
from classifier.errors import UserError

BACKGROUND = (255, 255, 255)  # what shows through transparent pixels


class StoredImage(Protocol):
    """An image as it is stored, its pixels perhaps not decoded yet: a `PlainJpeg` or a `PillowImage`."""

    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def orientation(self) -> int:
        """As in EXIF: 1 is upright."""

    @property
    def max_shrink(self) -> int:
        """The largest `shrink` that `read` takes."""

    def read(self, part: Box, shrink: int, channels: int) -> np.ndarray:
        """The pixels of `part` at 1 / `shrink` of the size, uint8 (height, width, channels)."""


def open_image(picture: Picture) -> StoredImage:
    """Read a file and its header, or take what is in memory."""
    if isinstance(picture, np.ndarray):
        return ArrayImage(picture)
    if isinstance(picture, Image.Image):
        return PillowImage(picture)
    data = picture.read_bytes()
    return (jpeg.parse(data) if data.startswith(jpeg.START) else None) or PillowImage(Image.open(BytesIO(data)))


def exif_of(image: Image.Image) -> Image.Exif:
    """What stands in front of the pixels, which are not decoded.

    A PNG can have it behind them. Pillow's own method for PNGs decodes all of one to find out, which takes hundreds of
    times as long as the header, so that it is not looked for there, by any caller.
    """
    return Image.Image.getexif(image)


def orientation_of(image: Image.Image) -> int:
    """EXIF's, 1 to 8, by which the image has yet to be turned."""
    # Pillow turns TIFFs itself, and gives their size as turned
    return 1 if image.format == "TIFF" else exif_of(image).get(ORIENTATION_TAG, 1)


class PillowImage:
    """An image in any format that Pillow reads; the part is cut out after all of it is decoded."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image
        self.width, self.height = image.size
        self.orientation = orientation_of(image)
        self.max_shrink = 8 if image.format == "JPEG" else 1

    def read(self, part: Box, shrink: int, channels: int) -> np.ndarray:
        if shrink > 1:
            self.image.draft(None, (self.width // shrink, self.height // shrink))
        cut = _to_8bit(self.image, channels).crop(part)
        return np.array(cut).reshape(cut.height, cut.width, channels)


class ArrayImage:
    """Decoded pixels, uint8 (H, W) or (H, W, 1 or 3)."""

    max_shrink = 1

    def __init__(self, pixels: np.ndarray, orientation: int = 1) -> None:
        self.orientation = orientation
        self.pixels = pixels if pixels.ndim == 3 else pixels[..., None]
        self.height, self.width, self.channels = self.pixels.shape

    def read(self, part: Box, shrink: int, channels: int) -> np.ndarray:
        x1, y1, x2, y2 = part
        cut = self.pixels[y1:y2, x1:x2]
        if self.channels != channels:
            grey = self.channels == 1
            cut = np.repeat(cut, 3, axis=2) if grey else np.array(Image.fromarray(cut).convert("L"))[..., None]
        return cut if cut.flags.writeable else cut.copy()  # torch wants to be able to write


def _to_8bit(image: Image.Image, channels: int) -> Image.Image:
    """The image in mode RGB or L, whatever its own mode."""
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, dtype=np.float64)
        # 16-bit files come as I;16 or I; Pillow's own conversion clips them at 255, which turns photos white
        deep = image.mode.startswith("I;16") or values.max(initial=0) > 255
        scale = 255 / 65535 if deep else 255 if image.mode == "F" and values.max() <= 1 else 1
        image = Image.fromarray(np.clip(np.rint(values * scale), 0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        opaque = Image.new("RGBA", rgba.size, (*BACKGROUND, 255))
        image = Image.alpha_composite(opaque, rgba)
    mode = "RGB" if channels == 3 else "L"
    return image if image.mode == mode else image.convert(mode)


class ImageError(UserError):
    """A file that cannot be decoded; the message names it."""


def unreadable(picture: Picture, error: Exception) -> ImageError:
    """The error to raise for what cannot be opened or decoded."""
    name = picture if isinstance(picture, Path) else f"of the type {type(picture).__name__}"
    return ImageError(
        f"cannot read the image {name} ({image_problem(error)}): "
        "mend or remove it, or leave all such files out with data.check=full data.on_error=skip"
    )


def image_problem(error: BaseException) -> str:
    """What is wrong with a file that Pillow could not read, without Pillow's internals."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or of a format that Pillow does not read"
    return str(error) or type(error).__name__
