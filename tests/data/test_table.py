import logging
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from classifier.data import TableDataModule
from classifier.errors import UserError
from tests.data.listing import listed, problems, touch

TWO = [("a.jpg", "cat"), ("sub/c.jpg", "dog")]


def write(root: Path, text: str | bytes, name: str = "labels.csv", files: tuple[str, ...] = ()) -> Path:
    """A table with its (empty) images."""
    touch(root, *(files or ("a.jpg", "b.jpg", "sub/c.jpg")))
    (root / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return root


def read(root: Path, table: str = "labels.csv", **options: Any) -> TableDataModule:
    return TableDataModule(root, table=table, **options)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.csv", b"\xef\xbb\xbfpath,label\r\na.jpg,cat\r\n\r\nsub/c.jpg,dog"),
        ("labels.tsv", "path\tlabel\na.jpg\tcat\nsub/c.jpg\tdog\n"),
        ("labels.txt", 'id|label | path\n1|cat|"a.jpg"\n2|"dog"| sub\\c.jpg\n'),
        ("labels.csv", "path,label\n./a.jpg, cat\nsub/../sub//c.jpg,dog,\n"),
        ("labels.csv", "path,label\n{root}/a.jpg,cat\n{root}/sub/c.jpg,dog\n"),
    ],
)
def test_tables(tmp_path: Path, name: str, text: str | bytes) -> None:
    content = text.format(root=tmp_path) if isinstance(text, str) else text
    module = read(write(tmp_path, content, name), name)
    assert listed(module) == TWO
    assert problems(module) == {}


