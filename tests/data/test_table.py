import logging
import os
from pathlib import Path
from typing import Any

import pytest

from classifier.data.modules import TableDataModule
from classifier.data.samples import SPLITS, Listing, Problem, Samples, inside
from classifier.data.table import TableSource
from classifier.errors import UserError
from tests.data.test_folder import touch
from tests.generate import picture, save

FILES = ("a.jpg", "b.jpg", "sub/c.jpg")


def write(root: Path, text: str | bytes, name: str = "labels.csv", files: tuple[str, ...] = FILES) -> Path:
    """A table with its (empty) images."""
    touch(root, *files)
    (root / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return root


def read(root: Path, table: str = "labels.csv", **options: Any) -> tuple[Samples, list[Problem]]:
    return TableSource(root, table=table, **options).read()


def listed(samples: Samples) -> list[tuple[str, str]]:
    return [(samples.relative_path(row), samples.classes[samples.labels[row]]) for row in range(len(samples))]


TWO = [("a.jpg", "cat"), ("sub/c.jpg", "dog")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.csv", "path,label\na.jpg,cat\nsub/c.jpg,dog\n"),
        ("labels.csv", b"\xef\xbb\xbfpath,label\r\na.jpg,cat\r\n\r\nsub/c.jpg,dog"),
        ("labels.csv", "path;label\na.jpg;cat\nsub/c.jpg;dog\n"),
        ("labels.txt", "path|label\na.jpg|cat\nsub/c.jpg|dog\n"),
        ("labels.tsv", "path\tlabel\na.jpg\tcat\nsub/c.jpg\tdog\n"),
        ("labels.csv", "path\tlabel\na.jpg\tcat\nsub/c.jpg\tdog\n"),
        ("labels.csv", 'id,label , path\n1,cat,"a.jpg"\n2,"dog", sub\\c.jpg\n'),
        ("labels.csv", "path,label\n./a.jpg,cat\nsub/../sub//c.jpg,dog,\n"),
    ],
)
def test_tables(tmp_path: Path, name: str, text: str | bytes) -> None:
    samples, problems = read(write(tmp_path, text, name), name)
    assert problems == []
    assert listed(samples) == TWO
    assert samples.boxes is None
    assert samples.groups is None


def test_a_line_break_in_a_cell_is_no_line(tmp_path: Path) -> None:
    text = 'path,label,note\na.jpg,cat,"two\nlines\u2028here"\nb.jpg,,\n'
    samples, problems = read(write(tmp_path, text))
    assert listed(samples) == [("a.jpg", "cat")]
    assert problems == [Problem("b.jpg", "line 4 of labels.csv: no label")]


