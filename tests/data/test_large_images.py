"""Small files of large images: refused by their header, before they take memory."""

import resource
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from classifier.data.check import image_size
from classifier.data.image import MOST_BYTES, decode, everything, opened, upright_size
from classifier.data.image import ImageError as DecodeError
from classifier.data.image_facts import image_facts
from tests.generate import picture, save
from tests.verbs.command import FORKS

HEADERS = (b"P6 12000 12000 255\n", b"P5 12000 12000 65535\n")  # of RGB and 16 bits; Pillow takes as many pixels


def test_by_the_header(tmp_path: Path) -> None:
    path = tmp_path / "x.ppm"
    for header in HEADERS:
        path.write_bytes(header)
        for read in (lambda path: image_size(path, "quick"), upright_size, opened):
            with pytest.raises((DecodeError, Image.DecompressionBombError), match="12000x12000"):
                read(path)
        assert [*image_facts(path).notes] == ["too many pixels"]


def test_of_a_tile(tmp_path: Path) -> None:
    header = struct.pack("<2sHIH", b"II", 42, 8, 9)
    tags = [(256, 4), (257, 4), (258, 8), (259, 8), (262, 1), (322, 50_000), (323, 50_000), (324, 200), (325, 20)]
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags) + bytes(4)
    (tmp_path / "x.tif").write_bytes((header + body).ljust(200, b"\0") + zlib.compress(bytes(64)))
    with pytest.raises(Image.DecompressionBombError, match="4x4"):
        opened(tmp_path / "x.tif")


def test_a_jpeg_is_read_at_a_fraction(tmp_path: Path) -> None:
    """Of more pixels than another format may have."""
    path = tmp_path / "x.jpg"
    Image.new("L", (10_500, 10_500)).save(path, quality=5)
    with pytest.warns(Image.DecompressionBombWarning):
        assert decode(path, None, everything, (32, 32)).shape == (3, 32, 32)


def growth(path: Path) -> int:
    """By how many bytes a process grows while it refuses an image."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DecodeError):
        decode(path, None, everything, (32, 32))
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def test_the_refusal_takes_no_memory(tmp_path: Path) -> None:
    (tmp_path / "x.ppm").write_bytes(HEADERS[1])
    with FORKS.Pool(1) as pool:
        assert pool.apply(growth, (tmp_path / "x.ppm",)) < MOST_BYTES / 10


def test_only_formats_of_the_list(tmp_path: Path) -> None:
    """Whatever a file is called: for an EPS, Pillow would start Ghostscript."""
    for kind in ("EPS", "ICO", "TGA", "PCX"):
        path = save(picture("red", (48, 32)), tmp_path / f"{kind}.jpg", format=kind)
        with Image.open(path) as image:
            assert image.format == kind
        with pytest.raises(DecodeError, match=path.name):
            decode(path, None, everything, (32, 32))