def test_parquet(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    frame = pd.DataFrame({"path": ["a.jpg", "b.jpg", "c.jpg"], "label": [10, 9, 9], "part": ["train", "test", "test"]})
    frame.to_parquet(tmp_path / "labels.parquet")
    module = read(tmp_path, "labels.parquet", split_column="part")
    with pytest.raises(UserError, match="'9'"):
        module.read()
    frame.assign(part="train").to_parquet(tmp_path / "labels.parquet")
    assert listed(module, "split") == [("a.jpg", "10", "train"), ("b.jpg", "9", "train")]
    assert list(module.read()["label"].cat.categories) == ["9", "10"]
    assert "3 of labels.parquet" in problems(module)["c.jpg"]


def test_numbers_as_labels(tmp_path: Path) -> None:
    """Of a Parquet file: as they are, and never a class of what is missing."""
    touch(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    for labels, classes in (
        (pa.array([2**63 + 1, 10, 9], pa.uint64()), ["9", "10", str(2**63 + 1)]),
        (pa.array([1e300, 1.5, 10.0]), ["1.5", "10.0", "1e+300"]),
        (pa.array([2.0, float("nan"), 10.0]), ["2.0", "10.0"]),
    ):
        table = pa.table({"path": ["a.jpg", "b.jpg", "c.jpg"], "label": labels})
        pq.write_table(table, tmp_path / "labels.parquet")
        module = read(tmp_path, "labels.parquet")
        assert list(module.read()["label"].cat.categories) == classes
        assert [*problems(module)] == ["b.jpg"] * (len(classes) == 2)


@pytest.mark.parametrize("place", ["root", "elsewhere", "no root"])
def test_where_the_table_lies(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(tmp_path / "photos", "path,label\na.jpg,cat\nsub/c.jpg,dog\n")
    monkeypatch.chdir(tmp_path)
    if place == "elsewhere":
        (root / "labels.csv").rename(tmp_path / "mine.csv")
    table = {"root": "labels.csv", "elsewhere": "mine.csv", "no root": "photos/labels.csv"}[place]
    module = TableDataModule(None if place == "no root" else "photos", table=table)
    assert module.root == Path("photos")
    assert listed(module) == TWO


def test_columns_by_name(tmp_path: Path) -> None:
    root = write(tmp_path, "id,problem\n1,cat\nx.2,dog\n3.JPG,01\n", files=("all/1.jpg", "all/x.2.jpg", "all/3.JPG"))
    module = read(root, path_column="id", label_column="problem", images="all/", extension="jpg")
    assert listed(module) == [("all/1.jpg", "cat"), ("all/x.2.jpg", "dog"), ("all/3.JPG", "01")]


def test_parts_and_groups(tmp_path: Path) -> None:
    names = ("train", "Valid", "TEST", "val", "training")
    lines = [f"{number}.jpg,cat,{name},{['p', '', 'q', 'nan'][number % 4]}" for number, name in enumerate(names)]
    root = write(
        tmp_path, "\n".join(["path,label,part,patient", *lines]), files=tuple(f"{number}.jpg" for number in range(5))
    )
    rows = listed(read(root, split_column="part", group_column="patient"), "split", "group")
    assert [row[2:] for row in rows] == [
        ("train", "p"), ("val", None), ("test", "q"), ("val", None), ("train", "p")
    ]  # fmt: skip


CORNERS: dict[str, Any] = {
    "box_columns": ["xmin", "ymin", "xmax", "ymax"],
    "path_column": "filename",
    "label_column": "class",
}


@pytest.mark.parametrize(("box_format", "second"), [("xyxy", (3, 4, 5, 7)), ("xywh", (3, 4, 8, 11))])
def test_boxes(tmp_path: Path, box_format: str, second: tuple[int, ...]) -> None:
    lines = ("a.jpg,80,cat,0,0,9,9", "a.jpg,80,dog,3.4, 4,4.2,6.5")
    bad = ("a.jpg,80,cat,1,2,wide,9", "a.jpg,80,cat,1,,,", "b.jpg,80,cat,9,2,-3,9")
    root = write(tmp_path, "\n".join(["filename,width,class,xmin,ymin,xmax,ymax", *lines, *bad]))
    module = read(root, box_format=box_format, **CORNERS)
    assert listed(module) == [("a.jpg", "cat", (0, 0, 9, 9)), ("a.jpg", "dog", second)]
    table = module.read()
    reasons = table["problem"][table["problem"].notna()].tolist()
    for line, named, reason in zip((4, 5, 6), ("x 1 to nan", "nan", "x 9 to"), reasons, strict=True):
        assert f"line {line} of labels.csv" in reason
        assert named in reason


def test_lines_without_a_box(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They are images without an object, and need no label; a box needs one."""
    lines = ("a.jpg,cat,1,2,8,9", "b.jpg,,,,,", "sub/c.jpg,, nan,NaN,nan,nan", "a.jpg,,1,2,9,9")
    root = write(tmp_path, "\n".join(["filename,class,xmin,ymin,xmax,ymax", *lines]))
    assert listed(read(root, **CORNERS)) == [("a.jpg", "cat", (1, 2, 8, 9))]
    assert "2 images have no box" in caplog.text
    module = read(root, negatives="none", **CORNERS)
    assert [row[1] for row in listed(module)] == ["cat", "none", "none"]
    assert problems(module) == {"a.jpg": "line 5 of labels.csv: no label"}


@pytest.mark.parametrize(
    ("lines", "path", "reason"),
    [
        ("b.jpg,", "b.jpg", "line 3 of labels.csv: no label"),
        (",dog", "labels.csv", "line 3 of labels.csv: no path"),
        ("d.jpg,dog", "d.jpg", "line 3 of labels.csv: no such file"),
        ("none/a.jpg,dog", "none/a.jpg", "no such file"),
        ("/etc/passwd,cat", "labels.csv", "line 3 of labels.csv: /etc/passwd is not below data.root="),
        ("C:\\a.jpg,cat", "labels.csv", "data.root="),
        ("sub/../../b.jpg,y", "labels.csv", "data.root="),
        ("b.jpg", "b.jpg", "line 3 of labels.csv: has 1 cells"),
        ('b.jpg,dog,cat\n"x\ny",cat', "b.jpg", "has 3 cells, the first line 2"),
        ("b.jpg,dog\nsub/c.jpg,cat\nb.jpg,cat", "b.jpg", "not its only label"),
        ("b.jpg,nan", "b.jpg", "data.any_label=true"),
        ("/x/sub/c.jpg,dog", "labels.csv", "data.path_prefix=/x/"),
        ("A.jpg,dog", "A.jpg", "no such file"),  # a.jpg is another's
    ],
)
def test_what_cannot_be_used_is_a_problem(tmp_path: Path, lines: str, path: str, reason: str) -> None:
    module = read(write(tmp_path, f"path,label\na.jpg,cat\n{lines}\n"))
    found = problems(module)
    assert reason in found[path]
    assert path not in [row[0] for row in listed(module)]
    assert ("a.jpg", "cat") in listed(module)


def test_an_image_in_two_parts_is_a_problem(tmp_path: Path) -> None:
    module = read(
        write(tmp_path, "path,label,part\na.jpg,cat,train\nb.jpg,cat,train\nb.jpg,cat,test\n"), split_column="part"
    )
    assert listed(module) == [("a.jpg", "cat")]
    assert "more than one part" in problems(module)["b.jpg"]
    write(tmp_path, "path,label,part\na.jpg,cat,train\nb.jpg,cat,dev\n")
    assert "data.split_column=null" in problems(read(tmp_path, split_column="part"))["b.jpg"]
    write(tmp_path, "path,label,part\na.jpg,cat,TRAIN\nb.jpg,cat,UNASSIGNED\n")
    assert "data.on_error=skip" in problems(read(tmp_path, split_column="part"))["b.jpg"]


def test_a_repeated_line_counts_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = read(write(tmp_path, "path,label\na.jpg,cat\na.jpg,cat\n./a.jpg,cat\nb.jpg,dog\n"))
    with caplog.at_level(logging.WARNING):
        assert listed(module) == [("a.jpg", "cat"), ("b.jpg", "dog")]
    assert "2 lines" in caplog.text
    assert problems(module) == {}


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("file_name,label\n", {}, r"'path': choose from: file_name, label.*data\.path_column="),
        ("path,lable\n", {}, r"'label'.*did you mean lable.*data\.label_column="),
        ("path,label\n", {"split_column": "part"}, r"'part'.*data\.split_column="),
        ("path,label\n", {"box_columns": ["a", "b", "c", "d"]}, r"'a'.*data\.box_columns="),
        ("path,label,path\n", {}, r"2 columns 'path'.*data\.path_column"),
        ("path,label\n", {}, r"data\.table="),
        ("", {}, r"is empty.*data\.table="),
        ("a.jpg 0\n", {}, r"data\.header=false data\.path_column=1 data\.label_column=2"),
        ("path,cat,dog\na.jpg,0,1\n", {}, r"task=multi_label data\.label_columns="),
        ("path,label\na.jpg,개\n".encode("cp949"), {}, r"line 2.*data\.encoding=cp949"),
        ("path,label\n", {"encoding": "klingon"}, r"klingon.*data\.encoding="),
        ("path,label\n/x/y/sub/c.jpg,x\n", {}, r"/x/y/sub/c.jpg.*data\.path_prefix=/x/y/$"),
        ("path,label\nC:\\x\\a.jpg,x\n", {}, r"data\.path_prefix=C:/x/$"),
        (f"path,label\ns3://x/{'y' * 300}.jpg,x\n", {}, r"address.*data\.path_prefix=s3://x/$"),
        ('path;label\na.jpg;["cat"]\nb.jpg;dog\n', {}, r"task=multi_label data\.label_separator="),
        ("path,label\nx/a.jpg,x\ny/a.jpg,x\n", {}, r"none of the 2 images.*x/a.jpg.*data\.images="),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, text: str | bytes, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(write(tmp_path, text), **options).read()


def test_what_to_take_off_an_address_of_a_file(tmp_path: Path) -> None:
    root = write(tmp_path, f"path,label\nfile://{tmp_path}/a.jpg,x\n")
    with pytest.raises(UserError, match=rf"data\.path_prefix=file://{tmp_path}/$"):
        read(root).read()
    assert listed(read(root, path_prefix=f"file://{tmp_path}/"))[0][0] == "a.jpg"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"header": "no"}, r"data\.header=no"),
        ({"any_label": 1}, r"data\.any_label=1"),
        ({"box_format": "xyxx"}, r"data\.box_format=xyxx"),
        ({"box_columns": ["x", "y"]}, r"data\.box_columns=\[x,y\]"),
        ({"box_columns": "xmin"}, r"data\.box_columns=xmin"),
        ({"size_columns": ["width"]}, r"data\.size_columns=\[width\]"),
        ({"images": "../other"}, r"data\.images=../other .*data\.root"),
        ({"images": "/other"}, r"data\.images=/other .*data\.root"),
        ({"table": "none.csv"}, r"none.csv.*data\.table="),
        ({"root": "nowhere"}, r"nowhere does not exist.*data\.root="),
    ],
)
def test_options_that_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TableDataModule(**{"root": tmp_path, "table": "labels.csv", **options}).read()


def test_other_spellings_of_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Found where one file alone is meant: `B.jpg` is not, as there are two, nor is `A.jpg` one and `a.JPG` another."""
    lines = ("a.JPG,cat", "A.jpg,dog", "B.jpg,dog", "SUB/Cafe\u0301 1.png,cat", "none.jpg,cat", "none/a.jpg,cat")
    files = ("a.jpg", "b.jpg", "b.JPG", "sub/café\u202f1.png")
    module = read(write(tmp_path, "\n".join(["path,label", *lines]), files=files))
    assert listed(module) == [("a.jpg", "cat"), (files[-1], "cat")]
    assert [*problems(module)] == ["A.jpg", "B.jpg", "none.jpg", "none/a.jpg"]
    assert "2 files" in caplog.text


def test_any_label(tmp_path: Path) -> None:
    text = 'path;label\na.jpg;["cat"]\nb.jpg;nan\n'
    assert listed(read(write(tmp_path, text), any_label=True)) == [("a.jpg", '["cat"]'), ("b.jpg", "nan")]


def test_numbers_with_decimal_commas(tmp_path: Path) -> None:
    """But for three digits after a number, which may be thousands."""
    touch(tmp_path, "a.jpg", "b.jpg")
    lines = ["path;label;x;y;w;h", "a.jpg;cat;1,5;2,25;10;12", "b.jpg;dog;1,024;2;10;12"]
    (tmp_path / "boxes.csv").write_text("\n".join(lines))
    module = TableDataModule(tmp_path, table="boxes.csv", box_columns=["x", "y", "w", "h"])
    assert listed(module) == [("a.jpg", "cat", (1, 2, 10, 12))]
    assert problems(module).keys() == {"b.jpg"}
