import resource
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, ImageOps

from classifier.data.check import image_size
from classifier.data.image import INTERPOLATIONS, MOST_BYTES, Box, Region, decode, everything, open_image, upright_size
from classifier.data.image import ImageError as DecodeError
from classifier.data.image_facts import image_facts
from classifier.data.jpeg import ORIENTATION_TAG
from tests.data.chunks import chunk
from tests.generate import picture, save
from tests.verbs.command import FORKS


def whole(width: int, height: int) -> Region:
    return (0, 0, width, height)


def read(
    path: Path, box: Box | None = None, size: tuple[int, int] | None = None, channels: int = 3, **options: Any
) -> np.ndarray:
    """All of it as int (height, width[, channels]), in its own size where none is given."""
    if size is None:
        with Image.open(path) as image:
            size = (image.height, image.width)
    found = decode(path, box, whole, size, channels=channels, **options)
    assert found.dtype == torch.uint8
    assert found.shape == (channels, *size)
    pixels: np.ndarray = found.permute(1, 2, 0).squeeze(2).numpy().astype(int)
    return pixels


def noise(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3))
    return Image.fromarray(values.astype(np.uint8))


def with_orientation(image: Image.Image, path: Path, orientation: int) -> Path:
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    options = {"quality": 95, "subsampling": 0} if path.suffix == ".jpg" else {}
    return save(image, path, exif=exif, lossless=True, **options)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, suffix: str, orientation: int) -> None:
    stored = Image.new("RGB", (48, 32), (200, 0, 0))
    stored.paste((0, 200, 0), (0, 16, 24, 32))
    stored.paste((0, 0, 200), (24, 16, 48, 32))
    path = with_orientation(stored, tmp_path / f"x.{suffix}", orientation)
    stored.getexif()[ORIENTATION_TAG] = orientation
    upright = np.asarray(ImageOps.exif_transpose(stored), dtype=int)
    assert upright.shape[:2] == ((48, 32) if orientation > 4 else (32, 48))
    assert np.abs(read(path, size=upright.shape[:2]) - upright).max() <= 4


