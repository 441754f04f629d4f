"""The table of samples."""

from collections.abc import Sequence

import pandas as pd
import pytest

from classifier.data import samples
from classifier.errors import UserError
from tests.data.tables import make_table

PATHS = ["a/0.jpg", "b/1.jpg", "a/0.jpg", "a/größe 1.jpg", "c.jpg"]


def text(*values: str | None) -> pd.Series:
    return pd.Series(values, dtype="str")


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["10", "9", "-1", "9"], ["-1", "9", "10"]),
        (["b", "10", "B"], ["10", "B", "b"]),
        (["10.0", "9.0", "1e300", "1.5"], ["1.5", "9.0", "10.0", "1e300"]),
        ([f"{2**64 + 1}", f"{2**64}", "9" * 5000, "2"], ["2", f"{2**64}", f"{2**64 + 1}", "9" * 5000]),
        (["10", "9", "nan"], ["10", "9", "nan"]),
        ([], []),
    ],
)
def test_order_of_classes(names: list[str], order: list[str]) -> None:
    assert samples.order_classes(names) == order


@pytest.mark.parametrize(
    ("splits", "problems", "declared", "given", "classes"),
    [
        (None, [None, None, None], None, None, ["b", "c"]),
        (["train", "train", "val"], [None, None, None], None, None, ["b", "c"]),
        (["val", None, "train"], ["bad", None, None], None, None, ["b"]),
        (None, [None, None, None], ["c", "x", "b"], None, ["c", "x", "b"]),
        (None, [None, None, None], ["c", "x", "b"], ["b", "c", "d"], ["b", "c", "d"]),
    ],
)
def test_labels(
    splits: list[str | None] | None,
    problems: list[str | None],
    declared: list[str] | None,
    given: list[str] | None,
    classes: list[str],
) -> None:
    table = pd.DataFrame({"path": text("0", "1", "2"), "label": text("c", "b", "b"), "problem": text(*problems)})
    if declared:
        table["label"] = pd.Categorical(table["label"], categories=declared)
    if splits:
        table["split"] = text(*splits)
    table = samples.with_labels(table, given, "x has")
    assert list(table["label"].cat.categories) == classes
    assert samples.labels_of(table).tolist() == [classes.index(name) if name in classes else -1 for name in "cbb"]


def test_a_class_that_training_lacks_is_refused_unless_its_rows_are_not_used() -> None:
    table = pd.DataFrame({"path": text("0", "1"), "label": text("a", "z"), "split": text("train", "test")})
    with pytest.raises(UserError, match=r"^x has 'z' .*data\.root="):
        samples.with_labels(table, None, "x has")
    assert samples.labels_of(samples.with_labels(table.assign(problem=text(None, "bad")), None, "")).tolist() == [0, -1]


def test_samples_of_one_image_and_of_one_group_have_one_number() -> None:
    table = make_table(PATHS, groups=["p", None, "q", "q", None])
    assert samples.image_ids(table).tolist() == [0, 1, 0, 2, 3]
    assert samples.group_ids(table.drop(columns="group")).tolist() == [0, 1, 0, 2, 3]
    assert samples.group_ids(table).tolist() == [0, 1, 0, 0, 2]  # the image joins p and q
    assert samples.group_ids(table[:0]).tolist() == []


def test_the_fingerprint_changes_with_each_part() -> None:
    def take(
        classes: Sequence[str] = ("a", "b"),
        paths: Sequence[str] = ("0.jpg", "12.jpg"),
        labels: Sequence[int] = (0, 1),
        boxes: Sequence[Sequence[int]] | None = ((0, 0, 5, 6), (0, 0, 5, 6)),
    ) -> str:
        return samples.fingerprint(make_table(paths, labels, classes, boxes=boxes))

    variants = [
        take(),
        take(classes=["b", "a"]),
        take(paths=["0.jpg", "13.jpg"]),
        take(paths=["0.jp", "g12.jpg"]),  # the same bytes, cut elsewhere
        take(paths=["12.jpg", "0.jpg"]),
        take(labels=[0, 0]),
        take(boxes=[(0, 0, 5, 6), (0, 0, 5, 7)]),
        take(boxes=None),
    ]
    assert len(set(variants)) == len(variants)
    assert take() == variants[0]
