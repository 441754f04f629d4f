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
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from classifier.errors import UserError, did_you_mean, require_choice, require_number

SPLITS = ("train", "val", "test")
# what they are called in folders and tables, in small or capital letters
PART_WORDS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}
PART_WORDS |= {"test": "test", "testing": "test"}
BOX = ["x1", "y1", "x2", "y2"]
FAR = 1 << 24  # pixels; keeps boxes, with any margin, in int32


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
    """The distinct names in text order; where all of them are numbers, in their order."""
    distinct = sorted(set(names))
    if all(re.fullmatch(r"[+-]?[0-9]+(\.[0-9]+)?(e[+-]?[0-9]{1,4})?", name) for name in distinct):
        distinct.sort(key=Decimal)  # exact, at any length
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


def mark_unusable(table: pd.DataFrame, root: Path, source: object, ways: str) -> pd.DataFrame:
    """Note a problem of images that are in two parts, and of files that do not exist.

    Each folder is listed once, instead of a look at each file: a million looks over a network take minutes.

    Args:
        source: The file that lists the images, for the message.
        ways: The settings that choose others.

    Raises:
        UserError: No file exists.
    """
    if "split" in table:
        pairs = table.loc[usable(table), ["path", "split"]].drop_duplicates()
        double = pairs["path"][pairs["path"].duplicated()]
        table = mark(table, table["path"].isin(double), "it is in more than one part")
    rows = usable(table)
    there: list[str] = []
    for folder in table.loc[rows, "path"].str.replace("/?[^/]*$", "", regex=True).unique():
        with suppress(OSError, ValueError), os.scandir(root / folder) as entries:  # ValueError: a zero byte in the name
            prefix = f"{folder}/" if folder else ""
            there += [prefix + entry.name for entry in entries]
    missing = rows & ~table["path"].astype(object).isin(there).to_numpy()
    if table.empty or (missing.any() and (missing == rows).all()):
        first = "".join(f", {root / path} first" for path in table["path"][missing][:1])
        raise UserError(f"none of the {missing.sum()} images of {source} exists{first}: use other {ways}")
    return mark(table, missing, "no such file, or no right to read its folder")


def require_crops(objects: str, margin: float) -> None:
    """Raise a UserError unless these are arguments of `crops`."""
    require_choice("data.objects", objects, ("all", "largest", "first"))
    require_number("data.margin", margin, least=0)


def crops(table: pd.DataFrame, objects: str, margin: float) -> pd.DataFrame:
    """`all`, the `largest` or the `first` of the usable boxes of each image, grown by `margin`; problems stay.

    Args:
        margin: Added on each side, as a fraction of the box's width and height; boxes may then leave the image.
    """
    if objects != "all":
        good = table[usable(table)]
        area = (good["x2"] - good["x1"]).astype("int64") * (good["y2"] - good["y1"])
        order = area.sort_values(ascending=False, kind="stable").index if objects == "largest" else good.index
        later = good["path"][order].duplicated()  # of equal boxes the first is the largest
        table = table.drop(index=later.index[later]).reset_index(drop=True)
    if margin:
        x1, y1, x2, y2 = (table[side] for side in BOX)
        dx, dy = ((side * margin).round().astype("int32") for side in (x2 - x1, y2 - y1))
        table = table.assign(x1=x1 - dx, y1=y1 - dy, x2=x2 + dx, y2=y2 + dy)
    return table


