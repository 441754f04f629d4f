"""A file on disk -> RGB (or grey) pixels of a wanted size: the one function that every verb uses."""

import math
import os
import stat
from collections.abc import Callable
from contextlib import nullcontext, suppress
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import SAMPLEFORMAT, TILELENGTH, TILEWIDTH, TiffImageFile
from torch.nn.functional import interpolate

from classifier.data import jpeg
from classifier.data.jpeg import ORIENTATION_TAG
from classifier.data.notes import AVIF, PNG, without_notes
from classifier.data.samples import readable
from classifier.errors import UserError
from classifier.untrusted import content_of

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")  # for others Pillow may start a program
UNKNOWN = "not an image, or of a format that Pillow does not read"
MOST_BYTES = 1_500_000_000  # while an image is decoded
LIBRARIES = {"WEBP": 8, "AVIF": 8}  # bytes a pixel that they take besides Pillow
WHITE = {"bool": 1, "uint16": 65535}
ROUNDING = 0.01  # by which resized fractions leave 0 to 1

Picture = str | Path | np.ndarray | Image.Image
"""What can be read: a file, numbers (H, W) or (H, W, 1 or 3) as `to_uint8` takes them, or a Pillow image."""

ValueRange = tuple[float, float]
"""The values that become black and white."""

Box = tuple[int, int, int, int]
"""x1, y1, x2, y2 in pixels of the stored image, which is not turned upright yet; half-open."""

Region = tuple[float, float, float, float]
"""x1, y1, x2, y2 in pixels."""

Crop = Callable[[int, int], Region]
"""(width, height) of the upright image or box -> the part of it to keep, (x1, y1, x2, y2) in its pixels."""


def open_image(picture: "Picture | StoredImage", value_range: ValueRange | None = None) -> "StoredImage":
    """Read a file and its header, or take what is in memory; `value_range` as in `to_uint8`."""
    if isinstance(picture, StoredImage):
        return picture
    if isinstance(picture, np.ndarray):
        return ArrayImage(picture, value_range=value_range)
    if isinstance(picture, Image.Image):
        return PillowImage(picture, value_range=value_range)
    require_file(picture)
    data = Path(picture).read_bytes()
    plain = jpeg.parse(data) if data.startswith(jpeg.START) else None
    return plain or PillowImage(opened(data), ours=True, value_range=value_range)


def require_file(path: str | Path) -> int:
    """The length of a file in bytes.

    Raises:
        OSError: It is something else, such as a named pipe, that to read would wait or never end; or it is not there.
    """
    try:
        status = os.stat(path)  # noqa: PTH116 - for each file that is checked
    except FileNotFoundError:
        if Path(path).is_symlink():
            raise OSError(f"a link to {readable(str(Path(path).readlink()))}, which does not exist") from None
        raise
    if not stat.S_ISREG(status.st_mode):
        kinds = {"p": "named pipe", "s": "socket", "d": "folder"}
        raise OSError(f"a {kinds.get(stat.filemode(status.st_mode)[0], 'device')} and not a file: remove it")
    return status.st_size


def opened(file: IO[bytes] | bytes) -> Image.Image:
    """Read a file's header with Pillow; every image file that is opened is opened here, or by `jpeg.parse`.

    A PNG's notes are left out where Pillow refuses them, as they are long or damaged: its limits are settings of the
    whole process. Of bytes, which are to be decoded, those behind the pixels always are.

    Raises:
        DecompressionBombError: It would take too much memory, even at the least size that it can be decoded at.
        Exception: Whatever else Pillow raises on what is not an image in one of `FORMATS`.
    """
    try:
        stream = BytesIO(without_notes(file, all_of_them=False)) if isinstance(file, bytes) else file
        image = Image.open(stream, formats=FORMATS)
    except Image.DecompressionBombError:
        raise
    except Exception as error:  # whatever a Pillow plugin meets on damaged bytes
        if not isinstance(file, bytes):
            file.seek(0)
            start = file.read(512)
            file = start + file.read() if start.startswith(PNG) or start[4:12] in AVIF else start
        try:
            if not file.startswith(PNG) and file[4:12] not in AVIF:
                raise
            image = Image.open(BytesIO(without_notes(file, all_of_them=True)), formats=FORMATS)
        except UnidentifiedImageError:
            raise UnidentifiedImageError(content_of(file[:512]) or UNKNOWN) from error
    require_memory(image, 8 if image.format == "JPEG" else 1)
    if isinstance(image, TiffImageFile) and image.mode == "L" and 2 in image.tag_v2.get(SAMPLEFORMAT, ()):
        raise ValueError("8 bits with a sign, which Pillow takes for bright: save it with 16 bits")
    return image


