"""A file of rows and columns -> a table of text: CSV, TSV, Parquet or a workbook."""

import csv
import io
import re
import zipfile
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

from classifier.data.image import require_file
from classifier.data.samples import mark, usable
from classifier.errors import did_you_mean
from classifier.untrusted import content_of

MOST_BYTES = 1_000_000_000  # of a table, unpacked
PIECE = 1 << 24  # bytes
MOST_OF_WORKBOOK = 100_000_000  # of its XML, which takes some twenty times as much memory

csv.field_size_limit(1 << 30)  # a longer cell is an error of the module's own kind, and 128 KB by default


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


def read_rows(
    path: Path, columns: Mapping[str, str], optional: Sequence[str] = (), *, header: bool = True, encoding: str = ""
) -> pd.DataFrame:
    """Columns of a CSV, TSV or Parquet file or of a workbook of one sheet, as text.

    The index holds line numbers; a cell of several lines counts as one. Lines with nothing in these columns are passed
    over; `problem` is set where the number of cells is wrong. The delimiter is the one that Excel's `sep=` says, or
    that finds the wanted columns in the first line, among comma, semicolon, tab, bar and blank (several are one).

    Args:
        columns: Name in the returned table -> name in the file.
        optional: Names in the returned table, which lacks those that the file lacks.
        header: Whether the first line names the columns; else their names are 1, 2, 3, ...
        encoding: As Python calls it; by default UTF-8, or UTF-16 that says so.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not in this encoding, has a quote that is not closed, or lacks a column.
    """
    require_file(path)
    if path.suffix.lower() == ".parquet":
        schema = pq.read_schema(path)
        places = _places(names := schema.names, columns, optional)
        for name in (names[place] for place in places.values()):
            if pa.types.is_struct(schema.field(name).type):
                raise ValueError(f"the column {name!r} holds {schema.field(name).type}: save images as files first")
        table = pd.read_parquet(path, columns=[names[place] for place in places.values()], dtype_backend="pyarrow")
        return table.astype("str").fillna("").set_axis(list(places), axis=1).set_axis(range(1, len(table) + 1))
    text = _text(path, encoding)
    lines = ((number, line) for number, line in enumerate(io.StringIO(text[: 1 << 20]), 1) if line.strip())
    start, first = next(lines, (1, ""))
    separators = "\t" if {".tsv", ".tab"} & {*map(str.lower, path.suffixes)} else ",;\t| "
    if told := re.fullmatch(r'"?sep=(.)"?\s*', first):
        separators, (start, first) = told[1], next(lines, (start, ""))
    headers = {}
    for sep in separators:
        cells = next(csv.reader([first.strip("\n ")], delimiter=sep, skipinitialspace=True))
        headers[sep] = [cell.strip() if header else str(number) for number, cell in enumerate(cells, 1)]
    start -= not header
    found = {sep: len({*names} & {*columns.values()}) for sep, names in headers.items()}
    # where none finds a column, the one that finds most names: a message shows them
    delimiter, names = max(
        headers.items(), key=lambda item: (found[item[0]], 0 if any(found.values()) else len(item[1]))
    )
    if delimiter == " ":
        text = re.sub("(?m)^ | $", "", re.sub(r"[ \t]+", " ", text))
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


def _text(path: Path, encoding: str) -> str:
    """What is in a file of text, which may be packed, or in a workbook; each line ends with a line feed."""
    pieces, length = [], 0
    with pa.input_stream(path) as stream:  # which unpacks .gz, .bz2 and .zst
        while piece := stream.read(PIECE):  # it takes as much memory as it is asked for
            pieces.append(piece)
            if (length := length + len(piece)) > MOST_BYTES:
                raise ValueError(f"it has over {MOST_BYTES / 1e9:g} GB: divide it")
    raw = b"".join(pieces)
    if raw.startswith((b"PK\3\4", b"\xd0\xcf\x11\xe0")):
        raw = _unzip(raw, encoding)
    elif (content := content_of(raw[:512])) and "text" not in content and raw:
        raise ValueError(f"it is {content}")
    try:
        utf16 = "utf-16" if raw.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-16-le"
        text = raw.decode(encoding or (utf16 if utf16 == "utf-16" or raw[1:8:2] == bytes(4) else "utf-8"))
    except (UnicodeError, LookupError) as error:
        line = len((raw[: getattr(error, "start", 0)] + b"x").splitlines())
        raise ValueError(f"line {line} is not in {encoding or 'UTF-8'}: save it as `CSV UTF-8`") from error
    if "\0" in text:
        raise ValueError("it has zero bytes: is it a table?")
    text = text.removeprefix("\ufeff")
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _unzip(raw: bytes, encoding: str) -> bytes:
    """The one file of an archive, or a workbook's only sheet that holds something, as CSV."""
    try:
        if raw.startswith(b"PK"):
            with zipfile.ZipFile(io.BytesIO(raw)) as archive:
                names = [name for name in archive.namelist() if not name.startswith("__MACOSX/")]
                size = sum(item.file_size for item in archive.infolist())
                if size > (most := MOST_BYTES if len(names) == 1 else MOST_OF_WORKBOOK):
                    raise ValueError(f"{size / 1e9:.1f} GB, of {most / 1e9:g} at most: save it as CSV, in parts")
                if len(names) == 1:
                    return archive.read(names[0])
        sheets = pd.read_excel(io.BytesIO(raw), sheet_name=None, header=None, dtype=str, na_filter=False)
        (sheet,) = (sheet for sheet in sheets.values() if len(sheet))
        return sheet.to_csv(index=False, header=False).encode(encoding or "utf-8")
    except Exception as error:  # these libraries have many kinds
        what = "what reads a workbook of one sheet (with `pip install openpyxl`) or an archive of one file says"
        raise ValueError(f"{what}: {str(error) or type(error).__name__}") from error


def _places(names: list[str], columns: Mapping[str, str], optional: Sequence[str]) -> dict[str, int]:
    """Key of `columns` -> the place of its column. The key `*` stands for a key `*name` of each column without one."""
    if "*" in columns:
        rest = {f"*{name}": name for name in names if name and name not in columns.values()}
        columns = {**{key: column for key, column in columns.items() if key != "*"}, **rest}
    found = {key: column for key, column in columns.items() if column in names or key not in optional}
    for column in found.values():
        if names.count(column) != 1:
            hint = did_you_mean(column, names) if any(names) else "it is empty"
            raise ValueError(f"its first line has {names.count(column) or 'no'} columns {column!r}: {hint}")
    return {key: names.index(column) for key, column in found.items()}
