import os
from pathlib import Path

import numpy as np
import pytest

from classifier.data.samples import Samples
from classifier.data.split import Splitting, read_split, write_split
from classifier.errors import UserError
from tests.data.test_split import ROOT, parts, table


@pytest.mark.parametrize("boxes_each", [1, 2])
def test_written_and_read_back(tmp_path: Path, boxes_each: int) -> None:
    samples = table((9, 11), boxes_each)
    split = Splitting(0.2, 0.2, split_seed=1).split(samples)
    write_split(tmp_path / "split.csv", samples, split)
    back = read_split(tmp_path / "split.csv", samples)
    assert list(back) == list(split)
    assert all(back[name].tolist() == split[name].tolist() and back[name].dtype == np.int64 for name in split)


def test_awkward_names_are_written_and_read_back(tmp_path: Path) -> None:
    names = ['a,"b".jpg', "größe.jpg", os.fsdecode(b"\xff\xe9.jpg"), "two\nlines.jpg", " space .jpg"]
    samples = Samples.build(ROOT, ["a,b", "c"], names, [0, 0, 1, 1, 0])
    split = {"train": np.array([0, 2, 4]), "test": np.array([1, 3])}
    write_split(tmp_path / "split.csv", samples, split)
    back = read_split(tmp_path / "split.csv", samples)
    assert {name: rows.tolist() for name, rows in back.items()} == {"train": [0, 2, 4], "test": [1, 3]}


def test_files_that_came_later_move_nothing(tmp_path: Path) -> None:
    before, after = table((10, 10)), table((13, 11))
    split = Splitting(0.2, 0.2, split_seed=0).split(before)
    write_split(tmp_path / "split.csv", before, split)
    assert parts(after, read_split(tmp_path / "split.csv", after)) == parts(before, split)


def test_samples_that_are_gone_are_named(tmp_path: Path) -> None:
    before, after = table((10, 10)), table((10, 8))
    write_split(tmp_path / "split.csv", before, Splitting(0.2, 0.2, split_seed=0).split(before))
    with pytest.raises(UserError, match=r"2 of the 20 samples .* 1/00[89]\.jpg .*data\.split_file=null"):
        read_split(tmp_path / "split.csv", after)


def test_a_missing_sample_is_noticed_beside_a_box_that_is_there_twice(tmp_path: Path) -> None:
    before = Samples.build(ROOT, ["a", "b"], ["0.jpg", "0.jpg", "1.jpg"], [0, 0, 1], boxes=[(0, 0, 5, 5)] * 3)
    write_split(tmp_path / "split.csv", before, {"train": np.arange(3)})
    with pytest.raises(UserError, match=r"1\.jpg"):
        read_split(tmp_path / "split.csv", before.select(np.array([0, 1])))


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"file,part\n0/000.jpg,train\n",
        b"path,label,split,box\n0/000.jpg,0\n",
        b"path,box,label,split\n0/000.jpg,,0\n",
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\r\0",
        b'path,label,split,box\n"' + b"x" * 200_000 + b'",0,train,\n',
    ],
    ids=["missing", "empty", "other columns", "short row", "short row without split", "binary", "huge field"],
)
def test_a_malformed_split_file_is_a_user_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "split.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"split\.csv.*data\.split_file=null"):
        read_split(path, table((3, 3)))


def test_an_unknown_part_is_named(tmp_path: Path) -> None:
    (tmp_path / "split.csv").write_text("path,label,split,box\n0/000.jpg,0,trian,\n")
    with pytest.raises(UserError, match=r"'trian'.*train, val, test"):
        read_split(tmp_path / "split.csv", table((3, 3)))


def test_an_own_split_file_divides_whole_images(tmp_path: Path) -> None:
    samples = table((4, 4), boxes_each=2)
    path = tmp_path / "mine.csv"
    lines = [f"{label}/{image:03d}.jpg,{('train', 'val', 'test')[image % 3]}" for label in (0, 1) for image in range(3)]
    path.write_text("\n".join(["path,split", *lines]))
    split = read_split(path, samples)
    assert {name: len(rows) for name, rows in split.items()} == {"train": 4, "val": 4, "test": 4}
    assert {samples.relative_path(row) for row in split["val"]} == {"0/001.jpg", "1/001.jpg"}


def test_parts_have_the_usual_names(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("path,split\n0/000.jpg,TRAIN\n0/001.jpg,validation\n1/001.jpg, Testing\n")
    split = read_split(path, table((3, 3)))
    assert {name: rows.tolist() for name, rows in split.items()} == {"train": [0], "val": [1], "test": [4]}


def test_samples_that_are_not_listed_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("path,split\n0/000.jpg,train\n1/001.jpg,test\n")
    with caplog.at_level("INFO"):
        read_split(path, table((3, 3)))
    assert "does not list 4 of the 6 samples" in caplog.text


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_what_a_spreadsheet_saves(separator: str, tmp_path: Path) -> None:
    lines = [["path", "note", "split"], ["0/000.jpg", "", "train"], [], ["1/001.jpg", "x", "test"]]
    path = tmp_path / "mine.csv"
    path.write_text("\r\n".join(map(separator.join, lines)), encoding="utf-8-sig", newline="")
    split = read_split(path, table((3, 3)))
    assert {name: rows.tolist() for name, rows in split.items()} == {"train": [0], "test": [4]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,splits\n", r"no column 'split', its first line names: path, splits; did you mean splits\?"),
        ("path,split\n0/000.jpg\n", "line 2 has 1 cells, the first line 2"),
        ('path,split\n"0/000.jpg,train\n', "line 2: unexpected end of data"),
        ("path,split\n0/000.jpg,train\n0/000.jpg,val\n", "line 3: 0/000.jpg is in train and in val"),
    ],
)
def test_the_place_of_a_fault_is_told(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_split(tmp_path / "mine.csv", table((3, 3)))