def require_memory(image: Image.Image, shrink: int, most: int = 0) -> None:
    """Refuse an image whose decoding at 1 / `shrink` of the size takes more than `MOST_BYTES`.

    Args:
        most: Bytes a pixel, where more than usual.

    Raises:
        DecompressionBombError: With the size.
    """
    width, height = image.size
    pixels = width * height // shrink**2
    if isinstance(image, TiffImageFile):  # of which a whole tile is decoded at once, however small the image is
        pixels = max(pixels, image.tag_v2.get(TILEWIDTH, 0) * image.tag_v2.get(TILELENGTH, 0))
    simple = image.mode in ("1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB") and "transparency" not in image.info
    # Pillow's own pixels, and a copy in another mode or two: as measured, without the file
    if (needed := pixels * (most or (14 if simple else 20) + LIBRARIES.get(image.format or "", 0))) > MOST_BYTES:
        size = f"{width}x{height} pixels of mode {image.mode} take {needed / 1e9:.1f} GB to decode"
        raise Image.DecompressionBombError(f"{size}, of {MOST_BYTES / 1e9:.1f} at most: make it smaller, or a JPEG")


def exif_orientation(image: Image.Image) -> int:
    """What stands before the pixels, which are not decoded; 1 where it is damaged, since the pixels are not.

    A PNG can have it after them. Pillow's own method for PNGs decodes all of one to find out, which takes hundreds of
    times as long as the header, so that no caller looks for it there.
    """
    orientation = 1
    with suppress(Exception):
        orientation = Image.Image.getexif(image).get(ORIENTATION_TAG, 1)
    return orientation


def orientation_of(image: Image.Image) -> int:
    """EXIF's, 1 to 8, by which the image has yet to be turned."""
    # Pillow turns TIFFs itself, and gives their size as turned
    return 1 if image.format == "TIFF" else exif_orientation(image)


