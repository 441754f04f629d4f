"""Sizes and boxes of stored images, as they are when turned upright; read from the header alone."""

from pathlib import Path

import numpy as np
from PIL import Image

from classifier.data.picture import Box, Picture, Region
from classifier.data.stored import orientation_of, unreadable

TRANSPOSED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
FLIPPED_X = (2, 3, 7, 8)  # of the stored image, before the exchange
FLIPPED_Y = (3, 4, 6, 7)


def everything(width: int, height: int) -> Region:
    """The crop that keeps everything."""
    return (0.0, 0.0, float(width), float(height))


def upright_size(picture: Picture, box: Box | None = None) -> tuple[int, int]:
    """Width and height, in pixels, of the upright picture, or of `box` (in stored pixels) in it."""
    width, height, orientation = _header(picture)
    if box is not None:
        width, height = box[2] - box[0], box[3] - box[1]
    return (height, width) if orientation in TRANSPOSED else (width, height)


def upright_box(picture: Picture, box: Box) -> Box:
    """Where `box`, (x1, y1, x2, y2) in stored pixels, lies in the upright picture."""
    width, height, orientation = _header(picture)
    x1, y1, x2, y2 = box
    if orientation in FLIPPED_X:
        x1, x2 = width - x2, width - x1
    if orientation in FLIPPED_Y:
        y1, y2 = height - y2, height - y1
    return (y1, x1, y2, x2) if orientation in TRANSPOSED else (x1, y1, x2, y2)


def _header(picture: Picture) -> tuple[int, int, int]:
    """Stored width and height, and the EXIF orientation."""
    if isinstance(picture, np.ndarray):
        return picture.shape[1], picture.shape[0], 1
    if isinstance(picture, Path):
        try:
            with Image.open(picture) as image:
                return _header(image)
        except Exception as error:  # whatever a Pillow plugin meets on damaged bytes
            raise unreadable(picture, error) from error
    return picture.width, picture.height, orientation_of(picture)
