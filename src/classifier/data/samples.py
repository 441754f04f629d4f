"""The table of samples: a pandas DataFrame that each data set lists, and what is asked of it.

Its columns, on a RangeIndex:

- `path`: text, relative to the data folder with forward slashes; a mere name where images are not files.
- `label`: class name; text, or a Categorical whose categories are all classes in their order.
- `x1`, `y1`, `x2`, `y2`: int32 box in stored pixels, half-open; only where samples are boxes.
- `split`: "train", "val" or "test"; NA where nothing is prescribed. Optional.
- `group`: samples of one group stay on one side of a split; NA is a group of its own. Optional.
- `item`: int64, what `read_images` is asked for; only where images are not files.
- `problem`: why a row cannot be used; NA where it can. Optional.
"""

import csv
import hashlib
import io
import os
import posixpath
import re
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from classifier.errors import UserError, did_you_mean, require_number

SPLITS = ("train", "val", "test")
# what they are called in folders and tables, in small or capital letters
PART_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
BOX = ["x1", "y1", "x2", "y2"]
OBJECTS = ("all", "largest", "first")
FAR = 1 << 24  # pixels; keeps boxes, with any margin, in int32
NO_FILE = "no such file"


def list_paths(paths: Iterable[str], labels: Iterable[str] | pd.Categorical, **columns: Any) -> pd.DataFrame:
    """A table of samples of paths as the system gives them: one that is not UTF-8 becomes a problem.

    Args:
        paths: (N,), relative to the data folder.
        labels: (N,) class names.
        columns: Further columns, each (N,).
    """
    given = pd.Series(list(paths), dtype=object)
    shown = given.map(readable).astype("str")
    if not isinstance(labels, pd.Categorical):
        labels = pd.Series([readable(name) for name in labels], dtype="str")
    table = pd.DataFrame({"path": shown, "label": labels, **columns})
    return mark(table, shown.astype(object) != given, "its name is not UTF-8: rename it")


def readable(name: str) -> str:
    """A file name as UTF-8 text, with other bytes as `\\xff`."""
    return name if name.isascii() else os.fsencode(name).decode("utf-8", "backslashreplace")


def mark(table: pd.DataFrame, rows: Any, problem: Any) -> pd.DataFrame:
    """Note the `problem` (text, or texts (N,)) of `rows` (bool (N,)) that have none yet."""
    if not np.any(rows):
        return table
    noted = table["problem"] if "problem" in table else pd.Series(np.nan, table.index, dtype="str")
    return table.assign(problem=noted.mask(noted.isna() & rows, problem))


def usable(table: pd.DataFrame) -> np.ndarray:
    """bool (N,): the rows without a problem."""
    return table["problem"].isna().to_numpy() if "problem" in table else np.ones(len(table), bool)


def order_classes(names: Iterable[str]) -> list[str]:
    """The distinct names in text order; where all of them are integers, in the order of the numbers."""
    distinct = sorted(set(names))
    if all(re.fullmatch("[+-]?[0-9]+", name) for name in distinct):
        distinct.sort(key=int)
    return distinct


def with_labels(table: pd.DataFrame, classes: Sequence[str] | None, what: str) -> pd.DataFrame:
    """`table` with labels as a Categorical.

    Args:
        classes: Names of a trained model's classes; by default the categories that the table declares, else the
            labels of the training part, or where no part is prescribed, of all samples.
        what: Where the names were found, as `photos.csv has the class`.

    Raises:
        UserError: A usable row has another class.
    """
    labels, rows = table["label"], usable(table)
    if classes is None and isinstance(labels.dtype, pd.CategoricalDtype):
        classes = list(labels.cat.categories)
    elif classes is None:
        training = rows & (table["split"] == "train").to_numpy() if "split" in table else rows
        classes = order_classes(labels[training if training.any() else rows].unique())
    names, order = labels.astype("str"), pd.Index(list(classes), dtype="str")
    codes = order.get_indexer(pd.Index(names))
    require_known(names[rows & (codes < 0)].unique(), classes, what)
    return table.assign(label=pd.Categorical.from_codes(codes, categories=order))