class PillowImage:
    """An image in any format that Pillow reads; the part is cut out after all of it is decoded.

    Args:
        ours: Whether it may be decoded at a fraction of its size, which changes it for whoever else has it.
    """

    def __init__(self, image: Image.Image, ours: bool = False, value_range: ValueRange | None = None) -> None:
        self.image = image
        self.width, self.height = image.size
        self.orientation = orientation_of(image)
        self.max_shrink = 8 if ours and image.format == "JPEG" else 1
        tiles: Any = getattr(image, "tile", ())  # of files that are not decoded yet
        self.states_white = image.format == "PPM" and bool(tiles) and tiles[0][0] != "raw"  # and Pillow stretches it
        self.value_range = None if self.states_white else value_range
        self.is_deep = image.mode[0] in "IF" or ";16" in repr(tiles)

    def read(self, part: Box, shrink: int, channels: int) -> np.ndarray:
        image = self.image
        if shrink > 1:
            image.draft(None, (self.width // shrink, self.height // shrink))
        require_memory(image, 1)
        if self.is_deep and (image.mode[0] in "IF" or self.value_range):
            x1, y1, x2, y2 = part
            values = self.values()[y1:y2, x1:x2]
            pixels = to_uint8(values, self.value_range)
            if values.shape[2:] == (4,):  # how opaque they are
                pixels[..., 3] = values[..., 3] >> 8
            cut = Image.fromarray(pixels)
        else:
            cut = image.crop(part)
        if cut.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in cut.info:
            rgba = cut.convert("RGBA")
            opaque = Image.new("RGBA", rgba.size, "white")
            cut = Image.alpha_composite(opaque, rgba)
        mode = "RGB" if channels == 3 else "L"
        cut = cut if cut.mode == mode else cut.convert(mode)
        return np.array(cut).reshape(cut.height, cut.width, channels)

    def values(self) -> np.ndarray:
        """The numbers of a deep image that is not decoded yet, (H, W) or (H, W, 3 or 4)."""
        image: Any = self.image
        if image.mode[0] in "IF":
            values = np.array(image)
            return values.astype(np.uint16) if image.format == "PPM" and image.mode == "I" else values
        require_memory(image, 1, 40)
        # of colours, Pillow gives the upper 8 bits; read in the other order of bytes, it gives the lower ones
        other: Any = opened(image.fp)
        other.tile = [_swapped(tile) for tile in other.tile]
        lower = np.asarray(other)
        both: np.ndarray = np.asarray(image).astype(np.uint16) << 8 | lower
        return both


def _swapped(tile: Any) -> Any:
    """What Pillow knows of colours of 16 bits that it is to decode, in the other order of bytes."""
    raw, *more = (tile.args,) if isinstance(tile.args, str) else tile.args
    if raw[:-1] not in ("RGB;16", "RGBA;16", "RGBX;16"):
        raise ValueError(f"{raw} is read from 0 to 65535 alone: use data.value_range=null")
    return tile._replace(args=(raw[:-1] + ("L" if raw.endswith("B") else "B"), *more))


class ArrayImage:
    """Numbers as `to_uint8` takes them, (H, W) or (H, W, 1 or 3)."""

    max_shrink = 1

    def __init__(self, values: np.ndarray, orientation: int = 1, value_range: ValueRange | None = None) -> None:
        self.orientation, self.value_range = orientation, value_range
        self.stored = values if values.ndim == 3 else values[..., None]
        self.height, self.width, self.channels = self.stored.shape
        if values.dtype.kind not in "biuf" or self.channels not in (1, 3):
            raise ValueError(f"{values.dtype} {values.shape} is not one of numbers (H, W) or (H, W, 3)")

    def read(self, part: Box, shrink: int, channels: int) -> np.ndarray:
        x1, y1, x2, y2 = part
        cut = to_uint8(self.stored[y1:y2, x1:x2], self.value_range)
        if self.channels != channels:
            grey = self.channels == 1
            cut = np.repeat(cut, 3, axis=2) if grey else np.array(Image.fromarray(cut).convert("L"))[..., None]
        return cut if cut.flags.writeable else cut.copy()  # torch wants to be able to write


def deep_values(picture: Picture) -> np.ndarray | None:
    """The numbers of an image of more than 8 bits, as stored; None for others, which are not decoded."""
    if isinstance(picture, np.ndarray):
        return None if picture.dtype in (np.uint8, np.bool_) else picture
    if not isinstance(picture, Image.Image):
        require_file(picture)
    with nullcontext(picture) if isinstance(picture, Image.Image) else opened(Path(picture).read_bytes()) as image:
        stored = PillowImage(image)
        values = stored.values() if stored.is_deep and not stored.states_white else None
        return values[..., :3] if values is not None and values.ndim == 3 else values  # not how opaque they are


StoredImage = jpeg.PlainJpeg | PillowImage | ArrayImage
"""An image as it is stored, `width` by `height` pixels that are perhaps not decoded yet.

`orientation` is EXIF's: 1 is upright. `read` gives a part at 1 / `shrink` of the size, down to 1 / `max_shrink`: uint8
(height, width, channels).
"""


def to_uint8(values: np.ndarray, value_range: ValueRange | None) -> np.ndarray:
    """Numbers stretched to 0 to 255, by one rule for all images of a kind, and cut where they lie outside.

    Those of 8 bits and truth values keep their meaning. Of all others, `value_range` becomes black and white, and nan
    black. Without it, that is 0 to 65535 for uint16 and 0 to 1 for fractions.

    Raises:
        ValueError: There is no rule for such numbers: what is white cannot be read from an image.
    """
    if values.dtype == np.uint8:
        return values
    black, white = value_range if value_range and values.dtype != bool else known_range(values)
    scaled = values.astype(np.result_type(values, np.float32))
    scaled -= black
    scaled *= 255 / (white - black)
    np.rint(np.nan_to_num(scaled, copy=False), out=scaled)
    return np.clip(scaled, 0, 255, out=scaled).astype(np.uint8)


def known_range(values: np.ndarray) -> ValueRange:
    """The values that become black and white where none are stated; raises like `to_uint8`."""
    if values.dtype.name in WHITE:
        return 0, WHITE[values.dtype.name]
    low, high = (float(least.reduce(values, axis=None)) for least in (np.fmin, np.fmax))  # of all but nan
    fractions = values.dtype.kind == "f" and low >= -ROUNDING and high <= 1 + ROUNDING
    if fractions and not np.isnan(values.min()):
        return 0, 1
    found = f"{values.dtype} values from {low:g} to {high:g}" + " and some of nan, which is no number" * fractions
    advice = "data.value_range=[0,1] makes nan black" if fractions else "as data.value_range=[0,65535]"
    raise ValueError(f"{found}: say what is black and white in all images, {advice}")


class ImageError(UserError):
    """A file that cannot be decoded; the message names it."""


def unreadable(picture: Picture | StoredImage, error: Exception) -> ImageError:
    """The error to raise for what cannot be opened or decoded."""
    name = picture if isinstance(picture, (str, Path)) else f"of the type {type(picture).__name__}"
    return ImageError(
        f"cannot read the image {name} ({image_problem(error)}): "
        "mend or remove it, or leave all such files out with data.check=full data.on_error=skip"
    )


def image_problem(error: BaseException) -> str:
    """What is wrong with a file that Pillow could not read, without Pillow's internals."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


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
    try:
        image = open_image(picture)
    except Exception as error:  # whatever a Pillow plugin meets on damaged bytes
        raise unreadable(picture, error) from error
    return image.width, image.height, image.orientation


INTERPOLATIONS = {name: Image.Resampling[name.upper()] for name in ("nearest", "bilinear", "bicubic", "lanczos")}


def decode(
    picture: Picture | StoredImage,
    box: Box | None,
    crop: Crop,
    size: tuple[int, int],
    interpolation: str = "bilinear",
    channels: int = 3,
    exact: bool = True,
    value_range: ValueRange | None = None,
) -> torch.Tensor:
    """Read a picture, cut `box` and then `crop` out of it, and resize that part, antialiased.

    JPEGs are decoded at 1/2, 1/4 or 1/8 of their size where that is still at least the wanted one, and no further
    down than the crop. EXIF orientation is applied, the first frame of an animation is taken, and transparency is laid
    on white. Where the crop leaves the box, the result is grey.

    Args:
        box: Part of the stored (not yet rotated) image, in pixels, inside the image; None for all of it.
        size: Height and width of the result, in pixels.
        interpolation: One of `INTERPOLATIONS`.
        channels: 3 for RGB, 1 for grey.
        exact: Keep the fractions of pixels in the crop's edges. Without, edges may move by half a pixel of the result,
            which is faster, and no loss to a crop that is drawn at random.
        value_range: The values of more than 8 bits, and of fractions, that become black and white; see `to_uint8`.

    Returns:
        uint8 (channels, height, width).

    Raises:
        ImageError: The file is missing, damaged, in a format that Pillow does not read, or does not say what is white.
    """
    try:
        image = open_image(picture, value_range)
        box = box or (0, 0, image.width, image.height)
        width, height = box[2] - box[0], box[3] - box[1]
        turned = image.orientation in TRANSPOSED
        left, top, right, bottom = crop(height, width) if turned else crop(width, height)
        if turned:  # from here on, x and y are the stored image's
            left, top, right, bottom, size = top, left, bottom, right, (size[1], size[0])
        if image.orientation in FLIPPED_X:
            left, right = width - right, width - left
        if image.orientation in FLIPPED_Y:
            top, bottom = height - bottom, height - top
        left, right, columns = _inside(left, right, width, size[1])
        top, bottom, rows = _inside(top, bottom, height, size[0])
        wanted = rows.stop - rows.start, columns.stop - columns.start
        shrink = image.max_shrink
        while shrink > 1 and (right - left < wanted[1] * shrink or bottom - top < wanted[0] * shrink):
            shrink //= 2
        x1, x2, left, right = _around(left, right, box[0], box[2], shrink)
        y1, y2, top, bottom = _around(top, bottom, box[1], box[3], shrink)
        pixels = image.read((x1, y1, x2, y2), shrink, channels)
        result = resize(pixels, (left, top, right, bottom), wanted, interpolation, exact)
        if wanted != size:
            framed = torch.full((channels, *size), 128, dtype=torch.uint8)  # grey
            framed[:, rows, columns] = result
            result = framed
        if flips := [axis for axis, turns in ((1, FLIPPED_Y), (2, FLIPPED_X)) if image.orientation in turns]:
            result = result.flip(flips)
        return result.mT if turned else result
    except Exception as error:
        # Pillow's plugins raise whatever their parser meets on damaged bytes: OSError, SyntaxError, ValueError, ...
        raise unreadable(picture, error) from error


def _inside(start: float, stop: float, length: int, pixels: int) -> tuple[float, float, slice]:
    """Along one axis, the part of a crop that lies in a box of this length, and its place in the result."""
    first, last = max(start, 0.0), min(stop, float(length))
    begin = round((first - start) * pixels / (stop - start))
    return first, last, slice(begin, max(round((last - start) * pixels / (stop - start)), begin + 1))


def _around(start: float, stop: float, low: int, high: int, shrink: int) -> tuple[int, int, float, float]:
    """Along one axis, the whole pixels around a part of the box from `low` to `high`, and where in them the part is."""
    first, last, least = (low + start) / shrink, (low + stop) / shrink, round(low / shrink)
    # none of them from outside of the box
    begin, end = max(math.floor(first), least), min(math.ceil(last), max(round(high / shrink), least + 1))
    start, stop = (min(max(edge - begin, 0.0), float(end - begin)) for edge in (first, last))
    return begin, end, start, stop


def resize(pixels: np.ndarray, region: Region, size: tuple[int, int], interpolation: str, exact: bool) -> torch.Tensor:
    """Resize a region of `pixels`, uint8 (H, W, channels), to uint8 (channels, *size), antialiased."""
    height, width = size
    x1, y1, x2, y2 = (round(edge) for edge in region)
    moved = max(
        max(abs(region[0] - x1), abs(region[2] - x2)) * width / (region[2] - region[0]),
        max(abs(region[1] - y1), abs(region[3] - y2)) * height / (region[3] - region[1]),
    )
    # torch is four times as fast as Pillow, and differs by rounding
    if interpolation in ("bilinear", "bicubic") and moved <= (0 if exact else 0.5) and x1 < x2 and y1 < y2:
        # copied out and in this order of dimensions torch sees the channels_last layout, for which it is fast
        part = torch.from_numpy(np.ascontiguousarray(pixels[None, y1:y2, x1:x2])).permute(0, 3, 1, 2)
        return interpolate(part, size, mode=interpolation, antialias=True)[0]
    flat = pixels if pixels.shape[2] == 3 else pixels[..., 0]
    image = Image.fromarray(flat).resize((width, height), INTERPOLATIONS[interpolation], box=region)
    return torch.from_numpy(np.array(image)).reshape(height, width, -1).permute(2, 0, 1)