def test_a_size_is_known_without_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a PNG, too: Pillow's own way to its EXIF goes through the pixels."""
    plain, turned = save(picture("red", (48, 32)), tmp_path / "plain.png"), tmp_path / "turned.png"
    with_orientation(picture("red", (48, 32)), turned, 6)

    def refuse(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", refuse)
    assert [upright_size(path) for path in (plain, turned)] == [(48, 32), (32, 48)]


def test_an_orientation_behind_the_pixels_of_a_png_is_not_looked_for(tmp_path: Path) -> None:
    """Neither for the size nor in decoding: what matters most is that they agree."""
    path = with_orientation(noise(48, 32), tmp_path / "x.png", 6)
    content = path.read_bytes()
    at = content.index(b"eXIf") - 4
    end = at + 12 + int.from_bytes(content[at : at + 4], "big")
    path.write_bytes(content[:at] + content[end:-12] + content[at:end] + content[-12:])
    with Image.open(path) as image:
        assert image.getexif()[ORIENTATION_TAG] == 6
    assert upright_size(path) == (48, 32)
    assert np.array_equal(read(path), np.asarray(noise(48, 32)))


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_box_is_in_stored_pixels_and_a_crop_in_upright_ones(tmp_path: Path, suffix: str, orientation: int) -> None:
    stored = picture("red", (64, 48)).resize((320, 240), Image.Resampling.BICUBIC)
    path = with_orientation(stored, tmp_path / f"x.{suffix}", orientation)
    box = (32, 16, 272, 176)
    part = stored.crop(box)
    part.getexif()[ORIENTATION_TAG] = orientation
    upright = ImageOps.exif_transpose(part)
    region = (40, 16, 120, 136)
    seen: list[tuple[int, int]] = []

    def crop(width: int, height: int) -> Region:
        seen.append((width, height))
        return region

    found = decode(path, box, crop, (60, 40)).permute(1, 2, 0).numpy().astype(int)
    wanted = np.asarray(upright.crop(region).resize((40, 60), Image.Resampling.BILINEAR), dtype=int)
    assert seen == [upright.size]
    tolerance = 25 if suffix == "jpg" else 1  # a JPEG is decoded at half its size here
    assert np.abs(found - wanted)[1:-1, 1:-1].max() <= tolerance
    assert np.abs(found - wanted).mean() < 3


def test_16_bit_images_are_scaled_not_clipped(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    found = read(save(Image.fromarray(ramp), tmp_path / "x.png"))
    assert np.abs(found - (ramp / 257)[..., None]).max() <= 1
    assert abs(found.mean() - 127.5) < 1


@pytest.mark.parametrize("mode", ["L", "1", "CMYK", "YCbCr", "P", "I", "F"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGB", (16, 16), (255, 255, 255))
    image.paste((0, 0, 0), (8, 0, 16, 16))
    suffix = {"CMYK": "jpg", "YCbCr": "jpg", "I": "tif", "F": "tif"}.get(mode, "png")
    path = save(image.convert("L").convert(mode) if mode in "IF" else image.convert(mode), tmp_path / f"x.{suffix}")
    found = read(path, value_range=(0, 255) if mode in "IF" else None)
    assert np.abs(found - np.asarray(image, dtype=int)).max() <= 8
    assert found.shape == (16, 16, 3)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_the_first_frame_of_an_animation(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (16, 16), color) for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    path = save(frames[0], tmp_path / f"x.{suffix}", save_all=True, append_images=frames[1:])
    with Image.open(path) as image:
        assert getattr(image, "n_frames", 1) == 3
    assert np.abs(read(path) - (255, 0, 0)).max() <= 3


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / (np.mean((a - b) ** 2.0) + 1e-9)))


@pytest.mark.parametrize(
    ("box", "region"),
    [((20, 30, 100, 90), (0, 0, 80, 60)), (None, (7, 9, 87, 69)), ((10, 5, 110, 95), (11, 13, 91, 73))],
)
@pytest.mark.parametrize("shrink", [1, 2])
def test_box_and_crop_equal_cutting_by_hand(tmp_path: Path, box: Box | None, region: Box, shrink: int) -> None:
    image = noise(120, 100)
    path = save(image, tmp_path / "x.png")
    size = (60 // shrink, 80 // shrink)
    found = decode(path, box, lambda width, height: region, size).permute(1, 2, 0).numpy()
    by_hand = (image.crop(box) if box else image).crop(region).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    inner = slice(shrink - 1, (1 - shrink) or None)  # the resize looks over the edge of the cut
    assert (found[inner, inner] == np.asarray(by_hand)[inner, inner]).all()


@pytest.mark.parametrize("kind", ["missing", "empty", "truncated.jpg", "truncated.png", "text", "folder"])
def test_errors_name_the_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"{Path(kind).stem}{Path(kind).suffix or '.jpg'}"
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("<html>not found</html>")
    elif kind == "folder":
        path.mkdir()
    elif kind != "missing":
        save(noise(64, 64), path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DecodeError, match=str(path)):
        decode(path, None, whole, (8, 8))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_fractions_of_pixels_count_in_small_images(tmp_path: Path, interpolation: str) -> None:
    image = noise(9, 8)
    path = save(image, tmp_path / "x.png")
    region = (0.5, 0.5, 8.5, 7.5)
    found = decode(path, None, lambda width, height: region, (28, 32), interpolation=interpolation)
    wanted = image.resize((32, 28), INTERPOLATIONS[interpolation], box=region)
    assert (found.permute(1, 2, 0).numpy() == np.asarray(wanted)).all()


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(37, 53), (100, 120), (180, 250)])
def test_interpolation_equals_pillows(tmp_path: Path, interpolation: str, channels: int, size: tuple[int, int]) -> None:
    image = noise(120, 100)
    path = save(image, tmp_path / "x.png")
    found = decode(path, None, whole, size, interpolation=interpolation, channels=channels)
    wanted = image.convert("RGB" if channels == 3 else "L").resize(size[::-1], INTERPOLATIONS[interpolation])
    difference = found.permute(1, 2, 0).squeeze(2).numpy().astype(int) - np.asarray(wanted, dtype=int)
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
@pytest.mark.parametrize("channels", [1, 3])
def test_transparency_shows_white(tmp_path: Path, mode: str, channels: int) -> None:
    """Left black and opaque, right transparent with black beneath."""
    image, options = Image.new("RGBA", (16, 16)), dict[str, Any]()
    if mode in ("P", "RGB"):
        image, options = Image.new("RGB", (16, 16), (1, 1, 1)), {"transparency": (1, 1, 1)}
    image.paste((0, 0, 0, 255) if mode in ("RGBA", "LA") else (0, 0, 0), (0, 0, 8, 16))
    if mode == "P":
        image = image.quantize(2)
        options = {"transparency": image.getpixel((12, 0))}
    found = read(save(image.convert(mode), tmp_path / "x.png", **options), channels=channels)
    assert (found[:, :8] == 0).all()
    assert (found[:, 8:] == 255).all()


HEADERS = (b"P6 12000 12000 255\n", b"P5 12000 12000 65535\n")  # of RGB and 16 bits; Pillow takes as many pixels


def test_by_the_header(tmp_path: Path) -> None:
    path = tmp_path / "x.ppm"
    for header in HEADERS:
        path.write_bytes(header)
        for read in (lambda path: image_size(path, "quick"), upright_size, open_image):
            with pytest.raises((DecodeError, Image.DecompressionBombError), match="12000x12000"):
                read(path)
        assert [*image_facts(path).notes] == ["too many pixels"]


def test_of_a_tile(tmp_path: Path) -> None:
    header = struct.pack("<2sHIH", b"II", 42, 8, 9)
    tags = [(256, 4), (257, 4), (258, 8), (259, 8), (262, 1), (322, 50_000), (323, 50_000), (324, 200), (325, 20)]
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags) + bytes(4)
    (tmp_path / "x.tif").write_bytes((header + body).ljust(200, b"\0") + zlib.compress(bytes(64)))
    with pytest.raises(Image.DecompressionBombError, match="4x4"):
        open_image(tmp_path / "x.tif")


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


