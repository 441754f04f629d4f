"""A table of images and labels: one sample per line of a CSV, TSV or Parquet file or workbook, whole or by its box."""

import logging
from collections.abc import Sequence
from os.path import isfile  # where Path.is_file raises, of a name that is too long
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from classifier.data import labels, samples
from classifier.data.boxes import SIZE, BoxReading
from classifier.data.class_names import EMPTY, require_labels
from classifier.data.datamodule import ClassificationDataModule
from classifier.data.listing import EXTENSIONS, inside, mark_unusable, require_folder, sub_folder
from classifier.data.table_file import read_rows
from classifier.errors import UserError, as_typed, require_flag

log = logging.getLogger(__name__)

ONE_LABEL = " is not its only label: use data.box_columns=[...] where a line is a box, or task=multi_label"


class TableDataModule(ClassificationDataModule):
    """The images that a table lists. Paths are relative to `root`, or absolute, and never lead outside of it.

    Class names are in text order, or where all of them are numbers, in the order of these.

    Args:
        root: Folder of the images; None for the one that the table is in.
        table: CSV, TSV or list with blanks whose first line names the columns, as it is or in .gz, .bz2, .zst or .zip;
            a workbook of one sheet; or a Parquet file. Relative to `root`, or any path.
        header: False where the first line is a sample: the columns are then called 1, 2, 3, ...
        encoding: Of the text, such as cp949 or windows-1252; None for UTF-8 (and UTF-16 that says so).
        path_column, label_column: Names of columns.
        any_label: Whether each text is a class, however odd: `nan`, lists, ids of which each row has its own.
        box_columns: Names of four columns with the numbers of a box; a line is then a sample of its own. Boxes are
            widened to whole pixels. Lines with nothing there are images without an object.
        size_columns: Names of two columns with the width and height of the image that the boxes were drawn on.
        box_format, box_unit, negatives: See `BoxReading`.
        split_column: Column that says train, val (or valid, validation) or test.
        group_column: Lines of the same text there, such as a patient, stay on one side of the split.
        path_prefix: Taken off the paths, such as /kaggle/input/pets/ of the machine that the table was made on.
        images: Folder below `root` that the paths begin in.
        extension: Added to paths that do not end in one of an image, such as `.jpg`.
        label_columns: Columns of 0 and 1 (or false and true, no and yes) that are a class each, instead of
            `label_column`; `all` for each column that has no other use.
        label_separator: What is between the names in a cell of `label_column`, such as `|`; `json` for a list in JSON.
            Without it, a cell is one name, and an image of several labels has several lines.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        table: str,
        header: bool = True,
        encoding: str | None = None,
        path_column: str | int = "path",
        label_column: str | int = "label",
        any_label: bool = False,
        box_columns: Sequence[str] | None = None,
        size_columns: Sequence[str] | None = None,
        box_format: str = "xyxy",
        box_unit: str = "pixel",
        negatives: str | None = None,
        split_column: str | None = None,
        group_column: str | None = None,
        path_prefix: str | None = None,
        images: str | None = None,
        extension: str | None = None,
        label_columns: Sequence[str] | str | None = None,
        label_separator: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(Path(table).parent if root is None else root, **settings)
        require_flag("data.header", header)
        require_flag("data.any_label", any_label)
        self.header, self.encoding, self.any_label = header, encoding, any_label
        self.boxes = BoxReading(box_format=box_format, box_unit=box_unit, negatives=negatives)
        corners = _named("box_columns", samples.BOX, box_columns, "[xmin,ymin,xmax,ymax]")
        corners |= _named("size_columns", SIZE, size_columns, "[width,height]")
        self.table = Path(table).expanduser()
        label = None if label_columns is not None else label_column
        named = {"path": path_column, "label": label, **corners, "split": split_column, "group": group_column}
        self.columns = {key: str(column) for key, column in named.items() if column is not None}
        self.label_columns, self.label_separator = labels.label_columns(label_columns), label_separator
        self.path_prefix = path_prefix and path_prefix.replace("\\", "/").rstrip("/") + "/"
        self.images = sub_folder("images", images or "")
        self.extension = f".{extension.removeprefix('.')}" if extension else ""

    def list_samples(self) -> pd.DataFrame:
        """List the lines; those that cannot be used are problems that name their number. Repeated ones count once.

        Raises:
            UserError: The table is missing or malformed, or no file exists.
        """
        require_folder(self.root)
        file = next((path for path in (self.root / self.table, self.table) if path.exists()), self.root / self.table)
        try:
            columns = {**self.columns, **self.label_columns}
            table = read_rows(file, columns, header=self.header, encoding=self.encoding or "")
        except (OSError, ValueError) as error:
            several = dict.fromkeys(samples.BOX, "box_columns") | dict.fromkeys(SIZE, "size_columns")
            keys = ["table", *(several.get(key, f"{key}_column") for key in self.columns)]
            ways = " ".join(f"data.{key}=..." for key in dict.fromkeys(keys))
            if isinstance(error.__cause__, (UnicodeError, LookupError)):
                ways += ", or data.encoding=cp949 (gb18030, shift_jis, windows-1252: the one that it was saved in)"
            elif "no columns" in str(error):
                ways += ", where no line names columns data.header=false data.path_column=1 data.label_column=2"
                ways += ", where each class has a column task=multi_label data.label_columns=[...]"
            raise UserError(f"cannot read the table {file} ({error}): use {ways}") from error
        table = table.assign(**{key: table[key].str.strip() for key in self.columns})
        table = labels.with_label_text(table, self.label_separator, self.task)
        if "x1" in table:
            numbers = _numbers(table.reindex(columns=[*samples.BOX, *SIZE]))
            blank = np.isnan(numbers[:, :4]).all(axis=1)
            blank[blank] = table.loc[blank, samples.BOX].isin(["", "nan", "NaN", "NA", "null", "None"]).all(axis=1)
            numbers[blank, :4] = 0
            table = self.boxes.read(table.assign(**dict(zip([*samples.BOX, *SIZE], numbers.T, strict=True))))
        for key in ("path", "label") if self.task == labels.SINGLE else ("path",):
            table = samples.mark(table, table[key] == "", f"no {key}")
        if not self.any_label:
            says = f"its label stands for none ({', '.join(EMPTY)}): rename it, or use data.any_label=true"
            table = samples.mark(table, table["label"].isin(EMPTY), says)
        given = table["path"]
        if self.path_prefix:
            given = given.str.replace("\\", "/", regex=False).str.removeprefix(self.path_prefix)
        if self.extension:
            given = given.mask(~given.str.lower().str.endswith(EXTENSIONS), given + self.extension)
        paths = inside(given, self.images, self.root)
        for first in given[paths.isna()][:1].str.replace("\\", "/", regex=False):
            prefix = self._prefix(first) or f"{first.rpartition('/')[0]}/"
            what = (
                "is an address, and nothing is downloaded" if "://" in first else f"is not below data.root={self.root}"
            )
            what += f": take off what differs with data.path_prefix={prefix}"
            if paths.isna().all():
                raise UserError(f"each path of {file}, as {first}, {what}")
            table = samples.mark(table, paths.isna(), given + f" {what}")
        table["path"] = paths.mask((table["path"] == "") | paths.isna(), file.name)
        if "split" in table:
            parts = table["split"].str.lower().map(samples.PART_WORDS).astype("str")
            ways = "leave the line out with data.on_error=skip, or cut all parts at random with data.split_column=null"
            known = f"' is none of {', '.join(samples.PART_WORDS)}: write one, {ways}"
            table = samples.mark(table, parts.isna(), "the part '" + table["split"] + known).assign(split=parts)
        if "group" in table:
            table["group"] = table["group"].where(~table["group"].isin(["", *EMPTY]))
        place = ["path", *(side for side in samples.BOX if side in table)]
        good = table[samples.usable(table)]
        repeated = good.index[good.duplicated([*place, "label", *({"split"} & {*table})])]
        if len(repeated):
            log.warning("%s: %d lines repeat another one, and count once", file, len(repeated))
            table, good = table.drop(index=repeated), good.drop(index=repeated)
        ways = "data.table=... data.root=..., a sub-folder data.images=..., data.path_prefix=..., data.extension=.jpg"
        table = mark_unusable(table, self.root, file, ways)
        names = self.label_separator != "json" and not self.label_columns  # as texts in a column
        if names and not self.any_label and self.given_classes is None:
            join = labels.JOIN if self.task == labels.MULTI else ""
            require_labels(table["label"][samples.usable(table)], self.columns["label"], join)
        differing = good.index[good.duplicated(place, keep=False)]
        if self.task == labels.SINGLE:
            table = samples.mark(table, table.index.isin(differing), table["label"] + ONE_LABEL)
        if "problem" in table:
            table["problem"] = "line " + table.index.astype("str") + f" of {file.name}: " + table["problem"]
        return table.reset_index(drop=True)

    def _prefix(self, path: str) -> str:
        """The least to take off a path so that the rest leads to a file; nothing where nothing does."""
        parts = path.split("/")
        ends = ("/".join(parts[cut:]) for cut, part in enumerate(parts) if part)  # none is absolute
        return next((path[: -len(end)] for end in ends if isfile(self.root / self.images / end)), "")  # noqa: PTH113


def _named(key: str, names: Sequence[str], columns: Sequence[str] | None, example: str) -> dict[str, str]:
    """Name -> the column that data.`key` gives it."""
    if columns is not None and (isinstance(columns, str) or len(columns) != len(names)):
        raise UserError(f"data.{key}={as_typed(columns)}: use {len(names)} columns, such as {example}")
    return dict(zip(names, columns or (), strict=columns is not None))


def _numbers(cells: pd.DataFrame) -> np.ndarray:
    """float64, with nan for what is no number."""
    try:  # ten times as fast
        return np.array(cells.replace("", "nan").astype(float))
    except ValueError:
        # commas before fractions; of three digits, they may part thousands
        decimal = cells.replace(r"^(-?0*),(\d+)$|^(-?\d+),(\d\d?|\d{4,})$", r"\1\3.\2\4", regex=True)
        return np.array(decimal.apply(pd.to_numeric, errors="coerce"), float)
