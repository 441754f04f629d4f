"""A table of images and labels: one sample per line of a CSV, TSV or Parquet file, whole or by its box."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from classifier.data import boxes, labels, samples
from classifier.data.datamodule import ClassificationDataModule
from classifier.data.listing import EXTENSIONS, inside, mark_unusable, require_folder, sub_folder
from classifier.data.table_file import read_rows
from classifier.errors import UserError, as_typed, require_choice

log = logging.getLogger(__name__)


class TableDataModule(ClassificationDataModule):
    """The images that a table lists. Paths are relative to `root`, or absolute, and never lead outside of it.

    Class names are in text order, or where all of them are numbers, in the order of these.

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
        path_column: str = "path",
        label_column: str = "label",
        box_columns: Sequence[str] | None = None,
        box_format: str = "xyxy",
        split_column: str | None = None,
        group_column: str | None = None,
        images: str | None = None,
        extension: str | None = None,
        label_columns: Sequence[str] | str | None = None,
        label_separator: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(Path(table).parent if root is None else root, **settings)
        require_choice("data.box_format", box_format, ("xyxy", "xywh"))
        if box_columns is not None and (isinstance(box_columns, str) or len(box_columns) != 4):
            raise UserError(f"data.box_columns={as_typed(box_columns)}: use four, such as [xmin,ymin,xmax,ymax]")
        self.table = Path(table).expanduser()
        corners = dict(zip(samples.BOX, box_columns or (), strict=box_columns is not None))
        label = None if label_columns is not None else label_column
        named = {"path": path_column, "label": label, **corners, "split": split_column, "group": group_column}
        self.columns = {key: column for key, column in named.items() if column is not None}
        self.label_columns, self.label_separator = labels.label_columns(label_columns), label_separator
        self.box_format = box_format
        self.images = sub_folder("images", images or "")
        self.extension = f".{extension.removeprefix('.')}" if extension else ""

    def list_samples(self) -> pd.DataFrame:
        """List the lines; those that cannot be used are problems that name their number. Repeated ones count once.

        Raises:
            UserError: The table is missing or malformed, or no file exists.
        """
        require_folder(self.root)
        file = next((path for path in (self.root / self.table, self.table) if path.is_file()), self.root / self.table)
        try:
            table = read_rows(file, {**self.columns, **self.label_columns})
        except (OSError, ValueError) as error:
            keys = ["table", *("box_columns" if key in samples.BOX else f"{key}_column" for key in self.columns)]
            ways = " ".join(f"data.{key}=..." for key in dict.fromkeys(keys))
            raise UserError(f"cannot read the table {file} ({error}): use {ways}") from error
        table = table.assign(**{key: table[key].str.strip() for key in self.columns})
        table = labels.with_label_text(table, self.label_separator, self.task)
        for key in ("path", "label") if self.task == labels.SINGLE else ("path",):
            table = samples.mark(table, table[key] == "", f"no {key}")
        given = table["path"]
        if self.extension:
            given = given.mask(~given.str.lower().str.endswith(EXTENSIONS), given + self.extension)
        paths = inside(given, self.images, self.root)
        table = samples.mark(table, paths.isna(), given + f" is not below data.root={self.root}")
        table["path"] = paths.mask((table["path"] == "") | paths.isna(), file.name)
        if "split" in table:
            parts = table["split"].str.lower().map(samples.PART_WORDS).astype("str")
            known = f" is none of {', '.join(samples.PART_WORDS)}: mend it, or use data.split_column=null"
            table = samples.mark(table, parts.isna(), "the part " + table["split"] + known).assign(split=parts)
        if "group" in table:
            table["group"] = table["group"].where(table["group"] != "")
        if "x1" in table:
            try:  # ten times as fast
                sides = np.array(table[samples.BOX].astype(float))
            except ValueError:
                sides = np.array(table[samples.BOX].apply(pd.to_numeric, errors="coerce"), float)
            if self.box_format == "xywh":
                sides[:, 2:] += sides[:, :2]
            table = boxes.with_covering_boxes(table, sides)
        place = ["path", *(side for side in samples.BOX if side in table)]
        good = table[samples.usable(table)]
        repeated = good.index[good.duplicated([*place, "label", *({"split"} & {*table})])]
        if len(repeated):
            log.warning("%s: %d lines repeat another one, and count once", file, len(repeated))
            table, good = table.drop(index=repeated), good.drop(index=repeated)
        ways = "data.table=... data.root=..., a sub-folder data.images=..., or the missing data.extension=.jpg"
        table = mark_unusable(table, self.root, file, ways)
        differing = good.index[good.duplicated(place, keep=False)]
        if self.task == labels.SINGLE:
            table = samples.mark(table, table.index.isin(differing), table["label"] + " is not its only label")
        if "problem" in table:
            table["problem"] = "line " + table.index.astype("str") + f" of {file.name}: " + table["problem"]
        return table.reset_index(drop=True)