@pytest.mark.parametrize("place", ["root", "elsewhere", "no root"])
def test_where_the_table_lies(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "path,label\na.jpg,cat\nsub/c.jpg,dog\n"
    root = write(tmp_path / "photos", text)
    monkeypatch.chdir(tmp_path)
    if place == "root":
        source = TableSource(Path("photos"), table="labels.csv")
    elif place == "elsewhere":
        (root / "labels.csv").rename(tmp_path / "mine.csv")
        source = TableSource(Path("photos"), table="mine.csv")
    else:
        source = TableSource(None, table="photos/labels.csv")
    assert source.root == Path("photos")
    assert listed(source.read()[0]) == TWO


def test_columns_by_name(tmp_path: Path) -> None:
    root = write(tmp_path, "id,defect\n1,cat\nx.2,dog\n3.JPG,dog\n", files=("all/1.jpg", "all/x.2.jpg", "all/3.JPG"))
    samples, problems = read(root, path_column="id", label_column="defect", images="all/", extension="jpg")
    assert problems == []
    assert listed(samples) == [("all/1.jpg", "cat"), ("all/x.2.jpg", "dog"), ("all/3.JPG", "dog")]


@pytest.mark.parametrize(
    ("labels", "classes"), [(("10", "9", "-1"), ("-1", "9", "10")), (("10", "9", "x"), ("10", "9", "x"))]
)
def test_order_of_classes(tmp_path: Path, labels: tuple[str, ...], classes: tuple[str, ...]) -> None:
    lines = [f"{path},{label}" for path, label in zip(FILES, labels, strict=True)]
    samples, _ = read(write(tmp_path, "\n".join(["path,label", *lines])))
    assert samples.classes == classes
    assert [label for _, label in listed(samples)] == list(labels)


def test_given_classes(tmp_path: Path) -> None:
    root = write(tmp_path, "path,label\na.jpg,cat\nb.jpg,dog\n")
    samples, _ = TableSource(root, table="labels.csv").read(["dog", "bird", "cat"])
    assert samples.labels.tolist() == [2, 0]
    with pytest.raises(UserError, match=r"column label has the class 'dog' that training .*1 classes: cat"):
        TableSource(root, table="labels.csv").read(["cat"])


def test_parts_and_groups(tmp_path: Path) -> None:
    names = ("train", "Valid", "TEST", "val", "validation")
    lines = [f"{number}.jpg,cat,{name},p{number % 2}" for number, name in enumerate(names)]
    files = tuple(f"{number}.jpg" for number in range(5))
    root = write(tmp_path, "\n".join(["path,label,part,patient", *lines]), files=files)
    samples, _ = read(root, split_column="part", group_column="patient")
    assert [SPLITS[split] for split in samples.splits] == ["train", "val", "test", "val", "val"]
    assert samples.groups is not None
    assert samples.groups.tolist() == [0, 1, 0, 1, 0]


def test_a_class_that_training_lacks_is_refused(tmp_path: Path) -> None:
    root = write(tmp_path, "path,label,part\na.jpg,cat,train\nb.jpg,dog,train\nsub/c.jpg,bird,test\n")
    with pytest.raises(UserError, match="'bird' that training does not know"):
        read(root, split_column="part")


CORNERS: dict[str, Any] = {
    "box_columns": ["xmin", "ymin", "xmax", "ymax"],
    "path_column": "filename",
    "label_column": "class",
}


@pytest.mark.parametrize(
    ("box_format", "boxes"),
    [
        ("xyxy", [(1, 2, 11, 12), (3, 4, 5, 7), (0, 0, 9, 9)]),
        ("xywh", [(1, 2, 12, 14), (3, 4, 8, 11), (0, 0, 9, 9)]),
    ],
)
def test_boxes(tmp_path: Path, box_format: str, boxes: list[tuple[int, ...]]) -> None:
    text = (
        "filename,width,height,class,xmin,ymin,xmax,ymax\n"
        "a.jpg,80,60,cat,1,2,11,12\na.jpg,80,60,dog,3.4,4,4.2,6.5\nb.jpg,80,60,cat,0,0,9,9\n"
    )
    samples, problems = read(write(tmp_path, text), box_format=box_format, **CORNERS)
    assert problems == []
    assert [samples.box(row) for row in range(3)] == boxes
    assert listed(samples) == [("a.jpg", "cat"), ("a.jpg", "dog"), ("b.jpg", "cat")]


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ("1,2,wide,9", "the box 1, 2, wide, 9 is not of four numbers"),
        (",,,", "not of four numbers"),
        ("1,2,nan,9", "not finite"),
        ("9,2,3,9", "empty box: x 9 to 3"),
    ],
)
def test_bad_boxes(tmp_path: Path, cells: str, reason: str) -> None:
    text = f"filename,class,xmin,ymin,xmax,ymax\na.jpg,cat,1,2,3,4\nb.jpg,cat,{cells}\n"
    samples, (problem,) = read(write(tmp_path, text), **CORNERS)
    assert len(samples) == 1
    assert problem.path == "b.jpg"
    assert "line 3 of labels.csv" in problem.reason
    assert reason in problem.reason


@pytest.mark.parametrize(
    ("lines", "path", "reason"),
    [
        ("b.jpg,", "b.jpg", "line 3 of labels.csv: no label"),
        (",dog", "labels.csv", "line 3 of labels.csv: no path"),
        ("d.jpg,dog", "d.jpg", "line 3 of labels.csv: no such file"),
        ("none/a.jpg,dog", "none/a.jpg", "no such file"),
        ("b.jpg", "labels.csv line 3", "has 1 cells, the first line 2"),
        ("b.jpg,dog,cat", "labels.csv line 3", "has 3 cells, the first line 2: quote a cell that has ','"),
        ("b.jpg,dog\nsub/c.jpg,cat\nb.jpg,cat", "b.jpg", "lines 3 and 5 of labels.csv label it 'dog' and 'cat'"),
    ],
)
def test_what_cannot_be_used_is_a_problem(tmp_path: Path, lines: str, path: str, reason: str) -> None:
    samples, problems = read(write(tmp_path, f"path,label\na.jpg,cat\n{lines}\n"))
    assert [problem.path for problem in problems] == [path]
    assert reason in problems[0].reason
    assert path not in [name for name, _ in listed(samples)]
    assert ("a.jpg", "cat") in listed(samples)


def test_an_image_in_two_parts_is_a_problem(tmp_path: Path) -> None:
    text = "path,label,part\na.jpg,cat,train\nb.jpg,cat,train\nb.jpg,cat,test\n"
    samples, problems = read(write(tmp_path, text), split_column="part")
    assert listed(samples) == [("a.jpg", "cat")]
    assert problems == [Problem("b.jpg", "lines 3 and 4 of labels.csv put it into train and test")]


