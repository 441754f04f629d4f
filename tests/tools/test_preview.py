from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from classifier.data.image import Region, decode, everything, upright_box, upright_size
from classifier.tools import preview as lettering
from classifier.tools.preview import CELL, GAP, LABEL, Row, choose, draw_sheet, fitted, letters, original, shown_size
from tests.generate import save
from tests.tools.parts import refusal, script

FILL, CORNER = (250, 220, 40), (20, 20, 200)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "tif", "image"])
def test_boxes_of_turned_images(tmp_path: Path, orientation: int, kind: str) -> None:
    """Where the box is said to be, there is what was painted into it; and all sizes are those that decode sees."""
    box = (30, 20, 90, 50)
    image = Image.new("RGB", (200, 100), (90, 90, 90))
    image.paste(FILL, box)
    exif = Image.Exif()
    exif[0x0112] = orientation
    if kind == "tif":  # which Pillow turns itself: its boxes are in the turned image
        path = save(image, tmp_path / "image.tif", tiffinfo={0x0112: orientation})
        picture: Path | Image.Image = path
        with Image.open(path) as opened:
            box = tuple(np.argwhere(np.asarray(opened)[..., 2] < 60).min(0)[::-1]) + tuple(
                np.argwhere(np.asarray(opened)[..., 2] < 60).max(0)[::-1] + 1
            )
    else:
        picture = save(image, tmp_path / "image.jpg", quality=95, subsampling=0, exif=exif)
        if kind == "image":
            picture = Image.open(picture)
    seen = []

    def crop(width: int, height: int) -> Region:
        seen.append((width, height))
        return everything(width, height)

    for part in (None, box):
        decode(picture, part, crop, (9, 9))
        if isinstance(picture, Image.Image):
            picture = Image.open(tmp_path / "image.jpg")  # decode may have made the other smaller
    assert [upright_size(picture), upright_size(picture, box)] == [seen[0], seen[-1]]
    x1, y1, x2, y2 = upright_box(picture, box)
    width, height = upright_size(picture)
    pixels = decode(picture, None, everything, (height, width)).permute(1, 2, 0).numpy()
    inside = np.zeros((height, width), bool)
    inside[y1:y2, x1:x2] = True
    assert np.abs(pixels[inside].mean(0) - FILL).max() < 6
    assert np.abs(pixels[~inside].mean(0) - 90).max() < 6


def test_the_box_is_drawn_on_its_edge() -> None:
    pixels = np.full((100, 400, 3), 90, np.uint8)
    pixels[20:60, 100:300] = FILL
    drawn = np.asarray(original(pixels, (100, 20, 300, 60)))
    assert drawn.shape == (40, CELL, 3)
    assert tuple(drawn[8, 40]) == tuple(drawn[23, 119]) == (255, 255, 255)
    assert tuple(drawn[9, 41]) == (230, 0, 80)
    assert tuple(drawn[12, 60]) == FILL
    assert np.abs(drawn[7, 60] - 90.0).max() < 20
    for box in ((0, 0, 400, 100), (399, 99, 400, 100), (-5, -5, 500, 300)):
        original(pixels, box)


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((16, 16), (160, 160)),
        ((500, 375), (160, 120)),
        ((1, 4000), (1, 160)),
        ((161, 80), (160, 80)),
        ((60, 9), (120, 18)),
    ],
)
def test_shown_size(size: tuple[int, int], shown: tuple[int, int]) -> None:
    assert shown_size(*size) == shown


def test_every_class_is_shown_before_one_is_shown_twice() -> None:
    labels = np.repeat(np.arange(5), (50, 30, 10, 2, 8))
    rows = np.flatnonzero(np.arange(100) % 9)
    for seed in range(5):
        for count in (3, 5, 9, 14):
            chosen = choose(labels, rows, count, seed)
            times = Counter(labels[chosen].tolist())
            assert len(set(chosen.tolist())) == count
            assert len(times) == min(count, 5)
            assert max(times.values()) - min(times[n] for n in times if times[n] < (labels[rows] == n).sum()) <= 1
            assert set(chosen) <= set(rows)
            np.testing.assert_array_equal(chosen, choose(labels, rows, count, seed))
    assert len(choose(labels, rows, 1000, 0)) == len(rows)
    assert not np.array_equal(choose(labels, rows, 9, 0), choose(labels, rows, 9, 1))


