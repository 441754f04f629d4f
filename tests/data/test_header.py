"""The header scan says what Pillow says, or nothing."""

import struct
import zlib
from io import FileIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from classifier.data.jpeg import Header, scan
from tests.generate import picture, save


def header(path: Path) -> Header | None:
    with FileIO(path) as file:
        return scan(file, path.stat().st_size)


@pytest.mark.parametrize(
    ("suffix", "mode", "options"),
    [
        ("jpg", "RGB", {}),
        ("jpg", "RGB", {"progressive": True}),
        ("jpg", "L", {}),
        ("jpg", "CMYK", {}),
        ("jpg", "RGB", {"restart_marker_rows": 1, "comment": b"x" * 300}),
        ("jpg", "RGB", {"icc_profile": bytes(70_000)}),  # two segments, far longer than one read
        ("jpg", "RGB", {"icc_profile": bytes(4096 - 38 - 2 - 7)}),  # a segment over the edge of the first read
        ("png", "RGB", {}),
        ("png", "RGBA", {}),
        ("png", "P", {}),
        ("png", "1", {}),
        ("png", "I;16", {}),
    ],
)
def test_usual_files(suffix: str, mode: str, options: dict[str, object], tmp_path: Path) -> None:
    image = picture("red", (83, 61)).convert("L" if mode == "I;16" else mode).convert(mode)
    path = save(image, tmp_path / f"x.{suffix}", **options)
    assert header(path) == Header(83, 61, whole=True)
    path.write_bytes(path.read_bytes()[:-20])
    assert header(path) == Header(83, 61, whole=False)


@pytest.mark.parametrize("suffix", ["gif", "webp", "bmp", "tif", "ppm"])
def test_other_formats_are_left_to_pillow(suffix: str, tmp_path: Path) -> None:
    assert header(save(picture("red"), tmp_path / f"x.{suffix}")) is None


def test_exif_with_a_thumbnail_is_passed_over(tmp_path: Path) -> None:
    """The thumbnail has a header of its own."""
    thumbnail = save(picture("blue", (16, 12)), tmp_path / "thumbnail.jpg").read_bytes()
    whole = save(picture("red", (83, 61)), tmp_path / "x.jpg")
    content = whole.read_bytes()
    exif = b"Exif\0\0" + bytes(5000) + thumbnail
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    whole.write_bytes(content[:2] + segment + content[2:])
    assert header(whole) == Header(83, 61, whole=True)
    whole.write_bytes(content[:2] + segment)  # ends with an end mark, but it is the thumbnail's
    assert header(whole) is None


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_never_another_size_than_pillow(suffix: str, tmp_path: Path) -> None:
    """Of files with damaged headers, too."""
    path = save(picture("red", (83, 61)), tmp_path / f"x.{suffix}")
    content = path.read_bytes()
    end = content.index(b"\xff\xda") + 12 if suffix == "jpg" else 48
    random = np.random.default_rng(0)
    answered = 0
    for _ in range(600):
        damaged = bytearray(content)
        for place in random.integers(0, end, random.integers(1, 4)):
            damaged[place] = random.choice([0, 1, 0xC0, 0xD8, 0xFF, int(random.integers(256))])
        path.write_bytes(damaged)
        found = header(path)
        if found is not None:
            answered += 1
            try:
                with Image.open(path) as image:
                    assert image.size == (found.width, found.height)
            except OSError:
                pass  # Pillow looks into tables that are skipped here
    assert answered > 50


def png_header(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n\0\0\0\r" + chunk + struct.pack(">I", zlib.crc32(chunk))


def test_no_pixels_are_left_to_pillow(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(png_header(0, 5) + bytes(100))
    assert header(path) is None
