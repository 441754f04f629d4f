"""A CSV or TSV file -> the cells of the wanted columns, line by line."""

import csv
import io
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from classifier.data.samples import Problem
from classifier.errors import UserError, did_you_mean

DELIMITERS = (",", ";", "\t", "|")
BOM_UTF16 = (BOM_UTF16_LE, BOM_UTF16_BE)
TO_UTF8 = "save it as `CSV UTF-8` in a spreadsheet, or convert it with `iconv -f"


def read_table(path: Path, columns: Mapping[str, str], problems: list[Problem]) -> Iterator[tuple[int, list[str]]]:
    """Yield (number of the line, its cells in the order of `columns`), stripped of blanks.

    The delimiter is the tab of a .tsv; otherwise the one that finds the wanted columns in the first line, among comma,
    semicolon, tab and bar. Blank lines are passed over.

    Args:
        columns: Key of the setting -> name of the column.
        problems: Takes up the lines that have too few or too many cells.

    Raises:
        UserError: The file is missing, not in UTF-8, has bad quotes, or lacks a column.
    """
    text = _text(path)
    delimiter = _delimiter(path, text, columns.values())
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names: list[str] | None = None
    try:
        for cells in reader:
            if not any(cells):
                continue
            if names is None:
                names = [cell.strip() for cell in cells]
                positions = _positions(path, names, columns)
                count = len(names)
            elif len(cells) == count or (len(cells) > count and not any(cells[count:])):
                yield reader.line_num, [cells[position].strip() for position in positions]
            else:
                reason = f"has {len(cells)} cells, the first line {count}: quote a cell that has {delimiter!r} in it"
                problems.append(Problem(f"{path.name} line {reader.line_num}", reason))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}, is malformed ({error}): mend its quotes") from error
    if names is None:
        raise UserError(f"{path} is empty: name a table with data.table=...")


def read_fixed(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[tuple[int, list[str]]]:
    """Yield the same of a file whose columns have these names, such as split.csv; `optional` ones follow, or "".

    Cells stay as they are: paths may have blanks at their ends, and bytes outside of UTF-8 (as surrogateescape).

    Raises:
        OSError: The file cannot be read.
        ValueError: It has bad quotes, lacks a column, or a line has too few cells.
    """
    raw = path.read_bytes()
    if raw.startswith(BOM_UTF16):
        raise ValueError(f"it is in UTF-16: {TO_UTF8} UTF-16 -t UTF-8`")
    text = raw.removeprefix(BOM_UTF8).decode("utf-8", "surrogateescape")
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=_delimiter(path, text, [*columns, *optional]), strict=True
    )
    try:
        names = [cell.strip() for cell in next(reader, [])]
        for column in columns:
            if column not in names:
                hint = f"its first line names: {', '.join(names)[:300]}; {did_you_mean(column, names)}"
                raise ValueError(f"no column {column!r}, {hint if names else 'it is empty'}")
        positions = [names.index(column) if column in names else None for column in (*columns, *optional)]
        for cells in reader:
            if not any(cells):
                continue
            if len(cells) < len(names):
                raise ValueError(f"line {reader.line_num} has {len(cells)} cells, the first line {len(names)}")
            yield reader.line_num, ["" if position is None else cells[position] for position in positions]
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from error


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the table {path} ({error.strerror}): name yours with data.table=...") from error
    if raw.startswith(BOM_UTF16):
        raise UserError(f"{path} is in UTF-16: {TO_UTF8} UTF-16 -t UTF-8`")
    body = raw.removeprefix(BOM_UTF8)
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as error:
        start = error.start + len(raw) - len(body)
        line = raw.count(b"\n", 0, start) + 1
        raise UserError(
            f"{path} is not in UTF-8 (byte {raw[start]:#04x} at position {start}, line {line}): {TO_UTF8} "
            "WINDOWS-1252 -t UTF-8`"
        ) from error


def _delimiter(path: Path, text: str, columns: Iterable[str]) -> str:
    if path.suffix.lower() in (".tsv", ".tab"):
        return "\t"
    wanted = set(columns)
    first = next((line for line in io.StringIO(text) if line.strip()), "")

    def found(delimiter: str) -> tuple[int, int]:
        try:
            names = [cell.strip() for cell in next(csv.reader([first], delimiter=delimiter))]
        except csv.Error:
            return 0, 0
        return len(set(names) & wanted), len(names)

    return max(DELIMITERS, key=found)


def _positions(path: Path, names: list[str], columns: Mapping[str, str]) -> list[int]:
    for key, column in columns.items():
        if column not in names:
            shown = ", ".join(names[:30]) + (", ..." if len(names) > 30 else "")
            raise UserError(
                f"{path} has no column {column!r}, its first line names: {shown}. Use data.{key}=..., "
                f"{did_you_mean(column, names)}"
            )
        if names.count(column) > 1:
            raise UserError(f"{path} has {names.count(column)} columns {column!r}: rename all but one (data.{key})")
    return [names.index(column) for column in columns.values()]