def test_long_labels_are_cut_inside_their_width() -> None:
    name = "a_class_with_a_name_of_forty_characters_" * 4
    text, font = letters(name, 15, bold=True)
    cut = fitted(text, font, 300)
    assert font.getlength(cut) <= 300 < font.getlength(cut + "mm")
    assert cut.endswith("…")
    assert fitted("deep/" * 50 + "name.jpg", font, 200, keep_end=True).endswith("/name.jpg")
    assert fitted("short", font, 300) == "short"


@pytest.mark.parametrize("name", ["собака", "σκύλος", "كلب", "כלב", "Zoë", "n[bold]$x_2$", "e\u0301", "a\nb\tc"])
def test_scripts_of_the_own_font(name: str) -> None:
    text, font = letters(name, 15)
    assert "\\" not in text
    assert font.getmask(text).getbbox() is not None


def test_a_font_of_the_machine_is_taken_where_the_own_one_has_no_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    other = lettering.FONTS / "STIXNonUni.ttf"
    letter = min(lettering._characters(other) - lettering._characters(lettering.FONTS / "DejaVuSans.ttf"))
    monkeypatch.setattr(lettering, "_system_fonts", lambda: [lettering.FONTS / "none.ttf", other])
    text, font = letters(letter, 15)
    assert text == letter
    assert isinstance(font.path, str | bytes | Path)
    assert "STIX" in str(font.path)
    monkeypatch.setattr(lettering, "_system_fonts", list)
    assert letters("a" + letter + "\udcff", 15)[0] == f"a\\u{ord(letter):04x}\\udcff"


def test_nothing_overlaps() -> None:
    """Each cell of the sheet holds its own picture, and the labels' lines keep clear of cells and of one another."""
    colors = [(number * 40, 255 - number * 40, 9) for number in range(6)]
    rows = [Row("x" * 400, "train", "y/" * 400, [Image.new("RGB", (CELL, CELL), color)] * 3) for color in colors]
    sheet = np.asarray(draw_sheet(["h" * 99, "b", "c"], rows, len(rows))).astype(int)
    for color in colors:
        ys, xs = np.nonzero((sheet == color).all(2))
        assert len(ys) == 3 * CELL * CELL  # nothing is drawn over
        top, left, right = ys.min(), xs.min(), xs.max()
        ink = (sheet[top - LABEL : top, left : right + 1].min(2) < 200).any(1)
        assert not ink[-3:].any()  # a margin between text and picture
        lines = np.flatnonzero(np.diff(ink.astype(int)) == 1)
        assert len(lines) == 2
        assert not (sheet[top - LABEL : top, right + 1 : right + GAP] < 200).any()


def test_the_script(annotated: Path, tmp_path: Path) -> None:
    arguments = ("data=annotation_crop", f"data.root={annotated}", "data.image_size=32")
    result = script("preview", *arguments, "count=4", "output=new/sheet.png", cwd=tmp_path)
    assert "new/sheet.png: 4 samples of train" in result.out
    sheet = Image.open(tmp_path / "new" / "sheet.png")
    assert sheet.width > 5 * CELL
    script("preview", *arguments, "count=4", "output=again.png", cwd=tmp_path)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "again.png")), np.asarray(sheet))
    script("preview", *arguments, "split=val", "augmented=0", "count=1", "output=few.jpg", cwd=tmp_path)
    assert Image.open(tmp_path / "few.jpg").format == "JPEG"


def test_no_augmentation_is_told(folder: Path, tmp_path: Path) -> None:
    result = script("preview", f"data.root={folder}", "augment=none", "count=2", cwd=tmp_path)
    assert "look at augment=light" in result.out
    assert (tmp_path / "preview.png").is_file()


def test_an_experiment(dogs: Path, tmp_path: Path) -> None:
    script("preview", "experiment=dogs_resnet", f"data.root={dogs}", "count=3", cwd=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("split=vall",), "has no vall part: use split=..., did you mean val"),
        (("split=val", "data.val_fraction=0"), "has no val part"),
        (("count=2000",), "count=2000 rows of 5 pictures are more than a sheet takes (5000): use count=1000"),
        (("output=preview.txt",), "output=preview.txt must end in one of .png, .jpg"),
        (("output=DATA/preview.png",), "lies in the data folder"),
        (("output=file/preview.png",), "cannot write file/preview.png"),
    ],
)
def test_refusals(folder: Path, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    (tmp_path / "file").write_text("")
    typed = [argument.replace("DATA", str(folder)) for argument in arguments]
    assert message in refusal("preview", f"data.root={folder}", *typed, cwd=tmp_path)
