"""python scripts/preview.py: each sample's pictures where they belong, under names of any script."""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from classifier.data.image import decode, everything, upright_box, upright_size
from classifier.tools.preview import CELL, DPI, Sample, choose, draw
from tests.generate import save
from tests.tools.parts import refusal, script

FILL = (250, 220, 40)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_of_turned_images(tmp_path: Path, orientation: int) -> None:
    """Where the box is said to be, there is what was painted into it."""
    image, box, exif = Image.new("RGB", (200, 100), (90, 90, 90)), (30, 20, 90, 50), Image.Exif()
    image.paste(FILL, box)
    exif[0x0112] = orientation
    path = save(image, tmp_path / "image.jpg", quality=95, subsampling=0, exif=exif)
    x1, y1, x2, y2 = upright_box(path, box)
    assert upright_size(path, box) == (x2 - x1, y2 - y1)
    width, height = upright_size(path)
    pixels = decode(path, None, everything, (height, width)).permute(1, 2, 0).numpy()
    inside = np.zeros((height, width), bool)
    inside[y1:y2, x1:x2] = True
    assert np.abs(pixels[inside].mean(0) - FILL).max() < 6
    assert np.abs(pixels[~inside].mean(0) - 90).max() < 6


def pixels_of(samples: list[Sample], path: Path, count: int | None = None) -> np.ndarray:
    """The figure, uint8 (H, W, 3)."""
    headings = [f"column {number}" for number in range(len(samples[0].pictures))]
    draw(headings, samples, count or len(samples)).savefig(path)
    return np.asarray(Image.open(path).convert("RGB"))


def test_the_box_is_drawn_on_its_edge(tmp_path: Path) -> None:
    picture = np.full((80, 160, 3), 90, np.uint8)
    picture[20:60, 40:120] = FILL
    drawn = pixels_of([Sample("a", "train", "a.jpg", [picture], (40, 20, 120, 60))], tmp_path / "a.png").astype(int)
    red = (np.abs(drawn - (220, 20, 60)) < 60).all(2)  # crimson
    ys, xs = np.nonzero(red)
    inside = np.argwhere((drawn == FILL).all(2))
    for edges, filled in ((ys, inside[:, 0]), (xs, inside[:, 1])):
        assert abs(edges.min() - filled.min()) <= 4
        assert abs(edges.max() - filled.max()) <= 4
    for box in ((0, 0, 160, 80), (159, 79, 160, 80), (-5, -5, 500, 300)):
        pixels_of([Sample("a", "train", "a.jpg", [picture], box)], tmp_path / "b.png")


@pytest.mark.parametrize("count", [1, 2, 9])
def test_each_picture_has_a_cell_of_its_own(tmp_path: Path, count: int) -> None:
    """No text and no other picture is drawn over one, however long the names are."""
    side = round(CELL * DPI)
    colors = [((40 * number) % 256, 255 - 10 * number, 9) for number in range(count)]
    pictures = [[np.full((side, side, 3), color, np.uint8)] * 3 for color in colors]
    drawn = pixels_of([Sample("W" * 400, "in no part", "W/" * 400, three) for three in pictures], tmp_path / "a.png")
    for color in colors:
        assert (drawn == color).all(2).sum() == pytest.approx(3 * side * side, rel=0.05)
    assert 0.5 < drawn.shape[1] / drawn.shape[0] < 4


@pytest.mark.parametrize("shape", [(16, 16), (9, 60), (300, 6), (300, 200), (20, 30, 3)])
def test_a_picture_keeps_its_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    drawn = pixels_of([Sample("a", "train", "a.jpg", [np.full(shape, 20, np.uint8)])], tmp_path / "a.png")
    ys, xs = np.nonzero((np.abs(drawn.astype(int) - 20) < 4).all(2)[60:])  # below the text
    sides = np.array([np.ptp(ys), np.ptp(xs)]) + 1
    assert sides.max() == pytest.approx(CELL * DPI, abs=2)
    assert sides.min() == pytest.approx(max(1, CELL * DPI * min(shape[:2]) / max(shape[:2])), abs=2)


def test_names_in_any_script_are_drawn(tmp_path: Path) -> None:
    """Those without a glyph in the installed fonts as boxes, of which matplotlib warns."""
    for name in ("собака", "كلب", "n[bold]$x_2$", "$x_{$", "e\u0301", "a\nb\tc", "犬", "👍🏽", "\U000e0041", ""):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")
            pixels_of([Sample(name, "train", f"{name}/1.jpg", [np.zeros((8, 8), np.uint8)])], tmp_path / "a.png")


def test_every_class_is_shown_before_one_is_shown_twice() -> None:
    labels = pd.Series(pd.Categorical(np.repeat(list("abcde"), (50, 30, 10, 2, 8)), list("edcba")))[4::2]
    for seed in range(5):
        for count in (3, 5, 9, 14):
            chosen = choose(labels, count, seed)
            assert len(set(chosen)) == count
            assert (np.diff(labels[chosen].cat.codes) >= 0).all()
            times, all_of = labels[chosen].value_counts(sort=False), labels.value_counts(sort=False)
            assert times.max() - times[times < all_of].min() <= 1
            np.testing.assert_array_equal(chosen, choose(labels, count, seed))
    assert len(choose(labels, 1000, 0)) == len(labels)
    assert not np.array_equal(choose(labels, 9, 0), choose(labels, 9, 1))


def test_the_script(annotated: Path, tmp_path: Path) -> None:
    arguments = ("data=annotation_crop", f"data.root={annotated}", "data.image_size=32")
    result = script("preview", *arguments, "count=4", "output=new/sheet.png", cwd=tmp_path)
    assert "new/sheet.png: 4 samples of train" in result.out
    sheet = Image.open(tmp_path / "new" / "sheet.png")
    assert sheet.width > 5 * CELL * DPI
    script("preview", *arguments, "count=4", "output=again.png", cwd=tmp_path)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "again.png")), np.asarray(sheet))
    script("preview", *arguments, "split=val", "augmented=0", "count=1", "output=few.jpg", cwd=tmp_path)
    assert Image.open(tmp_path / "few.jpg").format == "JPEG"


def test_refusals(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    outputs = ("output=preview.txt", f"output={folder}/preview.png", "output=file/preview.png")
    for argument in ("split=vall", "count=1000", "count=0", "seed=-1", *outputs):
        said = argument if argument[-1].isdigit() else f"{argument.partition('=')[0]}="
        assert said in refusal("preview", f"data.root={folder}", argument, cwd=tmp_path)
