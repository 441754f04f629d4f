"""Width and height of the common image files without a decoder: a few microseconds, where Pillow takes a hundred."""

import struct
import zlib
from io import FileIO
from typing import NamedTuple

from classifier.data.jpeg import END, FRAME_HEADER, FRAMES, SCAN, SEGMENT, START, TABLES_AND_NOTES, TAIL

HEAD = 4096  # bytes; holds the whole header of most files
PNG_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
PNG_END = b"IEND\xaeB`\x82"
PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}  # bits, by colour type


class Header(NamedTuple):
    """Size in pixels, and whether the file ends as a whole one does."""

    width: int
    height: int
    whole: bool


def scan(file: FileIO, length: int) -> Header | None:
    """The header of a JPEG or PNG of `length` bytes, in two reads.

    None for any other file, and for one that is unusual in any way: that decides nothing, Pillow is to judge it.
    """
    head = file.read(HEAD)
    if head.startswith(START):
        size, mark = _jpeg(file, head), END
    elif head.startswith(PNG_START):
        size, mark = _png(head), PNG_END
    else:
        return None
    if size is None or 0 in size:
        return None
    file.seek(max(0, length - TAIL))
    return Header(*size, whole=mark in file.read(TAIL))


def _png(head: bytes) -> tuple[int, int] | None:
    if len(head) < 33:
        return None
    width, height, depth, color = struct.unpack_from(">IIBB", head, 16)
    (checksum,) = struct.unpack_from(">I", head, 29)  # of the chunk's name and content
    usual = depth in PNG_DEPTHS.get(color, ()) and zlib.crc32(head[12:29]) == checksum
    return (width, height) if usual else None


def _jpeg(file: FileIO, head: bytes) -> tuple[int, int] | None:
    """Goes from segment to segment up to the first scan, as a decoder does."""
    size = None
    start, place = 0, 2  # where `head` is in the file, and the segment in `head`
    while True:
        if place + 10 > len(head):  # behind an EXIF thumbnail, say
            start, place = start + place, 0
            file.seek(start)
            head = file.read(HEAD)
            if len(head) < 10:
                return None
        fill, code, length = SEGMENT.unpack_from(head, place)
        if fill != 0xFF or length < 2:
            return None
        if code in FRAMES and size is None:
            bits, height, width, components = FRAME_HEADER.unpack_from(head, place + 4)
            if bits != 8 or components not in (1, 3, 4) or length != 8 + 3 * components:
                return None
            size = (width, height)
        elif code == SCAN:
            return size
        elif code not in TABLES_AND_NOTES:
            return None
        place += 2 + length
