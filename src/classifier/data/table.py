"""A table of images and labels: one sample per line of a CSV, TSV or Parquet file, whole or by its box."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from classifier.data.datamodule import ClassificationDataModule
from classifier.data.image_folder import EXTENSIONS, require_folder
from classifier.data.samples import (
    BOX,
    PART_WORDS,
    ColumnError,
    inside,
    mark,
    mark_unusable,
    none_exists,
    read_rows,
    sub_folder,
    usable,
    with_covering_boxes,
)
from classifier.errors import UserError, require_choice

log = logging.getLogger(__name__)


class TableDataModule(ClassificationDataModule):
    """The images that a table lists. Paths are relative to `root`, or absolute, and never lead outside of it.

    Class names are in text order, or where all of them are integers, in the order of the numbers.

    Args:
        root: Folder of the images; None for the one that the table is in.
        table: CSV or TSV in UTF-8 whose first line names the columns, or a Parquet file; relative to `root`, or any
            path.
        path_column, label_column: Names of columns.
        box_columns: Names of four columns with the numbers of a box, in stored pixels; a line is then a sample of its
            own. Fractions are widened to whole pixels.
        box_format: `xyxy` for x1, y1, x2, y2, half-open; `xywh` for x1, y1, width, height.
        split_column: Column that says train, val (or valid, validation) or test.
        group_column: Lines of the same text there, such as a patient, stay on one side of the split.
        images: Folder below `root` that the paths begin in.
        extension: Added to paths that do not end in one of an image, such as `.jpg`.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        table: str,
        path_column: str = "path",
        label_column: str = "label",
        box_columns: Sequence[str] | None = None,
        box_format: str = "xyxy",
        split_column: str | None = None,
        group_column: str | None = None,
        images: str | None = None,
        extension: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(Path(table).parent if root is None else root, **settings)
        require_choice("data.box_format", box_format, ("xyxy", "xywh"))
        if box_columns is not None and (isinstance(box_columns, str) or len(box_columns) != 4):
            raise UserError(
                f"data.box_columns={box_columns} must name four columns: use data.box_columns=[xmin,ymin,xmax,ymax]"
            )
        self.tables = [Path(table).expanduser()] if root is None else [self.root / table, Path(table).expanduser()]
        boxes = dict.fromkeys(BOX) if box_columns is None else dict(zip(BOX, box_columns, strict=True))
        named = {"path": path_column, "label": label_column, **boxes, "split": split_column, "group": group_column}
        self.columns = {key: column for key, column in named.items() if column is not None}
        self.box_format = box_format
        self.images = sub_folder("images", images or "")
        self.extension = f".{extension.removeprefix('.')}" if extension else ""

    def list_samples(self) -> pd.DataFrame:
        """List the lines; those that cannot be used are problems that name their number.

        Raises:
            UserError: The table is missing or malformed, a path leads outside of the root, a part is unknown, or no
                file exists.
        """
        require_folder(self.root)
        file, table = self._read()
        lines = "line " + table.index.astype("str").to_series(table.index) + f" of {file.name}: "
        table = mark(table, table["path"] == "", "no path")
        table = mark(table, table["label"] == "", "no label")
        table = self._with_paths(file, table)
        if "split" in table:
            table = self._with_parts(file, table)
        if "group" in table:
            table["group"] = table["group"].where(table["group"] != "")
        if BOX[0] in table:
            table = self._with_boxes(table)
        table = self._without_repeats(file, mark_unusable(table, self.root))
        if none_exists(table):
            first = table.index[0]
            raise UserError(
                f"none of the {len(table)} files of {file} exists, {self.root / table['path'][first]} (line {first}) "
                "first: name their folder with data.root=..., its sub-folder with data.images=..., or what the paths "
                "lack with data.extension=.jpg"
            )
        if "problem" in table:
            table["problem"] = lines[table.index] + table["problem"]
        return table.reset_index(drop=True)

    def _read(self) -> tuple[Path, pd.DataFrame]:
        """The file, and its columns without blanks at the ends of cells."""
        file = next((path for path in self.tables if path.is_file()), None)
        if file is None:
            tried = " or ".join(dict.fromkeys(map(str, self.tables)))
            raise UserError(f"the table {tried} does not exist: name yours with data.table=...")
        try:
            table = read_rows(file, self.columns)
        except (OSError, ValueError) as error:
            key = "table"
            if isinstance(error, ColumnError):
                key = "box_columns" if error.key in BOX else f"{error.key}_column"
            raise UserError(f"cannot read the table {file} ({error}): use data.{key}=...") from error
        if table.empty:
            raise UserError(f"{file} has no line below its first: name another table with data.table=...")
        return file, table.assign(**{key: table[key].str.strip() for key in self.columns})

    def _with_paths(self, file: Path, table: pd.DataFrame) -> pd.DataFrame:
        paths = table["path"]
        if self.extension:
            paths = paths.mask(~paths.str.lower().str.endswith(EXTENSIONS), paths + self.extension)
        clean = inside(paths, self.images, self.root)
        for line in clean.index[clean.isna() & usable(table)][:1]:
            raise UserError(
                f"{file}, line {line}: {paths[line]!r} is not below the data folder: write paths relative to "
                f"data.root={self.root}"
            )
        return table.assign(path=clean.mask(table["path"] == "", file.name))

    def _with_parts(self, file: Path, table: pd.DataFrame) -> pd.DataFrame:
        parts = table["split"].str.lower().map(PART_WORDS)
        for line in parts.index[parts.isna() & usable(table)][:1]:
            raise UserError(
                f"{file}, line {line}: {table['split'][line]!r} in the column {self.columns['split']} is no part: write "
                f"{', '.join(PART_WORDS)}, or use data.split_column=null"
            )
        return table.assign(split=parts.astype("str"))

    def _with_boxes(self, table: pd.DataFrame) -> pd.DataFrame:
        cells = table[BOX]
        numbers = cells.apply(pd.to_numeric, errors="coerce").to_numpy(float)
        text = cells["x1"] + ", " + cells["y1"] + ", " + cells["x2"] + ", " + cells["y2"]
        table = mark(table, np.isnan(numbers).any(axis=1), "the box " + text + " is not of four numbers")
        if self.box_format == "xywh":
            numbers[:, 2:] += numbers[:, :2]
        return with_covering_boxes(table, numbers)

    def _without_repeats(self, file: Path, table: pd.DataFrame) -> pd.DataFrame:
        """Lines that repeat another one count once; those that contradict one another are problems."""
        place = ["path", *(side for side in BOX if side in table)]
        good = table[usable(table)]
        repeated = good.index[good.duplicated([*place, "label"])]
        if len(repeated):
            log.warning("%s: %d lines repeat another one, and count once", file, len(repeated))
            table, good = table.drop(index=repeated), good.drop(index=repeated)
        labels = good[good.duplicated(place, keep=False)].groupby("path")["label"].agg(" and ".join)
        return mark(table, table["path"].isin(labels.index), "other lines label it too: " + table["path"].map(labels))
