"""split.csv, which keeps which sample is in which part."""

import csv
import logging
from pathlib import Path

import numpy as np

from classifier.data.samples import PART_WORDS, SPLITS, Samples
from classifier.data.sources.table_file import read_fixed
from classifier.data.split import Split
from classifier.errors import UserError
from classifier.files import whole_file

log = logging.getLogger(__name__)


def _box_text(samples: Samples, row: int) -> str:
    box = samples.box(row)
    return "" if box is None else " ".join(map(str, box))


def write_split(path: Path, samples: Samples, split: Split) -> None:
    """Write split.csv: path, label (name), split, box.

    Raises:
        UserError: It cannot be written.
    """
    with (
        whole_file(path, "log_dir") as scratch,
        scratch.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split", "box"])
        for name, rows in split.items():
            for row in rows:
                label = samples.classes[samples.labels[row]]
                writer.writerow([samples.relative_path(row), label, name, _box_text(samples, row)])


def read_split(path: Path, samples: Samples) -> Split:
    """Read a split.csv, of a run or of one's own, for the same samples.

    The columns `path` and `split` are needed; `box` (x1 y1 x2 y2) tells the boxes of an image apart, and a file
    without it divides whole images. Samples that it does not list are in no part. A part may have any of the names in
    `PART_WORDS`.

    Raises:
        UserError: The file is missing or malformed, divides an image twice, or lists what is not in the data.
    """
    table: dict[tuple[str, str], str] = {}
    try:
        for line, (image, name, box) in read_fixed(path, ("path", "split"), optional=("box",)):
            part = PART_WORDS.get(name.strip().lower())
            if part is None:
                raise ValueError(f"line {line}: unknown split {name!r}, not {', '.join(SPLITS)}")
            if table.setdefault((image, box), part) != part:
                raise ValueError(f"line {line}: {image} is in {table[image, box]} and in {part}")
        if not table:
            raise ValueError("no samples")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the split file {path} ({error}): use data.split_file=null") from error
    by_box = any(box for _, box in table)
    rows_by_name: dict[str, list[int]] = {name: [] for name in SPLITS}
    found = set()
    for row in range(len(samples)):
        key = (samples.relative_path(row), _box_text(samples, row) if by_box else "")
        if key in table:  # else a file that came after the split was made
            rows_by_name[table[key]].append(row)
            found.add(key)
    if gone := [file_path for file_path, box in table if (file_path, box) not in found]:
        raise UserError(
            f"{len(gone)} of the {len(table)} samples in {path} are not in {samples.root} any more, "
            f"{gone[0]} first: restore them, or use data.split_file=null to split anew"
        )
    if unlisted := len(samples) - sum(map(len, rows_by_name.values())):
        log.info("%s does not list %d of the %d samples, which are in no part", path, unlisted, len(samples))
    return {name: np.array(rows, dtype=np.int64) for name, rows in rows_by_name.items() if rows}
