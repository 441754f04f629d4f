"""A file of rows and columns -> a table of text: CSV, TSV or Parquet."""

import csv
import io
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

from classifier.data.samples import mark, usable
from classifier.errors import did_you_mean


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
        names = pq.read_schema(path).names
        places = _places(names, columns, optional)
        table = pd.read_parquet(path, columns=[names[place] for place in places.values()], dtype_backend="pyarrow")
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
    """Key of `columns` -> the place of its column. The key `*` stands for a key `*name` of each column without one."""
    if "*" in columns:
        rest = {f"*{name}": name for name in names if name and name not in columns.values()}
        columns = {**{key: column for key, column in columns.items() if key != "*"}, **rest}
    found = {key: column for key, column in columns.items() if column in names or key not in optional}
    for column in found.values():
        if names.count(column) != 1:
            hint = f"{', '.join(names[:30])}; {did_you_mean(column, names)}" if any(names) else "it is empty"
            raise ValueError(f"its first line has {names.count(column) or 'no'} columns {column!r}: {hint}")
    return {key: names.index(column) for key, column in found.items()}
