import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from classifier.data.samples import UNASSIGNED, Samples

ROOT = Path("/photos")
ODD = os.fsdecode(b"a/caf\xe9\xff.jpg")  # not valid UTF-8
PATHS = ["a/0.jpg", "b/1.jpg", "a/0.jpg", "a/größe 1.jpg", ODD, ""]
LABELS = [0, 1, 0, 0, 0, 1]
BOXES = [(0, 0, 5, 6), (1, 2, 3, 4), (5, 5, 9, 9), (0, 0, 1, 1), (-3, 0, 70000, 2), (0, 0, 2, 2)]


def table(boxes: bool = True) -> Samples:
    return Samples.build(ROOT, ["a", "b"], PATHS, LABELS, boxes=BOXES if boxes else None, splits=[0, 1, 0, 2, -1, 2])


def test_gives_back_what_was_put_in() -> None:
    samples = table()
    assert len(samples) == 6
    assert [samples.relative_path(row) for row in range(6)] == PATHS
    assert samples.path(1) == ROOT / "b/1.jpg"
    assert [samples.box(row) for row in range(6)] == BOXES
    assert samples.classes == ("a", "b")
    assert samples.labels.tolist() == LABELS
    assert samples.labels.dtype == np.int64
    assert samples.splits.tolist() == [0, 1, 0, 2, -1, 2]


def test_a_name_that_is_not_utf8_opens_its_file(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff\xe9.txt"
    try:
        with open(path, "wb") as file:  # noqa: PTH123, Path does not take bytes
            file.write(b"here")
    except OSError:
        pytest.skip("this file system takes valid UTF-8 only")
    name = next(tmp_path.iterdir()).name
    samples = Samples.build(tmp_path, ["a"], [name], [0])
    assert samples.path(0).read_bytes() == b"here"


def test_whole_images_have_no_boxes_and_no_part() -> None:
    samples = Samples.build(ROOT, ["a", "b"], PATHS, LABELS)
    assert samples.boxes is None
    assert samples.box(0) is None
    assert (samples.splits == UNASSIGNED).all()


def test_an_empty_table() -> None:
    samples = Samples.build(ROOT, ["a"], [], [], boxes=[])
    assert len(samples) == 0
    assert len(samples.image_ids()) == 0
    assert len(samples.select(np.array([], dtype=np.int64))) == 0


@pytest.mark.parametrize("boxes", [True, False])
def test_select_keeps_everything_of_the_rows(boxes: bool) -> None:
    samples = table(boxes)
    rows = np.array([4, 0, 3])
    chosen = samples.select(rows)
    assert [chosen.relative_path(row) for row in range(3)] == [PATHS[row] for row in rows]
    assert [chosen.box(row) for row in range(3)] == [BOXES[row] if boxes else None for row in rows]
    assert chosen.labels.tolist() == [LABELS[row] for row in rows]
    assert chosen.splits.tolist() == [-1, 0, 2]
    assert (chosen.root, chosen.classes) == (samples.root, samples.classes)


def test_select_takes_other_boxes() -> None:
    chosen = table().select(np.array([1, 2]), np.array([[0, 0, 1, 1], [2, 2, 3, 3]]))
    assert [chosen.box(row) for row in range(2)] == [(0, 0, 1, 1), (2, 2, 3, 3)]


def test_samples_of_one_file_have_one_image_id() -> None:
    ids = table().image_ids()
    assert ids[0] == ids[2]
    assert len(set(ids.tolist())) == 5


@pytest.mark.parametrize("boxes", [True, False])
def test_fingerprint_is_of_the_content_alone(boxes: bool) -> None:
    samples = table(boxes)
    assert samples.fingerprint() == table(boxes).fingerprint()
    assert samples.fingerprint() == replace(samples, root=Path("/elsewhere")).fingerprint()
    assert samples.fingerprint() == samples.select(np.arange(6)).fingerprint()


def test_fingerprint_changes_with_each_part() -> None:
    def build(
        classes: Sequence[str] = ("a", "b"),
        paths: Sequence[str] = ("0.jpg", "12.jpg"),
        labels: Sequence[int] = (0, 1),
        boxes: Sequence[tuple[int, int, int, int]] | None = ((0, 0, 5, 6), (0, 0, 5, 6)),
    ) -> str:
        return Samples.build(ROOT, classes, paths, labels, boxes=boxes).fingerprint()

    variants = [
        build(),
        build(classes=["b", "a"]),
        build(paths=["0.jpg", "13.jpg"]),
        build(paths=["0.jp", "g12.jpg"]),  # the same bytes, cut elsewhere
        build(paths=["12.jpg", "0.jpg"]),
        build(labels=[0, 0]),
        build(boxes=[(0, 0, 5, 6), (0, 0, 5, 7)]),
        build(boxes=None),
    ]
    assert len(set(variants)) == len(variants)