def require_known(names: Iterable[str], classes: Sequence[str], what: str) -> None:
    """Raise a UserError where one of `names` is not among `classes`; for `what` see `with_labels`."""
    if unknown := [name for name in names if name not in classes]:
        known = ", ".join(list(classes)[:10]) + (", ..." if len(classes) > 10 else "")
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        unknown_to = f"{more} that training does not know (its {len(classes)} classes: {known})"
        raise UserError(f"{what} {unknown[0]!r}{unknown_to}: rename or remove it, or use another data.root=...")


def labels_of(table: pd.DataFrame) -> np.ndarray:
    """int64 (N,): the numbers of the classes."""
    return table["label"].cat.codes.to_numpy(np.int64)


def boxes_of(table: pd.DataFrame) -> np.ndarray | None:
    """int32 (N, 4), or None where samples are whole images."""
    return table[BOX].to_numpy(np.int32) if BOX[0] in table else None


def image_ids(table: pd.DataFrame) -> np.ndarray:
    """int64 (N,): the same number for samples of the same image, counted from 0 in the table's order."""
    return pd.factorize(table["path"])[0]


def group_ids(table: pd.DataFrame) -> np.ndarray:
    """int64 (N,): the same number for samples that must not be divided, counted from 0.

    Those are the samples of an image, and those of a group; where an image belongs to two groups, both.
    """
    images = image_ids(table)
    if "group" not in table or len(table) == 0:
        return images
    groups, names = pd.factorize(table["group"])
    count = int(images.max()) + 1
    linked = groups >= 0
    ends = (images[linked], groups[linked] + count)
    links = coo_array((np.ones(linked.sum()), ends), shape=(count + len(names),) * 2)
    joined: np.ndarray = pd.factorize(connected_components(links, directed=False)[1][images])[0]
    return joined


def fingerprint(table: pd.DataFrame) -> str:
    """SHA-256 over classes, paths, labels and boxes: equal only where the data is listed the same."""
    digest = hashlib.sha256("\0".join(table["label"].cat.categories).encode())
    digest.update("\0".join(["", *table["path"].tolist()]).encode())
    digest.update(labels_of(table).tobytes())
    if (boxes := boxes_of(table)) is not None:
        digest.update(np.ascontiguousarray(boxes).tobytes())
    return digest.hexdigest()


def inside(paths: pd.Series, folder: str = "", root: Path | None = None) -> pd.Series:
    """`paths` below `folder`, relative to the data folder, with forward slashes and without `.` and `..`.

    NA where one leads out of the data folder. Decided by the text alone: a link inside of the data folder may lead
    elsewhere, as its owner wished.

    Args:
        root: The data folder: a path may then be absolute, where it lies below.
    """
    if not paths.str.contains(r"\\|//|/\.|^[./]|^.:|/$").any():  # as nearly always
        return f"{folder}/" + paths if folder else paths
    clean = paths.str.replace("\\", "/", regex=False)
    # elsewhere than on Windows a file may be called `a:b`
    absolute = clean.str.contains("^/|^.:" if os.name == "nt" else "^/|^.:/")
    if folder:
        clean = clean.mask(~absolute, f"{folder}/" + clean)
    for top in set() if root is None else {root.absolute().as_posix(), root.resolve().as_posix()}:
        clean = clean.str.removeprefix(f"{top.rstrip('/')}/")
    outside = absolute & clean.str.contains("^/|^.:")
    odd = clean.str.contains(r"//|/\.|^\.|/$")
    if odd.any():
        clean = clean.mask(odd, clean[odd].map(posixpath.normpath))
    return clean.mask(outside | clean.str.contains(r"^\.\.(?:/|$)"))


