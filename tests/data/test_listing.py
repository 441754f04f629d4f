"""Files below a folder, and paths that stay in it."""

import os
from pathlib import Path

import pandas as pd
import pytest

from classifier.data.listing import inside, mark_unusable
from tests.data.listing import touch
from tests.data.tables import make_table


def text(*values: str | None) -> pd.Series:
    return pd.Series(values, dtype="str")


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
        (found, *_) = inside(text(*given), "f", root)
        assert (None if pd.isna(found) else found) == wanted
    if path.startswith("{link}"):
        assert inside(text(named, f"{root}/c"), "", tmp_path / "link").tolist() == ["a/b.jpg", "c"]


def test_files_are_looked_for_by_one_listing_of_each_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of a million lines must not look at each file."""
    names = [f"{number % 3}/{number}.jpg" for number in range(300)]
    touch(tmp_path, *names, "top.jpg")
    asked: list[Path] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: asked.append(path) or scandir(path))  # type: ignore[func-returns-value]
    monkeypatch.setattr(os, "stat", lambda *_, **__: pytest.fail("a look at a file"))
    table = make_table([*names, "top.jpg", "3/x.jpg", "0/no.jpg", "a\0b/c"])
    table = mark_unusable(table, tmp_path, "x.csv", "")
    assert table["path"][table["problem"].notna()].tolist() == ["3/x.jpg", "0/no.jpg", "a\0b/c"]
    assert len(asked) == 9  # the folders of what is missing, and the one above them, once more