@pytest.mark.slow
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


def with_notes(content: bytes, kind: bytes, note: bytes, behind: bool = False, damaged: bool = False) -> bytes:
    at = len(content) - 12 if behind else 33  # of a PNG, before its end or behind its header
    return content[:at] + chunk(kind, note, damaged) + content[at:]


BOMB = zlib.compress(bytes(1 << 28))


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize(
    "note", [b"zTXt k\0\0", b"iTXt k\0\1\0\0\0", b"iCCP k\0\0", b"zTXt k\0\7", b"tEXt", b"pHYs", b"eXIf!"]
)
def test_whole_pixels_with_bad_notes(tmp_path: Path, note: bytes, damaged: bool, behind: bool) -> None:
    """Pillow refuses long ones; each is what decompresses to 256 MB, or damaged."""
    path = with_orientation(noise(48, 32), tmp_path / "x.png", 6)
    wanted = read(path, size=(48, 32))
    content = path.read_bytes()
    path.write_bytes(with_notes(content, note[:4], note[5:] + BOMB, behind, damaged))
    assert image_size(path, "quick") == image_size(path, "full") == (48, 32, 6)
    assert upright_size(path) == (32, 48)
    assert np.array_equal(read(path, size=(48, 32)), wanted)
    assert image_facts(path).width == 48


EXIF = [b"", b"garbage, no header at all", b"II*\0\xff\xff\xff\x7f", b"II*\0\x08\0\0\0\xff\xff\x12\1\3\0", b"MM"]


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "PNG", "AVIF"])
@pytest.mark.parametrize("exif", EXIF)
def test_whole_pixels_with_bad_exif(tmp_path: Path, form: str, exif: bytes) -> None:
    path = tmp_path / "x"
    noise(48, 32).save(path, form, lossless=True)
    wanted, content = decode(path, None, everything, (32, 48)), path.read_bytes()
    if form == "JPEG":
        note = b"Exif\0\0Exif\0\0" + exif
        path.write_bytes(content[:2] + struct.pack(">HH", 0xFFE1, len(note) + 2) + note + content[2:])
    elif form == "PNG":
        path.write_bytes(with_notes(content, b"eXIf", exif))
    elif form == "WEBP":
        noise(48, 32).save(path, form, lossless=True, exif=b"Exif\0\0" + exif)
    else:
        good = Image.Exif()
        good[0x013B] = "an artist"
        noise(48, 32).save(path, form, exif=good)
        wanted, content = decode(path, None, everything, (32, 48)), path.read_bytes()
        assert b"MM\0*" in content
        path.write_bytes(content.replace(b"MM\0*", exif[:4].ljust(4, b"?")))
    assert image_size(path, "quick")[:2] == (48, 32)
    assert torch.equal(decode(path, None, everything, (32, 48)), wanted)
    assert image_facts(path).width == 48
