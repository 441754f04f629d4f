"""Images of more than 8 bits: one scale for all of a set."""

import logging
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import SAMPLEFORMAT

from classifier.data import ImageFolderDataModule
from classifier.data.image import ImageError, decode, everything
from classifier.data.image_facts import image_facts
from classifier.errors import UserError
from tests.data.chunks import chunk
from tests.generate import picture, save

COLOUR = np.random.default_rng(0).integers(0, 4096, (6, 5, 3)).astype(np.uint16)


def pixels(path: Path, value_range: tuple[float, float] | None, channels: int = 1) -> np.ndarray:
    found = decode(path, None, everything, (6, 5), channels=channels, value_range=value_range)
    return found.permute(1, 2, 0).squeeze(2).numpy().astype(int)


def saved(values: np.ndarray, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_what_is_white_does_not_depend_on_the_image(tmp_path: Path, dtype: Any) -> None:
    for high in (200, 4000):  # of a dark frame, and of a light one
        values = np.linspace(0, high, 30).reshape(6, 5).astype(dtype)
        path = saved(values, tmp_path / ("x.png" if dtype == np.uint16 else "x.tif"))
        assert np.abs(pixels(path, (0, 4095)) - values / 4095 * 255).max() <= 0.51
        if dtype == np.uint16:
            assert np.abs(pixels(path, None) - values / 65535 * 255).max() <= 0.51
        else:
            with pytest.raises(ImageError, match=r"data\.value_range="):
                pixels(path, None)


def test_8_bits_and_a_white_that_the_file_states_stay(tmp_path: Path) -> None:
    grey = saved(np.full((6, 5), 99, np.uint8), tmp_path / "x.png")
    (tmp_path / "x.pgm").write_bytes(b"P5 5 6 4095\n" + np.full(30, 4095, ">u2").tobytes())
    for stated in (None, (0, 10), (0, 4095)):
        assert (pixels(grey, stated) == 99).all()
        assert (pixels(tmp_path / "x.pgm", stated) == 255).all()


@pytest.mark.parametrize("opacity", [None, 65535])
def test_colours_of_12_in_16_bits(tmp_path: Path, opacity: int | None) -> None:
    """Of which Pillow alone gives the upper 8 bits."""
    values = COLOUR if opacity is None else np.dstack([COLOUR, np.full((6, 5), opacity, np.uint16)])
    header = struct.pack(">IIBBBBB", 5, 6, 16, 2 if opacity is None else 6, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    assert np.abs(pixels(tmp_path / "x.png", (0, 4095), 3) - COLOUR / 4095 * 255).max() <= 0.51
    assert pixels(tmp_path / "x.png", None, 3).max() <= 16
    assert "[0,4095]" in image_facts(tmp_path / "x.png").notes["nearly black"]


def test_no_number(tmp_path: Path) -> None:
    """It is black where the range is stated, and refused elsewhere; so are numbers without a bound."""
    values = np.full((6, 5), 0.5, np.float32)
    values[0] = [np.nan, -np.inf, np.inf, -9999, 1]
    path = saved(values, tmp_path / "x.tif")
    assert pixels(path, (0, 1))[:2].tolist() == [[0, 0, 255, 0, 255], [128] * 5]
    assert "nan" in image_facts(path, value_range=(0, 1)).notes["out of range"]
    for bad in values[0, :4]:
        values[0] = bad
        with pytest.raises(ImageError, match=r"data\.value_range="):
            pixels(saved(values, path), None)


def test_8_bits_with_a_sign(tmp_path: Path) -> None:
    saved(np.zeros((6, 5), np.uint8), tmp_path / "x.tif")
    with Image.open(tmp_path / "x.tif") as image:
        image.save(tmp_path / "x.tif", tiffinfo={SAMPLEFORMAT: 2})
    with pytest.raises(ImageError, match="8 bits with a sign"):
        pixels(tmp_path / "x.tif", None)


def test_a_set_is_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def warned(**settings: Any) -> str:
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            ImageFolderDataModule(tmp_path / "x", cache_dir=str(tmp_path / "c"), num_workers=0, **settings).setup()
        return caplog.text

    for number in range(12):
        saved(COLOUR[..., 0] // (1 + number % 2), tmp_path / "x" / "ab"[number % 2] / f"{number}.png")
        save(picture("red"), tmp_path / "x" / "a" / f"{number}.jpg")
    assert warned().count("data.value_range=[0,4095]") == 1
    assert "value_range" not in warned(value_range=[0, 4095])
    assert "value_range" in warned(value_range=[0, 255])
    assert "nearly black" in warned(value_range=[0, 65535])
    saved(np.full((6, 5), np.nan, np.float32), tmp_path / "x" / "a" / "nan.tif")
    for check in ("quick", "full"):
        with pytest.raises(UserError, match=r"a/nan\.tif.*data\.value_range="):
            warned(check=check)
