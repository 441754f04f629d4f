"""Small files of large images: refused by their header, before they take memory."""

import resource
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from classifier.data.check import image_size
from classifier.data.image import MOST_BYTES, decode, everything, open_file, upright_size
from classifier.data.image import ImageError as DecodeError
from classifier.tools.image_facts import image_facts
from tests.generate import picture, save
from tests.verbs.command import FORKS

SIDE = 12_000  # Pillow takes as many pixels
PNG = {"RGB": (8, 2), "I;16": (16, 0), "RGBA": (8, 6)}  # mode -> bits, kind of colour


def png(path: Path, mode: str, side: int = SIDE) -> Path:
    """A black picture, of a few kB."""
    bits, kind = PNG[mode]
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", side, side, bits, kind, 0, 0, 0)), (b"IDAT", zlib.compress(b"")),
              (b"IEND", b"")]  # fmt: skip
    parts = [struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
             for name, data in chunks]  # fmt: skip
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def test_by_the_header(tmp_path: Path) -> None:
    for path in [*(png(tmp_path / f"{bits}_{kind}.png", mode) for mode, (bits, kind) in PNG.items())]:
        for read in (lambda path: image_size(path, "quick"), upright_size, open_file):
            with pytest.raises((DecodeError, Image.DecompressionBombError), match=f"{SIDE}x{SIDE}"):
                read(path)
        assert [*image_facts(path).notes] == ["too many pixels"]


def test_of_a_tile(tmp_path: Path) -> None:
    header = struct.pack("<2sHIH", b"II", 42, 8, 9)
    tags = [(256, 4), (257, 4), (258, 8), (259, 8), (262, 1), (322, 50_000), (323, 50_000), (324, 200), (325, 20)]
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags) + bytes(4)
    (tmp_path / "x.tif").write_bytes((header + body).ljust(200, b"\0") + zlib.compress(bytes(64)))
    with pytest.raises(Image.DecompressionBombError, match="4x4"):
        open_file(tmp_path / "x.tif")


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
    with FORKS.Pool(1) as pool:
        assert pool.apply(growth, (png(tmp_path / "x.png", "I;16"),)) < MOST_BYTES / 10


def test_only_formats_of_the_list(tmp_path: Path) -> None:
    """Whatever a file is called: for an EPS, Pillow would start Ghostscript."""
    for kind in ("EPS", "ICO", "TGA", "PCX"):
        path = save(picture("red", (48, 32)), tmp_path / f"{kind}.jpg", format=kind)
        with Image.open(path) as image:
            assert image.format == kind
        with pytest.raises(DecodeError, match=path.name):
            decode(path, None, everything, (32, 32))
