"""A table of images and labels: one sample per line of a CSV or TSV file, whole or by its box."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from classifier.data.image import Box
from classifier.data.image_folder import EXTENSIONS, require_folder
from classifier.data.samples import (
    PART_WORDS,
    SPLITS,
    UNASSIGNED,
    Listing,
    Problem,
    Samples,
    covering,
    inside,
    match_classes,
    sub_folder,
)
from classifier.data.table_file import read_table
from classifier.errors import UserError, require_choice

log = logging.getLogger(__name__)


BOX_FORMATS = ("xyxy", "xywh")


class _Row(NamedTuple):
    line: int
    path: str
    label: str
    box: Box | None
    split: int
    group: str


class TableSource:
    """The images that a table lists. Paths are relative to `root`, or absolute, and never lead outside of it.

    Class names are in text order, or where all of them are integers, in the order of the numbers.

    Args:
        root: Folder of the images; None for the one that the table is in.
        table: CSV or TSV in UTF-8 whose first line names the columns; relative to `root`, or any path.
        path_column, label_column: Names of columns.
        box_columns: Names of four columns with the numbers of a box, in stored pixels; a line is then a sample of its
            own. Fractions are widened to whole pixels.
        box_format: `xyxy` for x1, y1, x2, y2, half-open; `xywh` for x1, y1, width, height.
        split_column: Column that says train, val (or valid, validation) or test.
        group_column: Lines of the same text there, such as a patient, stay on one side of the split.
        images: Folder below `root` that the paths begin in.
        extension: Put behind paths that do not end in one of an image, such as `.jpg`.
    """

    def __init__(
        self,
        root: Path | None,
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
    ) -> None:
        require_choice("data.box_format", box_format, BOX_FORMATS)
        if box_columns is not None and (isinstance(box_columns, str) or len(box_columns) != 4):
            raise UserError(
                f"data.box_columns={box_columns} must name four columns: use data.box_columns=[xmin,ymin,xmax,ymax]"
            )
        self.root = Path(table).parent if root is None else root
        self.tables = [Path(table)] if root is None else [root / table, Path(table)]
        self.columns = {"path_column": path_column, "label_column": label_column}
        for number, name in enumerate(box_columns or ()):
            self.columns[f"box_columns[{number}]"] = name
        if split_column is not None:
            self.columns["split_column"] = split_column
        if group_column is not None:
            self.columns["group_column"] = group_column
        self.with_boxes = box_columns is not None
        self.with_parts = split_column is not None
        self.with_groups = group_column is not None
        self.box_format = box_format
        self.images = sub_folder("images", images or "")
        self.extension = f".{extension.removeprefix('.')}" if extension else ""

    def prepare(self) -> None:
        """Nothing to make: the files are the user's."""

    def read(self, classes: Sequence[str] | None = None) -> tuple[Samples, list[Problem]]:
        """List the lines; those that cannot be used come back as problems, with their number.

        Raises:
            UserError: The table is missing or malformed, a path leads outside of the root, a part is unknown, no file
                exists, or a class is not among the given `classes` or those of the training part.
        """
        require_folder(self.root)
        path = self._found_table()
        problems: list[Problem] = []
        rows = []
        for line, cells in read_table(path, self.columns, problems):
            try:
                rows.append(self._row(line, cells))
            except ValueError as error:
                problems.append(Problem(cells[0] or path.name, f"line {line} of {path.name}: {error}"))
            except UserError as error:
                raise UserError(f"{path}, line {line}: {error}") from error
        if not rows and not problems:
            raise UserError(f"{path} has no line below its first: name another table with data.table=...")
        rows = self._existing(self._without_repeats(rows, path, problems), path, problems)
        splits = np.array([row.split for row in rows], dtype=np.int8)
        what = f"{path}: the column {self.columns['label_column']} has the class"
        remedy = "mend those lines, or name another table with data.table=..."
        classes, labels = match_classes([row.label for row in rows], splits, classes, what, remedy)
        samples = Samples.build(
            self.root,
            classes,
            [row.path for row in rows],
            labels,
            boxes=[row.box or (0, 0, 0, 0) for row in rows] if self.with_boxes else None,
            splits=splits,
            groups=[row.group for row in rows] if self.with_groups else None,
        )
        return samples, problems

    def _found_table(self) -> Path:
        for path in self.tables:
            if path.is_file():
                return path
        tried = " or ".join(dict.fromkeys(map(str, self.tables)))
        raise UserError(f"the table {tried} does not exist: name yours with data.table=...")

    def _row(self, line: int, cells: list[str]) -> _Row:
        """One line.

        Raises:
            ValueError: It cannot be used.
            UserError: It should not be passed over either.
        """
        path, label, *rest = cells
        if not path:
            raise ValueError("no path")
        if not label:
            raise ValueError("no label")
        if self.extension and not path.lower().endswith(EXTENSIONS):
            path += self.extension
        try:
            path = inside(path, self.images, self.root)
        except ValueError as error:
            raise UserError(f"{error}: write paths relative to data.root={self.root}") from error
        box = self._box(rest) if self.with_boxes else None
        split = self._part(rest[4 * self.with_boxes]) if self.with_parts else UNASSIGNED
        # equal labels are one object
        return _Row(line, path, sys.intern(label), box, split, rest[-1] if self.with_groups else "")

    def _box(self, cells: list[str]) -> Box:
        try:
            x1, y1, x2, y2 = map(float, cells[:4])
        except ValueError:
            raise ValueError(f"the box {', '.join(cells[:4])} is not of four numbers") from None
        return covering(x1, y1, x1 + x2, y1 + y2) if self.box_format == "xywh" else covering(x1, y1, x2, y2)

    def _part(self, text: str) -> int:
        if text.lower() not in PART_WORDS:
            raise UserError(
                f"{text!r} in the column {self.columns['split_column']} is no part: write {', '.join(PART_WORDS)}, "
                "or use data.split_column=null"
            )
        return SPLITS.index(PART_WORDS[text.lower()])

    def _without_repeats(self, rows: list[_Row], table: Path, problems: list[Problem]) -> list[_Row]:
        """The rows without those that repeat or contradict another one of the same image (and box)."""
        first: dict[tuple[str, Box | None], _Row] = {}
        images: dict[str, _Row] = {}
        contradicted: dict[str, str] = {}
        repeated = 0
        for row in rows:
            same = first.setdefault((row.path, row.box), row)
            image = images.setdefault(row.path, row)
            if same.label != row.label:
                contradicted[row.path] = (
                    f"lines {same.line} and {row.line} of {table.name} label it {same.label!r} and {row.label!r}"
                )
            elif image.split != row.split:
                contradicted[row.path] = (
                    f"lines {image.line} and {row.line} of {table.name} put it into {SPLITS[image.split]} and "
                    f"{SPLITS[row.split]}"
                )
            elif same is not row:
                repeated += 1
        if repeated:
            log.warning("%s: %d lines repeat another one, and count once", table, repeated)
        problems += [Problem(path, reason) for path, reason in contradicted.items()]
        return [row for row in first.values() if row.path not in contradicted]

    def _existing(self, rows: list[_Row], table: Path, problems: list[Problem]) -> list[_Row]:
        files = Listing(self.root)
        existing = [row for row in rows if row.path in files]
        if rows and not existing:
            raise UserError(
                f"none of the {len(rows)} files of {table} exists, {self.root / rows[0].path} (line {rows[0].line}) "
                "first: name their folder with data.root=..., its sub-folder with data.images=..., or what the paths "
                "lack with data.extension=.jpg"
            )
        if len(existing) < len(rows):
            missing = (row for row in rows if row.path not in files)
            problems += [Problem(row.path, f"line {row.line} of {table.name}: no such file") for row in missing]
        return existing
