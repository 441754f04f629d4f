"""Tables of paths and labels."""

import gzip
import unicodedata
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from tests import generate


def photos(root: Path) -> list[tuple[str, str]]:
    """Three pictures of each of two colours below `root`; their paths and labels."""
    rows = [(f"{name}_{number}.jpg", name) for name in ("blue", "red") for number in range(3)]
    for number, (path, name) in enumerate(rows):
        generate.save(generate.picture(name, seed=number), root / path)
    return rows


def plain(root: Path) -> list[str]:
    rows = photos(root)
    root.joinpath("labels.csv").write_text("\n".join(["path,label", *(",".join(row) for row in rows)]))
    return [label for _, label in rows]


def text(root: Path, table: str, form: str, first: str = "path,label\n", encoding: str = "utf-8") -> list[str]:
    """A table that begins with `first`, with `form` for each picture of `path` and `label`, packed by its name."""
    rows = photos(root)
    raw = (first + "".join(form.format(path=path, label=label) for path, label in rows)).encode(encoding)
    if table.endswith(".gz"):
        raw = gzip.compress(raw)
    if table.endswith(".zip"):
        with zipfile.ZipFile(root / table, "w") as archive:
            archive.writestr(table.removesuffix(".zip"), raw)
    else:
        (root / table).write_bytes(raw)
    return [label for _, label in rows]


def workbook(root: Path) -> list[str]:
    rows = photos(root)
    pd.DataFrame(rows, columns=["path", "label"]).to_excel(root / "labels.xlsx", index=False)
    return [label for _, label in rows]


def otherwise(root: Path, folder: str, names: Sequence[str]) -> list[str]:
    """A table of other spellings than those of the files."""
    for number, name in enumerate(names):
        generate.save(generate.picture("blue", seed=number), root / folder / f"{name}.JPG")
    lines = [f"{unicodedata.normalize('NFC', f'{folder}/{name}')}.jpg,{name}" for name in names]
    root.joinpath("labels.csv").write_text("\n".join(["path,label", *lines]))
    return [*names]


COMMA = "{path},{label}\n"
MAKERS: dict[str, Callable[[Path], list[str]]] = {
    "a table of one's own": plain,
    "packed": partial(text, table="labels.csv.gz", form=COMMA),
    "an archive of one file": partial(text, table="labels.tsv.zip", form="{path}\t{label}\n", first="path\tlabel\n"),
    "a workbook of one sheet": workbook,
    "Excel's first line": partial(text, table="labels.csv", form="{path};{label}\r\n", first="sep=;\r\npath;label\r\n"),
    "an old Mac's line ends": partial(text, table="labels.csv", form="{path},{label}\r", first="path,label\r"),
    "a list": partial(text, table="train.txt", form="{path}  {label}\n", first=""),
    "another encoding": partial(
        text, table="labels.csv", form="{path},{label},개\n", first="path,label,모양\n", encoding="cp949"
    ),
    "another machine's paths": partial(text, table="labels.csv", form="/kaggle/input/pets/{path},{label}\n"),
    "addresses": partial(text, table="labels.csv", form="https://example.org/x/{path},{label}\n"),
    "capitals and forms of Unicode": partial(
        otherwise,
        folder=unicodedata.normalize("NFD", "강아지"),
        names=[f"dog {number // 3}{number}" for number in range(6)],
    ),
    "Google's parts": partial(text, table="labels.csv", form="{path},{label},TRAIN\n", first="path,label,set\n"),
}
