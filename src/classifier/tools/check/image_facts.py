"""One image file, read to its end -> what there is to know about it."""

import hashlib
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from classifier.data.check import cause_of
from classifier.data.decode import cut_and_resize
from classifier.data.jpeg import ORIENTATION_TAG
from classifier.data.picture import Box, Picture
from classifier.data.stored import ArrayImage, PillowImage, StoredImage, exif_of, open_image
from classifier.data.upright import everything
from classifier.tools.check.remarks import Kind

THUMBNAIL = 16  # pixels of a side
PNG_DEPTH = 24  # where a PNG says how many bits it has
TIFF_BITS = 258  # tag
SAME_CONTENT = {"MPO": "JPEG"}  # several JPEGs in a file: what some cameras write as .jpg


@dataclass(frozen=True)
class Facts:
    """What is known of an image.

    Args:
        width, height: As stored, in pixels; 0 where they cannot be known.
        problem: Why it cannot be used, and the reason in words; None of a good one.
        notes: What is unusual about it, with a detail.
        digest: The same for equal files, or equal pixels; empty where it cannot be read.
        thumbnails: uint8 (boxes, 16, 16), grey and upright, of each box, or (1, 16, 16) of the whole image.
    """

    width: int = 0
    height: int = 0
    problem: tuple[Kind, str] | None = None
    notes: dict[Kind, str] = field(default_factory=dict)
    digest: bytes = b""
    thumbnails: np.ndarray = field(default_factory=lambda: np.zeros((0, THUMBNAIL, THUMBNAIL), np.uint8))


def facts_of(picture: Picture, boxes: np.ndarray | None = None) -> Facts:
    """Read a picture to its end; raises nothing that is the picture's fault.

    Args:
        boxes: int32 (boxes, 4) as (x1, y1, x2, y2) in stored pixels, half-open, which may leave the image; None for
            all of it.
    """
    digest, width, height, notes = b"", 0, 0, {}
    try:
        if isinstance(picture, Path):
            content = picture.read_bytes()
            if not content:
                return Facts(problem=(Kind.EMPTY, "0 bytes"))
            digest = _digest(content)
            with Image.open(BytesIO(content)) as image:
                width, height = image.size
                notes = {**_mode_notes(image, content), **_file_notes(image, picture)}
            stored: StoredImage = PillowImage(Image.open(BytesIO(content)))
        else:
            pixels = np.asarray(picture)
            height, width = pixels.shape[:2]
            digest = _digest(np.ascontiguousarray(pixels).tobytes(), pixels.shape)
            notes = _mode_notes(picture) if isinstance(picture, Image.Image) else {}
            stored = open_image(pixels)
        if boxes is not None:  # decoded once, to the end, wherever they lie
            stored = ArrayImage(stored.read((0, 0, width, height), 1, channels=1), stored.orientation)
        thumbnails = [_thumbnail(stored, box) for box in _inside(boxes, width, height)]
    except Exception as error:  # whatever a Pillow plugin meets on damaged bytes
        return Facts(width, height, _problem(error), digest=digest)
    return Facts(width, height, None, notes, digest, np.stack(thumbnails))


def _digest(content: bytes, shape: tuple[int, ...] = ()) -> bytes:
    return hashlib.blake2b(content, digest_size=16, salt=repr(shape).encode()[:16]).digest()


def _inside(boxes: np.ndarray | None, width: int, height: int) -> list[Box | None]:
    """The boxes, cut at the edge; what has no part inside stands for the whole image, and is remarked elsewhere."""
    if boxes is None:
        return [None]
    cut = np.clip(boxes, 0, (width, height, width, height)).tolist()
    return [(x1, y1, x2, y2) if x2 > x1 and y2 > y1 else None for x1, y1, x2, y2 in cut]


def _thumbnail(image: StoredImage, box: Box | None) -> np.ndarray:
    size = (THUMBNAIL, THUMBNAIL)
    pixels: np.ndarray = cut_and_resize(image, box, everything, size, "bilinear", channels=1, exact=True).numpy()[0]
    return pixels


def _problem(error: Exception) -> tuple[Kind, str]:
    cause, reason = cause_of(error)
    if isinstance(cause, Image.DecompressionBombError):
        return Kind.BOMB, reason
    cut_off = any(words in reason.lower() for words in ("truncated", "cut off"))
    return Kind.TRUNCATED if cut_off else Kind.UNREADABLE, reason


def _mode_notes(image: Image.Image, content: bytes = b"") -> dict[Kind, str]:
    notes = {}
    bits = content[PNG_DEPTH] if image.format == "PNG" else 0
    if image.format == "TIFF":
        bits = max(image.tag_v2.get(TIFF_BITS, (0,)))  # type: ignore[attr-defined]
    if image.mode[0] in "IF" or bits > 8:
        notes[Kind.DEEP] = f"mode {image.mode}"
    if image.mode == "CMYK":
        notes[Kind.CMYK] = ""
    if image.mode in ("P", "PA"):
        notes[Kind.PALETTE] = ""
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        notes[Kind.ALPHA] = ""
    return notes


def _file_notes(image: Image.Image, path: Path) -> dict[Kind, str]:
    notes = {}
    form = SAME_CONTENT.get(image.format or "", image.format)
    named = Image.registered_extensions().get(path.suffix.lower())
    if form != named:
        notes[Kind.EXTENSION] = f"{form} content"
    if image.format != "MPO" and getattr(image, "is_animated", False):
        notes[Kind.ANIMATED] = ""
    orientation = exif_of(image).get(ORIENTATION_TAG, 1)  # of TIFFs, too
    if orientation in range(2, 9):
        notes[Kind.ROTATED] = f"orientation {orientation}"
    return notes
