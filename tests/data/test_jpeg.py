from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from classifier.data import jpeg
from classifier.data.image import Box, decode
from classifier.data.image import ImageError as DecodeError
from tests.data.test_image import psnr, read, whole
from tests.generate import picture, save


@pytest.fixture(params=["simplejpeg", "pillow"])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "pillow":
        monkeypatch.setattr(jpeg, "simplejpeg", None)
    elif jpeg.simplejpeg is None:
        pytest.skip("simplejpeg is not installed")
    return str(request.param)


def photo(width: int, height: int) -> Image.Image:
    return picture("green", (width // 30, height // 30)).resize((width, height), Image.Resampling.BICUBIC)


JPEGS: dict[str, dict[str, object]] = {
    "4:2:0": {"subsampling": 2},
    "4:4:4": {"subsampling": 0},
    "progressive": {"progressive": True},
    "restart": {"restart_marker_rows": 1},
    "RGB": {"keep_rgb": True},
    "grey": {},
}


def saved_jpeg(kind: str, path: Path, size: tuple[int, int] = (500, 375)) -> Path:
    image = photo(*size)
    return save(image.convert("L") if kind == "grey" else image, path, quality=90, **JPEGS[kind])


def by_pillow(path: Path, box: Box, size: tuple[int, int], mode: str) -> np.ndarray:
    """Cut out of the whole image, decoded in full; float (height, width[, 3])."""
    with Image.open(path) as image:
        part = image.convert("RGB").crop(box).convert(mode)
        return np.asarray(part.resize((size[1], size[0]), Image.Resampling.BILINEAR), dtype=float)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("box", [(0, 0, 500, 375), (37, 21, 261, 245), (100, 5, 400, 100), (9, 301, 499, 375)])
def test_each_decoder_equals_the_whole_image_decoded(
    tmp_path: Path, decoder: str, kind: str, channels: int, box: Box
) -> None:
    path = saved_jpeg(kind, tmp_path / "x.jpg")
    size = (224, 224)
    assert psnr(read(path, box, size, channels), by_pillow(path, box, size, "RGB" if channels == 3 else "L")) > 50


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("shrink", [2, 4, 8])
def test_each_decoder_decodes_scaled(tmp_path: Path, decoder: str, kind: str, shrink: int) -> None:
    path = saved_jpeg(kind, tmp_path / "x.jpg", (1001, 777))
    box = (101, 67, 901, 667)
    size = (600 // shrink, 800 // shrink)
    assert psnr(read(path, box, size), by_pillow(path, box, size, "RGB")) > 35


def test_orientation_is_read_from_xmp_too(tmp_path: Path, decoder: str) -> None:
    path = tmp_path / "x.jpg"
    photo(48, 32).save(path, xmp=b'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"/>')
    assert jpeg.parse(path.read_bytes()) is None
    turned = np.asarray(photo(48, 32).transpose(Image.Transpose.ROTATE_270), dtype=float)
    assert psnr(read(path, size=(48, 32)), turned) > 35


@pytest.mark.parametrize("keep", [0.05, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("kind", JPEGS)
def test_a_cut_off_jpeg_raises(tmp_path: Path, decoder: str, kind: str, keep: float) -> None:
    path = saved_jpeg(kind, tmp_path / "x.jpg")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(DecodeError, match=str(path)):
        decode(path, (0, 0, 300, 100), whole, (50, 50))


def test_cmyk_is_left_to_pillow(tmp_path: Path, decoder: str) -> None:
    path = save(Image.new("RGB", (320, 320), (220, 40, 30)).convert("CMYK"), tmp_path / "x.jpg", quality=95)
    assert jpeg.parse(path.read_bytes()) is None
    assert np.abs(read(path, size=(80, 80)).mean((0, 1)) - (220, 40, 30)).max() < 6


def test_damage_that_pillow_puts_up_with_is_put_up_with(tmp_path: Path, decoder: str) -> None:
    path = saved_jpeg("4:2:0", tmp_path / "x.jpg")
    data = path.read_bytes()
    path.write_bytes(data[:-2] + b"\x12\x34\x56" + data[-2:])
    assert psnr(read(path), by_pillow(path, (0, 0, 500, 375), (375, 500), "RGB")) > 50


@pytest.mark.parametrize("rows", [16, 17, 160, 374])
def test_rows_below_the_crop_are_not_decoded(tmp_path: Path, decoder: str, rows: int) -> None:
    path = saved_jpeg("4:2:0", tmp_path / "x.jpg")
    opened = jpeg.parse(path.read_bytes())
    assert opened is not None
    part = opened.read((0, 0, 500, rows), 1, 3)
    assert opened._without_rows_below(rows)[1] == min(375, (rows // 16 + 2) * 16)
    assert (part == opened.read((0, 0, 500, 375), 1, 3)[:rows]).all()


@pytest.mark.parametrize("left", [100, 101, 102.5, 103, 104, 107])
def test_an_edge_may_move_by_half_a_pixel_where_exact_is_false(tmp_path: Path, decoder: str, left: float) -> None:
    ramp = np.tile(np.rint(np.linspace(0, 255, 1024)), (600, 1)).astype(np.uint8)
    path = save(Image.fromarray(ramp), tmp_path / "x.jpg", quality=98)
    region = (left, 50, left + 801, 451)
    exact, moved = (
        decode(path, None, lambda width, height: region, (40, 80), exact=exact).float().mean((0, 1))[1:-1]
        for exact in (True, False)
    )
    step = exact.diff().mean()  # from one pixel of the result to the next
    assert (exact - torch.arange(1, 79).add(0.5).mul(801 / 80).add(left).mul(255 / 1024)).abs().max() < 1.5
    assert (moved - exact).abs().max() <= step / 2 + 0.5