def test_a_repeated_line_counts_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write(tmp_path, "path,label\na.jpg,cat\na.jpg,cat\n./a.jpg,cat\nb.jpg,dog\n")
    with caplog.at_level(logging.WARNING):
        samples, problems = read(root)
    assert listed(samples) == [("a.jpg", "cat"), ("b.jpg", "dog")]
    assert problems == []
    assert "2 lines repeat another one" in caplog.text


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("file_name,label\n", {}, r"no column 'path', its first line names: file_name, label\. Use data\.path_column="),
        ("path,lable\n", {}, r"no column 'label'.*data\.label_column=\.\.\., did you mean lable"),
        ("path,label\n", {"split_column": "part"}, r"no column 'part'.*data\.split_column="),
        ("path,label,path\n", {}, r"2 columns 'path': rename all but one \(data\.path_column\)"),
        ("path,label\n", {}, r"no line below its first.*data\.table="),
        ("", {}, r"is empty.*data\.table="),
        ("path,label\na.jpg,caf\xe9\n".encode("latin-1"), {}, "byte 0xe9 at position 20, line 2.*CSV UTF-8"),
        (b"\xef\xbb\xbfpath,label\na.jpg,\xff\n", {}, "byte 0xff at position 20, line 2"),
        ("path,label\na.jpg,cat\n".encode("utf-16"), {}, "is in UTF-16: .*iconv -f UTF-16 -t UTF-8"),
        ('path,label\na.jpg,"cat\nb.jpg,dog\n', {}, "line 3, is malformed .unexpected end of data"),
        ("path,label\n/etc/passwd,cat\n", {}, r"line 2: '/etc/passwd' is an absolute path.*relative to data\.root="),
        ("path,label\nC:\\a.jpg,cat\n", {}, r"line 2: 'C:\\\\a.jpg' is an absolute path"),
        ("path,label\na.jpg,x\nsub/../../b.jpg,y\n", {}, "line 3: 'sub/../../b.jpg' leads out of the data folder"),
        ("path,label\n../b.jpg,y\n", {}, "line 2: '../b.jpg' leads out of the data folder"),
        ("path,label,part\na.jpg,x,dev\n", {"split_column": "part"}, "line 2: 'dev' in the column part is no part"),
        ("path,label\nx/a.jpg,x\ny/a.jpg,x\n", {}, r"none of the 2 files .*x/a.jpg \(line 2\).*data\.images="),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, text: str | bytes, options: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(write(tmp_path, text), **options)


def test_a_missing_table(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"photos does not exist: .*data\.root="):
        read(tmp_path / "photos")
    with pytest.raises(UserError, match=r"labels.csv or labels.csv does not exist: .*data\.table="):
        read(tmp_path)
    with pytest.raises(UserError, match=r"the table labels.csv does not exist"):
        TableSource(None, table="labels.csv").read()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"box_format": "xyxx"}, r"data\.box_format=xyxx is unknown: did you mean"),
        ({"box_columns": ["x", "y"]}, r"must name four columns: use data\.box_columns=\[xmin"),
        ({"box_columns": "xmin"}, "must name four columns"),
        ({"images": "../other"}, r"data\.images=../other must be a folder below data\.root"),
        ({"images": "/other"}, r"data\.images=/other must be a folder below data\.root"),
    ],
)
def test_options_that_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, **options)


def test_skipping(tmp_path: Path) -> None:
    for name, color in (("a", "red"), ("b", "red"), ("c", "blue"), ("d", "blue")):
        save(picture(color), tmp_path / f"{name}.jpg")
    (tmp_path / "labels.csv").write_text("path,label\na.jpg,red\nb.jpg,red\nc.jpg,blue\nd.jpg,\ne.jpg,blue\n")
    module = TableDataModule(tmp_path, table="labels.csv", on_error="skip")
    module.setup()
    assert len(module.samples) == 3
    assert {problem.path for problem in module.skipped} == {"d.jpg", "e.jpg"}
    with pytest.raises(UserError, match="2 of 5 samples") as error:
        TableDataModule(tmp_path, table="labels.csv").setup()
    assert "e.jpg: line 6 of labels.csv: no such file" in str(error.value)


def test_folders_are_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of a million lines must not look at each file."""
    lines = [f"{number % 3}/{number}.jpg,{number % 5}" for number in range(300)]
    root = write(tmp_path, "\n".join(["path,label", *lines]), files=tuple(line.split(",")[0] for line in lines))
    asked: list[Path] = []
    scandir = os.scandir

    def counted(path: Path) -> Any:
        asked.append(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counted)
    monkeypatch.setattr(os, "stat", lambda *_, **__: pytest.fail("a look at a file"))
    files = Listing(root)
    assert all(line.split(",")[0] in files for line in lines)
    assert len(asked) == 3


def test_absolute_paths_below_the_data_folder(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    (tmp_path / "link").symlink_to(root)
    assert inside(f"{root}/a/b.jpg", "images", root) == "a/b.jpg"
    assert inside(f"{root}/a/b.jpg", "", tmp_path / "link") == "a/b.jpg"
    assert inside(f"{tmp_path}/link/a/b.jpg", "", tmp_path / "link") == "a/b.jpg"
    for elsewhere in (f"{tmp_path}/photos2/a.jpg", f"{root}/../a.jpg", "/etc/passwd"):
        with pytest.raises(ValueError, match=r"absolute path elsewhere|leads out of the data folder"):
            inside(elsewhere, "", root)


@pytest.mark.parametrize(
    ("path", "wanted"),
    [("a.jpg", "f/a.jpg"), (".hidden.jpg", "f/.hidden.jpg"), ("../a.jpg", "a.jpg"), ("a/./b//c", "f/a/b/c")],
)
def test_inside(path: str, wanted: str) -> None:
    assert inside(path, "f") == wanted
