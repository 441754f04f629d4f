import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from classifier.errors import UserError
from classifier.evaluation.predictions import label_columns, rounded, top_labels, write_json, write_table


@pytest.mark.parametrize(
    ("top_k", "expected"),
    [
        (1, ["label", "confidence"]),
        (3, ["label", "confidence", "label_2", "confidence_2", "label_3", "confidence_3"]),
    ],
)
def test_columns(top_k: int, expected: list[str]) -> None:
    assert label_columns(top_k) == expected


def test_top_labels_are_the_likeliest_in_order() -> None:
    cells = top_labels(torch.tensor([0.2, 0.7, 0.1]), ["cat", "dog", "owl"], top_k=2)
    assert cells == ["dog", "0.700000", "cat", "0.200000"]
    assert len(top_labels(torch.full((3,), 1 / 3), ["cat", "dog", "owl"], top_k=3)) == len(label_columns(3))


@pytest.mark.parametrize("cell", ["a, b", 'a "b"', "two\nlines", "Zürich 犬", "bytes \udcff\udcfe"])
def test_table_comes_back_as_written(cell: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "table.csv"
    write_table(path, ["path", "label"], [[cell, "1"], ["plain", "2"]])
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        assert list(csv.reader(file)) == [["path", "label"], [cell, "1"], ["plain", "2"]]


def test_table_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    write_table(path, ["number"], [["old"]])

    def rows() -> Iterator[list[str]]:
        yield ["new"]
        assert "old" in path.read_text()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_table(path, ["number"], rows())
    assert path.read_text().split() == ["number", "old"]

    write_table(path, ["number"], [["new"]])
    assert path.read_text().split() == ["number", "new"]
    assert [file.name for file in tmp_path.iterdir()] == ["table.csv"]


@pytest.mark.parametrize("name", ["folder", "file/table.csv", "file/below/table.csv", "n" * 300])
def test_place_that_cannot_be_written_is_wrong_input(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*output=\.\.\."):
        write_table(tmp_path / name, ["path"], [["x"]])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_metrics_are_rounded_sorted_and_only_metrics(tmp_path: Path) -> None:
    values = {
        "val/loss": 0.12345678,
        "test/acc": 1.0,
        "all/acc": 0.5,
        "train/loss_step": 2.0,
        "lr-AdamW": 0.1,
        "train/acc": 0.25,
    }
    kept = rounded(values)
    assert list(kept.items()) == [("all/acc", 0.5), ("test/acc", 1.0), ("train/acc", 0.25), ("val/loss", 0.123457)]
    write_json(tmp_path / "metrics.json", kept)
    assert json.loads((tmp_path / "metrics.json").read_text()) == kept