def sub_folder(key: str, value: str) -> str:
    """The folder below the data folder that the setting data.`key` names, cleaned by `inside`.

    Raises:
        UserError: It leads elsewhere.
    """
    (clean,) = inside(pd.Series([value], dtype="str")) if value else [""]
    if pd.isna(clean):
        raise UserError(f"data.{key}={value} must be a folder below data.root")
    return str(clean)


def mark_missing(table: pd.DataFrame, root: Path) -> pd.DataFrame:
    """Note a problem where there is no file, by one listing of each folder instead of a look at each file.

    (A million looks over a network take minutes.)
    """
    rows = usable(table)
    there: list[str] = []
    for folder in table.loc[rows, "path"].str.replace("/?[^/]*$", "", regex=True).unique():
        with suppress(OSError, ValueError), os.scandir(root / folder) as entries:  # ValueError: a zero byte in the name
            prefix = f"{folder}/" if folder else ""
            there += [prefix + entry.name for entry in entries]
    return mark(table, rows & ~table["path"].astype(object).isin(there), NO_FILE)


def mark_unusable(table: pd.DataFrame, root: Path) -> pd.DataFrame:
    """Note a problem of images that are in two parts, and of files that do not exist."""
    if "split" in table:
        pairs = table.loc[usable(table), ["path", "split"]].drop_duplicates()
        double = pairs[pairs["path"].duplicated(keep=False)].groupby("path")["split"].agg(" and in ".join)
        found = table["path"].map(double).astype("str")
        table = mark(table, found.notna(), "it is in " + found)
    return mark_missing(table, root)


def none_exists(table: pd.DataFrame) -> bool:
    """Whether all files that `mark_missing` looked for were missing."""
    return not usable(table).any() and "problem" in table and bool(table["problem"].eq(NO_FILE).any())


def require_margin(margin: float) -> None:
    """Raise a UserError unless it can be added around a box."""
    require_number("data.margin", margin, least=0)


def choose_objects(table: pd.DataFrame, which: str) -> pd.DataFrame:
    """Of the usable boxes of each image, `all`, the `largest` or the `first`; problems stay."""
    if which == "all" or table.empty:
        return table
    rows = usable(table)
    good = table[rows]
    if which == "largest":  # of equal ones the first
        area = (good["x2"] - good["x1"]).astype("int64") * (good["y2"] - good["y1"])
        good = good.loc[area.sort_values(ascending=False, kind="stable").index]
    chosen = good.index[~good["path"].duplicated()]
    kept: pd.DataFrame = table[table.index.isin(chosen) | ~rows].reset_index(drop=True)
    return kept


def with_margin(table: pd.DataFrame, margin: float) -> pd.DataFrame:
    """`table` with boxes grown on each side by `margin` times their width or height; they may then leave the image."""
    if not margin:
        return table
    x1, y1, x2, y2 = (table[side] for side in BOX)
    dx, dy = ((side * margin).round().astype("int32") for side in (x2 - x1, y2 - y1))
    return table.assign(x1=x1 - dx, y1=y1 - dy, x2=x2 + dx, y2=y2 + dy)


def with_covering_boxes(table: pd.DataFrame, boxes: np.ndarray) -> pd.DataFrame:
    """`table` with the smallest boxes of whole pixels around `boxes` float64 (N, 4); empty ones are problems."""
    good = np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    near = np.clip(np.nan_to_num(boxes), -FAR, FAR)
    whole = np.hstack([np.floor(near[:, :2]), np.ceil(near[:, 2:])]).astype(np.int32)
    reasons = [f"empty box: x {x1:g} to {x2:g}, y {y1:g} to {y2:g}" for x1, y1, x2, y2 in boxes[~good]]
    table = table.assign(**dict(zip(BOX, whole.T, strict=True)))
    return mark(table, ~good, pd.Series(reasons, table.index[~good], dtype="str"))


TO_UTF8 = "save it as `CSV UTF-8` in a spreadsheet, or convert it with `iconv -f"


