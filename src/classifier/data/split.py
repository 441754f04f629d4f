"""Which sample is for training, validation, test; and the split.csv that keeps it."""

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from classifier.data.samples import SPLITS, UNASSIGNED, Samples
from classifier.errors import UserError

Split = dict[str, np.ndarray]
"""Name in `SPLITS` -> int64 rows of the Samples table, ascending. Absent where the data has no such part."""


def split_samples(samples: Samples, val_fraction: float, test_fraction: float, seed: int) -> Split:
    """Take the parts that the source prescribes and cut the missing ones.

    A test part that the source prescribes is never touched: validation is cut from its training part.

    Args:
        val_fraction: Share of the images to cut for validation, 0 for none, of what is not test already.
        test_fraction: The same for test; used only where the source prescribes no part at all.
        seed: Of the split alone, so that runs with different training seeds share a test set.
    """
    assigned, images = samples.splits.copy(), samples.image_ids()
    prescribed = {name for number, name in enumerate(SPLITS) if (assigned == number).any()}
    free = np.flatnonzero(assigned == UNASSIGNED)
    if not prescribed:
        free = _cut(samples, images, assigned, free, SPLITS.index("test"), test_fraction, seed)
    if "val" not in prescribed:
        pool = free if "train" not in prescribed else np.flatnonzero(assigned == SPLITS.index("train"))
        _cut(samples, images, assigned, pool, SPLITS.index("val"), val_fraction, seed + 1)
    assigned[assigned == UNASSIGNED] = SPLITS.index("train")
    return {
        name: np.flatnonzero(assigned == number) for number, name in enumerate(SPLITS) if (assigned == number).any()
    }


def _cut(
    samples: Samples,
    images: np.ndarray,
    assigned: np.ndarray,
    pool: np.ndarray,
    number: int,
    fraction: float,
    seed: int,
) -> np.ndarray:
    """Assign `fraction` of the images in `pool` to split `number`, class by class; return what is left of the pool.

    Each class gives its share to within one image, and at least one where it has three. (scikit-learn's
    stratified splitters refuse classes of one image and parts smaller than the number of classes.) All the
    boxes of an image go together, by the class of its first box.
    """
    if fraction <= 0:
        return pool
    first_rows = pool[np.unique(images[pool], return_index=True)[1]]
    random = np.random.default_rng(seed)
    chosen: list[np.ndarray] = []
    for label in range(len(samples.classes)):
        rows = first_rows[samples.labels[first_rows] == label]
        count = round(len(rows) * fraction)
        if len(rows) >= 3:
            count = min(max(1, count), len(rows) - 1)
        chosen.append(random.permutation(rows)[:count])
    taken = np.isin(images, images[np.concatenate(chosen)])
    assigned[pool[taken[pool]]] = number
    left: np.ndarray = pool[~taken[pool]]
    return left


def _key(samples: Samples, row: int) -> tuple[str, str]:
    box = samples.box(row)
    return samples.relative_path(row), "" if box is None else " ".join(map(str, box))


def write_split(path: Path, samples: Samples, split: Split) -> None:
    """Write split.csv: path, label (name), split, box."""
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split", "box"])
        for name, rows in split.items():
            for row in rows:
                file_path, box = _key(samples, row)
                writer.writerow([file_path, samples.classes[samples.labels[row]], name, box])


def read_split(path: Path, samples: Samples) -> Split:
    """Read a split.csv back for the same samples.

    Raises:
        UserError: The file is missing or malformed, or a sample of it is not in the data any more.
    """
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            table: Mapping[tuple[str, str], str] = {
                (row["path"], row["box"]): row["split"] for row in csv.DictReader(file)
            }
        if not table or None in table.values():
            raise ValueError("no samples, or a row without its split")
    except (OSError, KeyError, ValueError, csv.Error) as error:
        raise UserError(f"cannot read the split file {path} ({error!r}): use data.split_file=null") from error
    rows_by_name: dict[str, list[int]] = {name: [] for name in SPLITS}
    for row in range(len(samples)):
        name = table.get(_key(samples, row))
        if name is None:
            continue  # a file that came after the split was made
        if name not in rows_by_name:
            raise UserError(f"{path}: unknown split {name!r}, expected one of {', '.join(SPLITS)}")
        rows_by_name[name].append(row)
    known = {_key(samples, row) for row in range(len(samples))}
    if gone := [key for key in table if key not in known]:
        raise UserError(
            f"{len(gone)} of the {len(table)} samples in {path} are not in {samples.root} any more, "
            f"{gone[0][0]} first: restore them, or use data.split_file=null to split anew"
        )
    return {name: np.array(rows, dtype=np.int64) for name, rows in rows_by_name.items() if rows}
