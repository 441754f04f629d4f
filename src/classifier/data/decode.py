"""A file on disk -> RGB (or grey) pixels of a wanted size: the one function that every verb uses."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from classifier.errors import UserError

BACKGROUND = (255, 255, 255)  # what shows through transparent pixels
ORIENTATION_TAG = 0x0112  # EXIF

Box = tuple[int, int, int, int]
Picture = Path | np.ndarray | Image.Image
"""What can be read: a file, pixels as uint8 (H, W) or (H, W, C), or a Pillow image."""
Region = tuple[float, float, float, float]
Crop = Callable[[int, int], Region]
"""(width, height) of the upright image or box -> the part of it to keep, (x1, y1, x2, y2) in its pixels."""

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


class ImageError(UserError):
    """A file that cannot be decoded; the message names it."""


def decode(
    picture: Picture,
    box: Box | None,
    crop: Crop,
    size: tuple[int, int],
    *,
    interpolation: str = "bilinear",
    channels: int = 3,
) -> torch.Tensor:
    """Read a picture, cut `box` and then `crop` out of it, and resize that part, antialiased.

    JPEGs are decoded at 1/2, 1/4 or 1/8 of their size where that is still at least the wanted one; the crop and the
    resize are one operation. EXIF orientation is applied, the first frame of an animation is taken, 16 bits are scaled
    to 8 and transparency is laid on white.

    Args:
        box: Part of the stored (not yet rotated) image, in pixels, inside the image; None for all of it.
        size: Height and width of the result, in pixels.
        channels: 3 for RGB, 1 for grey.

    Returns:
        uint8 (channels, height, width).

    Raises:
        ImageError: The file is missing, damaged, or in a format that Pillow does not read.
    """
    height, width = size
    try:
        with _opened(picture) as image:
            # Pillow turns TIFFs itself, and gives their size as turned
            orientation = 1 if image.format == "TIFF" else image.getexif().get(ORIENTATION_TAG, 1)
            part = box or (0, 0, *image.size)
            turned = orientation in (5, 6, 7, 8)
            part_width, part_height = part[2] - part[0], part[3] - part[1]
            if turned:
                part_width, part_height = part_height, part_width
            region = crop(part_width, part_height)
            stored_width = image.width
            if image.format == "JPEG":
                least = max(width / (region[2] - region[0]), height / (region[3] - region[1]))
                if least < 1:
                    image.draft(None, (int(np.ceil(image.width * least)), int(np.ceil(image.height * least))))
            scale = image.width / stored_width
            pixels = _to_8bit(image, channels)
            if orientation != 1 or box is not None:  # a resize looks over the edge of its part
                pixels = pixels.crop(tuple(round(edge * scale) for edge in part))  # type: ignore[arg-type]
                pixels.getexif()[ORIENTATION_TAG] = orientation
                pixels = ImageOps.exif_transpose(pixels)
                x0 = y0 = 0.0
            else:
                x0, y0 = part[0], part[1]
            source = [
                (region[0] + x0) * scale,
                (region[1] + y0) * scale,
                (region[2] + x0) * scale,
                (region[3] + y0) * scale,
            ]
            # scaled decoding and rounding can put an edge a fraction of a pixel outside
            limits = (pixels.width, pixels.height) * 2
            source = [min(max(edge, 0.0), float(limit)) for edge, limit in zip(source, limits, strict=True)]
            pixels = pixels.resize((width, height), INTERPOLATIONS[interpolation], box=tuple(source))  # type: ignore[arg-type]
    except Exception as error:
        # Pillow's plugins raise whatever their parser meets on damaged bytes: OSError, SyntaxError, ValueError, ...
        raise ImageError(
            f"cannot read the image {_name(picture)} ({image_problem(error)}): "
            "mend or remove it, or leave all such files out with data.check=full data.on_error=skip"
        ) from error
    array = np.array(pixels)  # a writable copy, as torch wants it
    return torch.from_numpy(array).reshape(height, width, channels).permute(2, 0, 1).contiguous()


def upright_size(picture: Picture, box: Box | None) -> tuple[int, int]:
    """Width and height, in pixels, of an image or its box as `decode` hands them to `crop`."""
    with _opened(picture) as image:
        width, height = image.size if box is None else (box[2] - box[0], box[3] - box[1])
        turned = image.format != "TIFF" and image.getexif().get(ORIENTATION_TAG, 1) in (5, 6, 7, 8)
    return (height, width) if turned else (width, height)


def _opened(picture: Picture) -> Image.Image:
    if isinstance(picture, np.ndarray):
        return Image.fromarray(picture[..., 0] if picture.ndim == 3 and picture.shape[2] == 1 else picture)
    return picture if isinstance(picture, Image.Image) else Image.open(picture)


def _name(picture: Picture) -> str:
    return str(picture) if isinstance(picture, Path) else f"of {type(picture).__name__}"


def image_problem(error: BaseException) -> str:
    """What is wrong with a file that Pillow could not read, without Pillow's internals."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or of a format that Pillow does not read"
    return str(error) or type(error).__name__


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