def with_covering_boxes(table: pd.DataFrame, boxes: np.ndarray) -> pd.DataFrame:
    """`table` with the smallest boxes of whole pixels around `boxes` float64 (N, 4); empty ones are problems."""
    good = np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    near = np.clip(np.nan_to_num(boxes), -FAR, FAR)
    whole = np.hstack([np.floor(near[:, :2]), np.ceil(near[:, 2:])]).astype(np.int32)
    reasons = [f"no box: x {x1:g} to {x2:g}, y {y1:g} to {y2:g}" for x1, y1, x2, y2 in boxes[~good]]
    table = table.assign(**dict(zip(BOX, whole.T, strict=True)))
    return mark(table, ~good, pd.Series(reasons, table.index[~good], dtype="str"))


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

    The index holds line numbers; a cell of several lines counts as one. Lines with nothing in these columns are passed
    over; `problem` is set where the number of cells is wrong. The delimiter is the one that finds the wanted columns in
    the first line, among comma, semicolon, tab and bar.

    Args:
        columns: Name in the returned table -> name in the file.
        optional: Names in the returned table, which lacks those that the file lacks.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not in Unicode, has a quote that is not closed, or lacks a column.
    """
    if path.suffix.lower() == ".parquet":
        places = _places(pq.read_schema(path).names, columns, optional)
        table = pd.read_parquet(path, columns=[columns[key] for key in places], dtype_backend="pyarrow")
        return table.astype("str").fillna("").set_axis(list(places), axis=1).set_axis(range(1, len(table) + 1))
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-16" if raw.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8-sig")
    except UnicodeDecodeError as error:
        line, advice = raw.count(b"\n", 0, error.start) + 1, "save it as `CSV UTF-8`, or use `iconv -f WINDOWS-1252`"
        raise ValueError(f"line {line} is not in UTF-8: {advice}") from error
    lines = enumerate(io.StringIO(text[: 1 << 20], newline=None), 1)
    start, first = next(((number, line) for number, line in lines if line.strip()), (1, ""))
    separators = "\t" if path.suffix.lower() in (".tsv", ".tab") else ",;\t|"
    headers = {sep: [name.strip() for name in next(csv.reader([first], delimiter=sep), [])] for sep in separators}
    delimiter, names = max(headers.items(), key=lambda item: len({*item[1]} & {*columns.values()}))
    places = _places(names, columns, optional)
    odd: dict[int, list[str]] = {}  # lines with another number of cells

    def keep(row: pc.InvalidRow) -> str:
        odd[row.number] = next(csv.reader(io.StringIO(row.text, newline=""), delimiter=delimiter))
        return "skip"

    every = [str(place) for place in range(len(names))]
    wanted = [str(place) for place in places.values()]
    reading = pc.ReadOptions(column_names=every, skip_rows=start, use_threads=False)  # with threads, without row.number
    parsing = pc.ParseOptions(delimiter=delimiter, newlines_in_values=True, ignore_empty_lines=False)
    parsing.invalid_row_handler = keep
    types = pc.ConvertOptions(column_types=dict.fromkeys(every, pa.large_string()), include_columns={*wanted})
    table = pc.read_csv(io.BytesIO(f"{text}\n".encode()), reading, parsing, types).to_pandas()
    table = table[wanted].set_axis([*places], axis=1)
    count = len(table) + len(odd)
    if text.count('"') % 2 and start + count <= text.count("\n"):
        raise ValueError("a quote is not closed")
    table.index = np.delete(np.arange(count), [line - start - 1 for line in odd]) + start + 1
    if odd:
        padded = [[*cells, *[""] * len(names)] for cells in odd.values()]
        cut = {key: [cells[place] for cells in padded] for key, place in places.items()}
        table = pd.concat([table, pd.DataFrame(cut, index=[*odd], dtype="str")]).sort_index()
        odd = {line: cells for line, cells in odd.items() if len(cells) < len(names) or any(cells[len(names) :])}
    if (blank := (table == "").all(axis=1)).any():
        table = table[~blank]
    counts = {line: f"has {len(cells)} cells, the first line {len(names)}" for line, cells in odd.items()}
    return mark(table, table.index.isin([*odd]), pd.Series(counts, dtype="str"))


def _places(names: list[str], columns: Mapping[str, str], optional: Sequence[str]) -> dict[str, int]:
    """Key of `columns` -> the place of its column."""
    found = {key: column for key, column in columns.items() if column in names or key not in optional}
    for column in found.values():
        if names.count(column) != 1:
            hint = f"{', '.join(names[:30])}; {did_you_mean(column, names)}" if any(names) else "it is empty"
            raise ValueError(f"its first line has {names.count(column) or 'no'} columns {column!r}: {hint}")
    return {key: names.index(column) for key, column in found.items()}
