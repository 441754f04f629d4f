"""Rows and columns of files, as text."""

import os
from pathlib import Path

import pandas as pd
import pytest

from classifier.data import table_file
from classifier.data.table_file import read_columns


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.csv", "path,weight\na,01\nb,NA\n"),
        ("x.csv", b"\xef\xbb\xbfpath;weight;more\r\na;01;\r\n\r\nb;NA;,\r\n"),
        ("x.tsv", "weight\tpath,note\tpath\n01\t\ta\nNA\t\tb"),
        ("x.txt", '\npath|weight\n"a"|01|\n|\nb|"NA"\n'),
        ("x.csv", "path,weight\ra,01\rb,NA\r"),
        ("x.csv", "path,weight\na,01\nb,NA".encode("utf-16")),
        ("x.csv", "path,weight\na,01\nb,NA".encode("utf-16-le")),
    ],
)
def test_columns_are_read_as_text(tmp_path: Path, name: str, content: str | bytes) -> None:
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    table = read_columns(tmp_path / name, ["path", "weight"], ["box"])
    assert table.to_dict("list") == {"path": ["a", "b"], "weight": ["01", "NA"]}


def test_lines_are_numbered(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('path,note\na,b\n\n,\n b,c\n"d, e",,\n"f\u2028\ng","h"\nlast,"\n"\n')
    table = read_columns(tmp_path / "x.csv", ["path"], ["note"])
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
        ("path\na\ncaf\xe9\n".encode("latin-1"), "line 3 is not in UTF-8"),
        ("path\na\0b\n", "zero bytes"),
        (b"PK\3\4 nothing", "workbook.*pip install openpyxl"),
        ("version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("path,b\n" + "x" * 200_000 + "\n", "line 2 has 1 cells"),
    ],
)
def test_columns_that_cannot_be_read(tmp_path: Path, content: str | bytes, named: str) -> None:
    (tmp_path / "x.csv").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ValueError, match=named):
        read_columns(tmp_path / "x.csv", ["path"])


@pytest.mark.parametrize("name", ["x.csv.gz", "x.zip", "x.xlsx"])
def test_what_unpacks_to_too_much_is_refused(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    workbook, content = name == "x.xlsx", pd.DataFrame({"path": ["a"] * 1000})
    (content.to_excel if workbook else content.to_csv)(tmp_path / name, index=False)
    monkeypatch.setattr(table_file, "MOST_OF_WORKBOOK" if workbook else "MOST_BYTES", 1500)
    with pytest.raises(ValueError, match=" GB"):
        read_columns(tmp_path / name, ["path"])


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.csv")
    with pytest.raises(OSError, match="named pipe"):
        read_columns(tmp_path / "x.csv", ["path"])


def test_parquet(tmp_path: Path) -> None:
    content = pd.DataFrame({"path": ["a", None], "number": [1, None], "part": pd.Categorical(["x", "y"])})
    content.convert_dtypes().to_parquet(tmp_path / "x.parquet")
    table = read_columns(tmp_path / "x.parquet", ["part", "number", "path"])
    assert table.to_dict("list") == {"part": ["x", "y"], "number": ["1", ""], "path": ["a", ""]}
    assert list(table.index) == [1, 2]
    pd.DataFrame({"path": [{"bytes": b"x", "path": "a"}]}).to_parquet(tmp_path / "z.parquet")
    with pytest.raises(ValueError, match=r"'path' holds struct"):
        read_columns(tmp_path / "z.parquet", ["path"])
    (tmp_path / "y.parquet").write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"(?i)parquet"):
        read_columns(tmp_path / "y.parquet", ["path"])


def test_the_names_of_columns_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("Bild;Art\na.jpg;cat\n")
    with pytest.raises(ValueError, match="Art, Bild"):
        read_columns(tmp_path / "x.csv", ["path"])
