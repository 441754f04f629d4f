"""Boxes: which become samples, and how numbers become pixels."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from classifier.data.boxes import FAR, SIZE, BoxReading, in_pixels
from classifier.data.check import check_images
from classifier.data.loader import Images
from classifier.data.samples import BOX, boxes_of, usable
from classifier.errors import UserError
from tests.data.tables import make_table
from tests.generate import save

GREY, SPOT = (128, 128, 128), (220, 40, 40)


def annotated(boxes: Any, size: tuple[float, float] | None = None, paths: list[str] | None = None) -> pd.DataFrame:
    numbers = np.array(boxes, float).reshape(-1, 4)
    table = make_table(paths or [f"{row}.png" for row in range(len(numbers))])
    table = table.assign(label=table["label"].astype("str"), **dict(zip(BOX, numbers.T, strict=True)))
    return table if size is None else table.assign(width=size[0], height=size[1])


def checked(table: pd.DataFrame, root: Path) -> pd.DataFrame:
    table = table.assign(label=table["label"].astype("category"))
    return check_images(table, Images.of(table.drop(columns=BOX), root), "quick")


def pixels(table: pd.DataFrame, width: int = 80, height: int = 60, margin: float = 0.0) -> list[list[int]]:
    found = pd.DataFrame({"width": width, "height": height, "orientation": 1}, index=table.index)
    placed = in_pixels(table, found, margin)
    assert {"width", "height"}.isdisjoint(placed)
    assert {placed[side].dtype for side in BOX} == {np.dtype("int32")}
    return placed[usable(placed)][BOX].to_numpy().tolist()


@pytest.mark.parametrize(
    ("options", "box", "wanted"),
    [
        ({}, (0.4, 3.6, 20.6, 24), [0, 3, 21, 24]),
        ({}, (5.004, 3, 20.996, 24.003), [5, 3, 21, 24]),
        ({}, (-1e12, 0, 1e12, 60), [-FAR, 0, FAR, 60]),
        ({}, (0, 0, 3, 0.001), [0, 0, 3, 1]),
        ({"box_format": "xywh"}, (0.4, 3.6, 20.2, 20.4), [0, 3, 21, 24]),
        ({"box_format": "cxcywh"}, (10, 20, 4, 10), [8, 15, 12, 25]),
        ({"box_unit": "fraction"}, (0.125, 1 / 3, 0.25, 0.5), [10, 20, 20, 30]),
        ({"box_unit": "percent", "box_format": "xywh"}, (12.5, 50, 12.5, 25), [10, 30, 20, 45]),
        ({"box_unit": "fraction", "box_format": "cxcywh"}, (0.5, 0.5, 0.5, 1), [20, 0, 60, 60]),
    ],
)
def test_numbers_become_pixels(options: dict[str, Any], box: tuple[float, ...], wanted: list[int]) -> None:
    assert pixels(BoxReading(**options).read(annotated([box]))) == [wanted]
    assert boxes_of(make_table(["a"])) is None


def test_the_margin_and_which_objects() -> None:
    table = annotated([[10, 20, 30, 60], [0, 0, 9, 9], [0, 0, 50, 50]], paths=["a", "b", "a"])
    assert pixels(table, margin=0.1) == [[8, 16, 32, 64], [-1, -1, 10, 10], [-5, -5, 55, 55]]
    for objects, rows in (("all", [0, 1, 2]), ("first", [0, 1]), ("largest", [1, 2])):
        assert list(BoxReading(objects=objects).read(table).index) == rows


@pytest.mark.parametrize("negatives", [None, "background"])
def test_empty_boxes_and_images_without_objects(negatives: str | None, caplog: pytest.LogCaptureFixture) -> None:
    good = [[1, 2, 30, 40]] * 20
    table = annotated([*good, [0] * 4, [5, 5, 5, 9], [9, 5, 3, 9], [0] * 4, [0] * 4])
    table.loc[20, "label"] = ""
    table.loc[24, "path"] = "0.png"
    kept = BoxReading(negatives=negatives).read(table)
    assert usable(kept).all()
    assert list(kept.index[20:]) == ([20, 23] if negatives else [])
    assert kept["label"].tolist()[20:] == (["background", "a"] if negatives else [])
    assert "2 boxes are empty" in caplog.text
    assert ("3 images have no box" in caplog.text) != bool(negatives)
    assert pixels(kept)[20:] == [[0, 0, 80, 60]] * len(kept[20:])


@pytest.mark.parametrize("bad", [[9, 0, 3, 1], [np.nan, 0, 1, 1], [0, 1, np.inf, 9], [0.1, 0.1, 0.6, 1]])
def test_what_is_no_box_is_a_problem(bad: list[float]) -> None:
    table = BoxReading().read(annotated([[1, 2, 30, 40], bad]))
    assert ["no box: x" in problem for problem in table["problem"].fillna("")] == [False, True]


@pytest.mark.parametrize(
    ("unit", "boxes", "message"),
    [
        ("pixel", [[0, 0, 0.5, 1], [0.1, 0.1, 1, 1.01]], r"data\.box_unit=fraction"),
        ("percent", [[0, 0, 0.5, 1]], r"data\.box_unit=fraction"),
        ("fraction", [[0, 0, 60, 80]], r"data\.box_unit=pixel"),
        ("percent", [[0, 0, 640, 480], [1, 1, 30, 30], [5, 5, 300, 300]], r"data\.box_unit=pixel"),
        ("pixel", [[0] * 4], "data.box_columns="),
        ("inch", [[0, 0, 60, 80]], r"data\.box_unit=inch"),
    ],
)
def test_another_unit_is_refused(unit: str, boxes: list[list[float]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        BoxReading(box_unit=unit).read(annotated(boxes))


def test_small_boxes_are_honest(caplog: pytest.LogCaptureFixture) -> None:
    """Of a unit they get a word at most: where images are large, and boxes lie in 100 pixels."""
    small = BoxReading().read(annotated([[row, 3, row + 1, 4] for row in range(20)]))
    assert len(pixels(small, 1000, 800)) == 20
    assert not caplog.text
    assert len(pixels(BoxReading().read(annotated([[0, 3, 5 * row + 1, 90] for row in range(20)])), 1000, 800)) == 20
    assert "data.box_unit=percent" in caplog.text


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ((160, 120), [5, 10, 15, 20]),
        ((53, 40), [15, 30, 46, 60]),  # rounded to whole pixels
        *((size, [10, 20, 30, 40]) for size in ((80, 60), (0, 0), (1, 1), (np.nan, 60))),
        ((100, 100), None),
        ((60, 80), None),
    ],
)
def test_an_annotation_of_another_size(
    size: tuple[float, float], wanted: list[int] | None, caplog: pytest.LogCaptureFixture
) -> None:
    table = annotated([[10, 20, 30, 40]] * 2, size)
    read = BoxReading().read(table)
    assert pixels(read) == ([wanted] * 2 if wanted else [])
    assert ("2 images are not of the size" in caplog.text) == (wanted not in (None, [10, 20, 30, 40]))
    assert pixels(BoxReading(scale_boxes=False).read(table)) == [[10, 20, 30, 40]] * 2
    if wanted is None:
        problem = in_pixels(read, pd.DataFrame({"width": [80] * 2, "height": 60, "orientation": 1}))["problem"][0]
        assert f"{size[0]}x{size[1]}" in problem
        assert "data.scale_boxes=false" in problem


def turned(path: Path, size: tuple[int, int], spot: tuple[int, int, int, int], orientation: int) -> None:
    """An image that shows a red spot at `spot` when it is turned upright; lossless."""
    image = Image.new("RGB", size, GREY)
    image.paste(SPOT, spot)
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transpose that undoes it
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = image.transpose(Image.Transpose(back[orientation])) if orientation in back else image
    save(stored, path, exif=exif)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(80, 60), (60, 60)])
@pytest.mark.parametrize("unit", ["stated", "fraction", "evidence"])
def test_boxes_of_turned_images(tmp_path: Path, orientation: int, size: tuple[int, int], unit: str) -> None:
    """They were drawn on the upright image, and lie there in the stored one."""
    spot = (10, 20, 30, 50)
    turned(tmp_path / "0.png", size, spot, orientation)
    turned(tmp_path / "1.png", (40, 20), (2, 1, 40, 9), 6)  # leaves the stored image
    if unit == "fraction":
        table = annotated([np.array(spot) / np.tile(size, 2), (0.05, 0.05, 1, 0.45)])
        table = BoxReading(box_unit="fraction").read(table)
    else:
        table = annotated([np.array(spot) / 2, (1, 0.5, 20, 4.5)] if unit == "stated" else [spot, (2, 1, 40, 9)])
        table[SIZE] = np.array([size, (40, 20)]) / 2 if unit == "stated" else np.nan
        table = BoxReading().read(table)
    found = checked(table, tmp_path)
    assert usable(found).all()
    x1, y1, x2, y2 = found[BOX].to_numpy()[0].tolist()
    assert (x2 - x1, y2 - y1) == ((30, 20) if orientation > 4 else (20, 30))
    assert (np.array(Image.open(tmp_path / "0.png"))[y1:y2, x1:x2] == SPOT).all()


@pytest.mark.parametrize("square", [False, True])
def test_sizes_say_that_boxes_were_drawn_before_turning(
    tmp_path: Path, square: bool, caplog: pytest.LogCaptureFixture
) -> None:
    turned(tmp_path / "0.png", (60, 80), (0, 0, 9, 9), 6)  # stored with 80x60
    turned(tmp_path / "1.png", (60, 60), (0, 0, 9, 9), 6)
    table = annotated([[1, 2, 30, 40]] * 2)
    table[SIZE] = [[60.0, 60.0] if square else [80.0, 60.0], [60.0, 60.0]]
    if square:
        table = table[1:].reset_index(drop=True)
    found = checked(BoxReading().read(table), tmp_path)
    assert found[BOX].to_numpy().tolist() == ([[2, 30, 40, 59]] if square else [[1, 2, 30, 40]] * 2)
    assert ("turned by EXIF" in caplog.text) == square
