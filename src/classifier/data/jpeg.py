"""JPEGs decoded in part: no rows below the crop, at a fraction of the size, by simplejpeg where it is installed."""

import struct
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

ORIENTATION_TAG = 0x0112  # EXIF
START = b"\xff\xd8\xff"
END = b"\xff\xd9"
TAIL = 64  # cameras pad some files after the end mark

SEQUENTIAL = (0xC0, 0xC1)
FRAMES = (*SEQUENTIAL, 0xC2)  # the last is progressive
SCAN = 0xDA
APP1 = 0xE1
TABLES_AND_NOTES = frozenset((0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)))
SEGMENT = struct.Struct(">BBH")  # 0xFF, kind, length without the first two
FRAME_HEADER = struct.Struct(">BHHB")  # bits, height, width, components


@dataclass(kw_only=True)
class PlainJpeg:
    """A grey or coloured JPEG of 8 bits whose pixels are not decoded yet; made by `parse`.

    Args:
        data: The file.
        width: In pixels, as stored.
        height: In pixels, as stored.
        orientation: EXIF's, 1 to 8.
        height_at: Where in `data` the height stands, if the file is one scan from top to bottom.
        block_rows: Rows that are decoded together.
    """

    data: bytes
    width: int
    height: int
    orientation: int
    height_at: int | None
    block_rows: int

    max_shrink = 8

    def read(self, part: tuple[int, int, int, int], shrink: int, channels: int) -> np.ndarray:
        """Decode at 1 / `shrink` of the size, and cut out `part`: uint8 (height, width, channels).

        Args:
            part: x1, y1, x2, y2 in pixels of the shrunken image.
            shrink: 1, 2, 4 or 8.
        """
        x1, y1, x2, y2 = part
        data, rows = self._without_rows_below(y2 * shrink)
        if simplejpeg is not None:
            try:
                pixels: np.ndarray = simplejpeg.decode_jpeg(
                    data,
                    "RGB" if channels == 3 else "GRAY",
                    min_height=-(-rows // shrink),
                    min_width=-(-self.width // shrink),
                    strict=data is self.data,  # or else it objects to the rows left out
                )
                return pixels[y1:y2, x1:x2]
            except ValueError:
                # some damage is bearable to Pillow; for the rest, it has the error messages
                data, rows = self.data, self.height
        mode = "RGB" if channels == 3 else "L"
        with JpegImageFile(BytesIO(data)) as image:
            image.draft(mode, (self.width // shrink, rows // shrink))
            cut = image.crop(part)
        # not np.asarray: torch wants to be able to write
        return np.array(cut if cut.mode == mode else cut.convert(mode)).reshape(y2 - y1, x2 - x1, channels)

    def _without_rows_below(self, end: int) -> tuple[bytes, int]:
        """The file with a header that ends the image at row `end` or soon after, and the number of rows it then has.

        Most of the time goes into the entropy code, which can be read from the top only: this saves what is below.
        """
        rows = (end // self.block_rows + 2) * self.block_rows  # a block more, since colours are interpolated
        if self.height_at is None or rows >= self.height:
            return self.data, self.height
        return b"".join((self.data[: self.height_at], struct.pack(">H", rows), self.data[self.height_at + 2 :])), rows


def parse(data: bytes) -> PlainJpeg | None:
    """Read the header; None for what is not a plain JPEG, and for what Pillow knows better how to handle."""
    exif, xmp = b"", b""
    frame, at = 0, 2
    while True:
        if at + 12 > len(data):
            return None
        fill, marker, length = SEGMENT.unpack_from(data, at)
        if fill != 0xFF:
            return None
        if marker == APP1:
            segment = data[at + 4 : at + 2 + length]
            if segment.startswith(b"Exif\0\0"):
                exif += segment[6:] if exif else segment
            else:
                xmp += segment
        elif marker in FRAMES:
            frame = at
        elif marker == SCAN:
            break
        elif marker not in TABLES_AND_NOTES:
            return None
        at += 2 + length
    if not frame:
        return None
    bits, height, width, components = FRAME_HEADER.unpack_from(data, frame + 4)
    # Pillow is the one to complain of more pixels than it may have
    if bits != 8 or components not in (1, 3) or not 0 < height * width <= (Image.MAX_IMAGE_PIXELS or 1 << 32):
        return None
    tags, orientation = Image.Exif(), 1
    if exif:
        with suppress(Exception):  # where it is damaged; the pixels are whole
            tags.load(exif)
            orientation = tags.get(ORIENTATION_TAG, 1)
    if ORIENTATION_TAG not in tags and b"tiff:Orientation" in xmp:
        return None
    one_scan = data[frame + 1] in SEQUENTIAL and data[at + 4] == components
    whole = END in data[-TAIL:]  # or else it must be decoded to where it was cut off, which raises
    return PlainJpeg(
        data=data,
        width=width,
        height=height,
        orientation=orientation,
        height_at=frame + 5 if one_scan and whole else None,
        block_rows=8 * max(data[frame + 11 + 3 * component] & 15 for component in range(components)),
    )
