"""A file on disk -> RGB (or grey) pixels of a wanted size: the one function that every verb uses."""

import math

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from classifier.data.picture import Box, Crop, Picture, Region
from classifier.data.stored import StoredImage, open_image, unreadable
from classifier.data.upright import FLIPPED_X, FLIPPED_Y, TRANSPOSED

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
PADDING = 128  # what `pad` frames an image with
# torch is four times as fast as Pillow, and differs by rounding
RESIZED_BY_TORCH = ("bilinear", "bicubic")


def decode(
    picture: Picture,
    box: Box | None,
    crop: Crop,
    size: tuple[int, int],
    *,
    interpolation: str = "bilinear",
    channels: int = 3,
    exact: bool = True,
) -> torch.Tensor:
    """Read a picture, cut `box` and then `crop` out of it, and resize that part, antialiased.

    JPEGs are decoded at 1/2, 1/4 or 1/8 of their size where that is still at least the wanted one, and no further
    down than the crop. EXIF orientation is applied, the first frame of an animation is taken, 16 bits are scaled to 8
    and transparency is laid on white.

    Args:
        box: Part of the stored (not yet rotated) image, in pixels, inside the image; None for all of it.
        size: Height and width of the result, in pixels.
        interpolation: One of `INTERPOLATIONS`.
        channels: 3 for RGB, 1 for grey.
        exact: Keep the fractions of pixels in the crop's edges. Without, edges may move by half a pixel of the result,
            which is faster, and no loss to a crop that is drawn at random.

    Returns:
        uint8 (channels, height, width).

    Raises:
        ImageError: The file is missing, damaged, or in a format that Pillow does not read.
    """
    try:
        return cut_and_resize(open_image(picture), box, crop, size, interpolation, channels, exact)
    except Exception as error:
        # Pillow's plugins raise whatever their parser meets on damaged bytes: OSError, SyntaxError, ValueError, ...
        raise unreadable(picture, error) from error


def cut_and_resize(
    image: StoredImage,
    box: Box | None,
    crop: Crop,
    size: tuple[int, int],
    interpolation: str,
    channels: int,
    exact: bool,
) -> torch.Tensor:
    """What `decode` does with an opened image. Where the crop leaves the box, the result is grey."""
    x1, y1, x2, y2 = box or (0, 0, image.width, image.height)
    transposed, flip_x, flip_y = (image.orientation in turns for turns in (TRANSPOSED, FLIPPED_X, FLIPPED_Y))
    # from here on in the directions of the stored image
    left, top, right, bottom = crop(y2 - y1, x2 - x1) if transposed else crop(x2 - x1, y2 - y1)
    height, width = size
    if transposed:
        left, top, right, bottom = top, left, bottom, right
        height, width = width, height
    if flip_x:
        left, right = x2 - x1 - right, x2 - x1 - left
    if flip_y:
        top, bottom = y2 - y1 - bottom, y2 - y1 - top

    # the part of the crop that lies in the box, and its place in the result
    inner = (max(left, 0.0), max(top, 0.0), min(right, float(x2 - x1)), min(bottom, float(y2 - y1)))
    frame: tuple[slice, slice] | None = None
    full = (height, width)
    if inner != (left, top, right, bottom):
        across = [round((edge - left) * width / (right - left)) for edge in (inner[0], inner[2])]
        down = [round((edge - top) * height / (bottom - top)) for edge in (inner[1], inner[3])]
        across[1], down[1] = max(across[1], across[0] + 1), max(down[1], down[0] + 1)
        frame = slice(*down), slice(*across)
        height, width = down[1] - down[0], across[1] - across[0]
        left, top, right, bottom = inner

    shrink = image.max_shrink
    while shrink > 1 and (right - left < width * shrink or bottom - top < height * shrink):
        shrink //= 2
    region = [edge / shrink for edge in (x1 + left, y1 + top, x1 + right, y1 + bottom)]
    # whole pixels around the region, none of them from outside of the box
    limits = [round(edge / shrink) for edge in (x1, y1, x2, y2)]
    part = (
        max(math.floor(region[0]), limits[0]),
        max(math.floor(region[1]), limits[1]),
        min(math.ceil(region[2]), max(limits[2], limits[0] + 1)),
        min(math.ceil(region[3]), max(limits[3], limits[1] + 1)),
    )
    pixels = image.read(part, shrink, channels)
    inside = [
        min(max(edge - part[axis], 0.0), float(part[axis + 2] - part[axis]))
        for edge, axis in zip(region, (0, 1, 0, 1), strict=True)
    ]
    result = resize(pixels, (inside[0], inside[1], inside[2], inside[3]), (height, width), interpolation, exact)
    if frame is not None:
        framed = torch.full((channels, *full), PADDING, dtype=torch.uint8)
        framed[:, *frame] = result
        result = framed
    flips = [axis for axis, flip in ((1, flip_y), (2, flip_x)) if flip]
    if flips:
        result = result.flip(flips)
    return result.mT if transposed else result


def resize(pixels: np.ndarray, region: Region, size: tuple[int, int], interpolation: str, exact: bool) -> torch.Tensor:
    """Resize a region of `pixels`, uint8 (H, W, channels), to uint8 (channels, *size), antialiased."""
    height, width = size
    x1, y1, x2, y2 = (round(edge) for edge in region)
    moved = max(
        max(abs(region[0] - x1), abs(region[2] - x2)) * width / (region[2] - region[0]),
        max(abs(region[1] - y1), abs(region[3] - y2)) * height / (region[3] - region[1]),
    )
    if interpolation in RESIZED_BY_TORCH and moved <= (0 if exact else 0.5) and x1 < x2 and y1 < y2:
        # copied out and in this order of dimensions torch sees the channels_last layout, for which it is fast
        part = torch.from_numpy(np.ascontiguousarray(pixels[None, y1:y2, x1:x2])).permute(0, 3, 1, 2)
        return interpolate(part, size, mode=interpolation, antialias=True)[0]
    flat = pixels if pixels.shape[2] == 3 else pixels[..., 0]
    image = Image.fromarray(flat).resize((width, height), INTERPOLATIONS[interpolation], box=region)
    return torch.from_numpy(np.array(image)).reshape(height, width, -1).permute(2, 0, 1)
