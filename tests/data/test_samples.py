"""The table of samples, and text columns of files."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from classifier.data import samples
from classifier.data.samples import BOX
from classifier.errors import UserError, as_typed
from tests.data.listing import touch
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


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("a.jpg", "f/a.jpg"),
        (".hidden.jpg", "f/.hidden.jpg"),
        ("../a.jpg", "a.jpg"),
        ("a/./b//c", "f/a/b/c"),
        ("a\\b.jpg", "f/a/b.jpg"),
        ("a:b", "f/a:b"),
        ("../../a.jpg", None),
        ("/etc/passwd", None),
        ("C:\\a.jpg", None),
        ("{root}/a/b.jpg", "a/b.jpg"),
        ("{link}/a/b.jpg", None),
        ("{root}/../a.jpg", None),
        ("{root}2/a.jpg", None),
    ],
)
def test_paths_stay_inside(tmp_path: Path, path: str, wanted: str | None) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    (tmp_path / "link").symlink_to(root)
    named = path.format(root=root, link=tmp_path / "link")
    for given in ([named], [named, "plain"]):
        (found, *_) = samples.inside(text(*given), "f", root)
        assert (None if pd.isna(found) else found) == wanted
    if path.startswith("{link}"):
        assert samples.inside(text(named, f"{root}/c"), "", tmp_path / "link").tolist() == ["a/b.jpg", "c"]


def test_files_are_looked_for_by_one_listing_of_each_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of a million lines must not look at each file."""
    names = [f"{number % 3}/{number}.jpg" for number in range(300)]
    touch(tmp_path, *names, "top.jpg")
    asked: list[Path] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: asked.append(path) or scandir(path))  # type: ignore[func-returns-value]
    monkeypatch.setattr(os, "stat", lambda *_, **__: pytest.fail("a look at a file"))
    table = make_table([*names, "top.jpg", "3/x.jpg", "0/no.jpg", "a\0b/c"])
    table = samples.mark_unusable(table, tmp_path, "x.csv", "")
    assert table["path"][table["problem"].notna()].tolist() == ["3/x.jpg", "0/no.jpg", "a\0b/c"]
    assert len(asked) == 6


def test_boxes() -> None:
    table = samples.with_covering_boxes(
        make_table(["a", "a", "b", "c", "d"]),
        np.array([[1, 2, 3, 4], [0.4, 3.6, 20.6, 24], [9, 0, 3, 1], [np.nan, 0, 1, 1], [-1e12, 0, 1e12, 1]]),
    )
    boxes = samples.boxes_of(table)
    assert boxes is not None
    assert boxes[[0, 1, 4]].tolist() == [[1, 2, 3, 4], [0, 3, 21, 24], [-samples.FAR, 0, samples.FAR, 1]]
    assert samples.usable(table).tolist() == [True, True, False, False, True]
    for which, count, first in (("all", 5, 1), ("largest", 4, 0), ("first", 4, 1)):
        chosen = samples.crops(table, which, 0)
        assert (len(chosen), chosen["x1"][0]) == (count, first)
    grown = samples.crops(make_table(["a"], boxes=[(10, 20, 30, 60)]), "all", 0.1)
    assert grown[BOX].to_numpy().tolist() == [[8, 16, 32, 64]]
    assert samples.boxes_of(make_table(["a"])) is None
    for margin in (-0.1, float("nan"), "wide", None):
        with pytest.raises(UserError, match=rf"^data\.margin={as_typed(margin)} must "):
            samples.require_crops("all", margin)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.csv", "path,weight\na,01\nb,NA\n"),
        ("x.csv", b"\xef\xbb\xbfpath;weight;more\r\na;01;\r\n\r\nb;NA;,\r\n"),
        ("x.tsv", "weight\tpath,note\tpath\n01\t\ta\nNA\t\tb"),
        ("x.txt", '\npath|weight\n"a"|01|\n|\nb|"NA"\n'),
        ("x.csv", "path,weight\ra,01\rb,NA\r"),
        ("x.csv", "path,weight\na,01\nb,NA".encode("utf-16")),
    ],
)
def test_columns_are_read_as_text(tmp_path: Path, name: str, content: str | bytes) -> None:
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    table = samples.read_columns(tmp_path / name, ["path", "weight"], ["box"])
    assert table.to_dict("list") == {"path": ["a", "b"], "weight": ["01", "NA"]}


def test_lines_are_numbered(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('path,note\na,b\n\n,\n b,c\n"d, e",,\n"f\u2028\ng","h"\nlast,"\n"\n')
    table = samples.read_columns(tmp_path / "x.csv", ["path"], ["note"])
    assert dict(zip(table.index, table["path"], strict=True)) == {
        2: "a",
        5: " b",
        6: "d, e",
        7: "f\u2028\ng",
        8: "last",
    }


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("", "'path'.*empty"),
        ("pth\na\n", "'path'.*did you mean pth"),
        ("path,path\na,b\n", "2 columns 'path'"),
        ("path,b\na\n", "line 2 has 1 cells"),
        ("path,b\na,b\na,b,c\n", "line 3 has 3 cells"),
        ('path\n"a\nb\n', "quote"),
        ("path\na\ncaf\xe9\n".encode("latin-1"), "line 3.*iconv -f WINDOWS-1252"),
    ],
)
def test_columns_that_cannot_be_read(tmp_path: Path, content: str | bytes, named: str) -> None:
    (tmp_path / "x.csv").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ValueError, match=named):
        samples.read_columns(tmp_path / "x.csv", ["path"])


def test_parquet(tmp_path: Path) -> None:
    content = pd.DataFrame({"path": ["a", None], "number": [1, None], "part": pd.Categorical(["x", "y"])})
    content.convert_dtypes().to_parquet(tmp_path / "x.parquet")
    table = samples.read_columns(tmp_path / "x.parquet", ["part", "number", "path"])
    assert table.to_dict("list") == {"part": ["x", "y"], "number": ["1", ""], "path": ["a", ""]}
    assert list(table.index) == [1, 2]
    (tmp_path / "y.parquet").write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"(?i)parquet"):
        samples.read_columns(tmp_path / "y.parquet", ["path"])
