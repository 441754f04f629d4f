"""An image, read to its end -> its size, what is wrong with it or unusual, and what to recognise copies by."""

import hashlib
import re
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from classifier.data.check import cause_of, note_on_values
from classifier.data.image import (
    ArrayImage,
    Box,
    Picture,
    PillowImage,
    decode,
    deep_values,
    everything,
    exif_orientation,
    opened,
    require_file,
)

THUMBNAIL = 16  # pixels of a side


class Facts(NamedTuple):
    """What is known of an image.

    Args:
        width, height: As stored, in pixels; 0 where it cannot be used.
        notes: What is wrong or unusual, as kinds of `tools.check_data.KINDS`, each with a detail.
        digest: The same for equal files, or equal pixels; empty where it cannot be read.
        thumbnails: uint8 (boxes, 16, 16), grey and upright, of each box, or (1, 16, 16) of the whole image.
    """

    width: int
    height: int
    notes: dict[str, str]
    digest: bytes
    thumbnails: np.ndarray


def image_facts(
    picture: Picture, boxes: np.ndarray | None = None, value_range: tuple[float, float] | None = None
) -> Facts:
    """Read a picture to its end; raises nothing that is the picture's fault.

    Args:
        boxes: int32 (boxes, 4) as (x1, y1, x2, y2) in stored pixels, half-open, which may leave the image; None for
            all of it.
        value_range: As in `to_uint8`.
    """
    try:
        picture = Path(picture) if isinstance(picture, str) else picture
        if isinstance(picture, Path):
            require_file(picture)
            content = picture.read_bytes()
            if not content:
                return _unusable("empty file", "0 bytes")
            digest = hashlib.blake2b(content).digest()
            with opened(BytesIO(content)) as image:
                width, height = image.size
                notes = _notes(image, content, picture)
            stored: ArrayImage | PillowImage = PillowImage(opened(content), ours=True, value_range=value_range)
        else:
            pixels = np.asarray(picture)
            height, width = pixels.shape[:2]
            digest = hashlib.blake2b(pixels.tobytes() + repr(pixels.shape).encode()).digest()
            notes = _notes(picture) if isinstance(picture, Image.Image) else {}
            stored = ArrayImage(pixels, value_range=value_range)
        if isinstance(stored, ArrayImage) or stored.is_deep:
            with suppress(Exception):  # decoding says why
                notes |= note_on_values(deep_values(picture), value_range)
        if boxes is None:
            return Facts(width, height, notes, digest, _thumbnail(stored)[None])
        # decoded once, to the end, wherever they lie
        stored = ArrayImage(stored.read((0, 0, width, height), 1, channels=1), stored.orientation)
        cut = np.clip(boxes, 0, (width, height, width, height)).tolist()
        # what has no part inside stands for the whole image, and is reported elsewhere
        thumbnails = [_thumbnail(stored, (a, b, c, d) if c > a and d > b else None) for a, b, c, d in cut]
        return Facts(width, height, notes, digest, np.stack(thumbnails))
    except Exception as error:  # whatever a Pillow plugin meets on damaged bytes
        cause, reason = cause_of(error)
        if isinstance(cause, Image.DecompressionBombError):
            return _unusable("too many pixels", reason)
        return _unusable("truncated" if re.search("truncated|cut off", reason.lower()) else "unreadable", reason)


def _unusable(kind: str, detail: str) -> Facts:
    return Facts(0, 0, {kind: detail}, b"", np.zeros((1, THUMBNAIL, THUMBNAIL), np.uint8))


def _thumbnail(image: ArrayImage | PillowImage, box: Box | None = None) -> np.ndarray:
    return np.asarray(decode(image, box, everything, (THUMBNAIL, THUMBNAIL), channels=1)[0])


def _notes(image: Image.Image, content: bytes = b"", path: Path | None = None) -> dict[str, str]:
    """What is unusual about an image, and where it is a file, about that."""
    deep = image.mode[0] in "IF" or (image.format == "PNG" and content[24] > 8)  # its byte of bits per channel
    found = {
        "16 bits": f"mode {image.mode}" if deep else None,
        "CMYK": "" if image.mode == "CMYK" else None,
        "palette": "" if image.mode in ("P", "PA") else None,
        "transparency": "" if image.mode[-1] in "Aa" or "transparency" in image.info else None,
    }
    if path is not None:
        several = image.format == "MPO"  # JPEGs in a file: what some cameras write as .jpg
        form = "JPEG" if several else image.format
        orientation = exif_orientation(image)  # of TIFFs, too
        animated = not several and getattr(image, "is_animated", False)
        right = form == Image.registered_extensions().get(path.suffix.lower())
        found["wrong extension"] = None if right else f"{form} content"
        found["several frames"] = "" if animated else None
        found["turned by EXIF"] = f"orientation {orientation}" if orientation in range(2, 9) else None
    return {kind: detail for kind, detail in found.items() if detail is not None}