def read_columns(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> pd.DataFrame:
    """The columns of these names, and those of the `optional` that exist; see `read_rows`. A malformed row is an error.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not in UTF-8, is malformed, or lacks a column.
    """
    table = read_rows(path, {name: name for name in (*required, *optional)}, optional)
    if not (good := usable(table)).all():
        raise ValueError(f"line {table.index[~good][0]} {table['problem'][~good].iloc[0]}")
    return table


def read_rows(path: Path, columns: Mapping[str, str], optional: Sequence[str] = ()) -> pd.DataFrame:
    """Columns of a CSV, TSV or Parquet file, as text.

    The index holds the line numbers. Blank lines are passed over; `problem` is set where the number of cells is wrong.
    The delimiter is the one that finds the wanted columns in the first line, among comma, semicolon, tab and bar.

    Args:
        columns: Name in the returned table -> name in the file.
        optional: Names in the returned table, which lacks those that the file lacks.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not in UTF-8, has bad quotes, or lacks a column.
    """
    if path.suffix.lower() == ".parquet":
        from pyarrow.parquet import read_schema

        places = _places(read_schema(path).names, columns, optional)
        table = pd.read_parquet(path, columns=[columns[key] for key in places], dtype_backend="pyarrow")
        return table.astype("str").fillna("").set_axis(list(places), axis=1).set_axis(range(1, len(table) + 1))
    raw, text = _read_text(path)
    first = next((line for line in io.StringIO(text, newline=None) if line.strip()), "")
    headers = {sep: [name.strip() for name in next(csv.reader([first], delimiter=sep), [])] for sep in ",;\t|"}
    tabs = path.suffix.lower() in (".tsv", ".tab")
    delimiter = "\t" if tabs else max(headers, key=lambda sep: len({*headers[sep]} & {*columns.values()}))
    names = headers[delimiter]
    places = _places(names, columns, optional)
    with suppress(pd.errors.ParserError):
        table = pd.read_csv(io.BytesIO(raw), engine="pyarrow", sep=delimiter, dtype=str, keep_default_na=False)
        table = table.iloc[:, list(places.values())].set_axis(list(places), axis=1)
        if len(table) == raw.rstrip().count(b"\n") and (table.iloc[:, 0] != "").all():
            return table.set_axis(pd.RangeIndex(2, len(table) + 2))
    # blank lines, cells of several lines, and malformed ones: slower
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        lines, rows = zip(*[(reader.line_num, cells) for cells in reader if any(cells)], strict=True)
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num} is malformed, {error}: mend its quotes") from error
    width = len(names)
    counts = np.array([len(row) if len(row) < width or any(row[width:]) else width for row in rows[1:]], np.int64)
    cells = [[row[place] if place < len(row) else "" for place in places.values()] for row in rows[1:]]
    table = pd.DataFrame(cells, index=lines[1:], columns=list(places), dtype="str")
    problem = [f"has {count} cells, the first line {width}: quote those with {delimiter!r}" for count in counts]
    return mark(table, counts != width, pd.Series(problem, table.index, dtype="str"))


def _read_text(path: Path) -> tuple[bytes, str]:
    raw = path.read_bytes()
    if raw.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        raise ValueError(f"it is in UTF-16: {TO_UTF8} UTF-16 -t UTF-8`")
    raw = raw.removeprefix(BOM_UTF8)
    try:
        return raw, raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(f"it is not in UTF-8, see line {line}: {TO_UTF8} WINDOWS-1252 -t UTF-8`") from error


def _places(names: list[str], columns: Mapping[str, str], optional: Sequence[str]) -> dict[str, int]:
    """Key of `columns` -> the place of its column."""
    found = {key: column for key, column in columns.items() if column in names or key not in optional}
    for column in found.values():
        if names.count(column) != 1:
            hint = f"{', '.join(names[:30])}; {did_you_mean(column, names)}" if any(names) else "it is empty"
            raise ValueError(f"its first line has {names.count(column) or 'no'} columns {column!r}: {hint}")
    return {key: names.index(column) for key, column in found.items()}
