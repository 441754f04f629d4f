"""split.csv, which keeps which sample is in which part."""

import csv
import logging
import re
import warnings
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from classifier.data.samples import PART_WORDS, SPLITS, UNASSIGNED, Samples, numbered
from classifier.data.table_file import read_fixed
from classifier.errors import UserError, require_number, require_whole
from classifier.files import whole_file

log = logging.getLogger(__name__)


Split = dict[str, np.ndarray]
"""Name in `SPLITS` -> int64 rows of the Samples table, ascending. Absent where the data has no such part."""


@dataclass(frozen=True)
class Splitting:
    """How samples are divided; a function of the samples and these values alone.

    Parts that the source prescribes are taken, the missing ones cut. A test part that it prescribes is never touched:
    validation is cut from its training part. Samples of one group (see `Samples.group_ids`) stay on one side.

    Args:
        val_fraction: Share of the images to cut for validation, 0 for none, of what is not test already.
        test_fraction: The same for test; used only where the source prescribes no part at all.
        split_seed: Of the split alone, so that runs with different training seeds share a test set.
        fold: Which of `num_folds` folds is held out, counted from 0; None for no folds. The fold is the test part, or
            where the source prescribes parts of its own, the validation part.
        num_folds: Number of folds.
        limit_per_class: The most samples of each class that each part keeps; None for all.
    """

    val_fraction: float = 0.1
    test_fraction: float = 0.2
    split_seed: int = 0
    fold: int | None = None
    num_folds: int = 5
    limit_per_class: int | None = None

    def __post_init__(self) -> None:
        require_number("data.val_fraction", self.val_fraction)
        require_number("data.test_fraction", self.test_fraction)
        if self.val_fraction < 0 or self.test_fraction < 0 or self.val_fraction + self.test_fraction >= 1:
            raise UserError(
                f"data.val_fraction={self.val_fraction} and data.test_fraction={self.test_fraction} must not be "
                "negative and must leave images to train on: their sum must be below 1"
            )
        require_whole("data.split_seed", self.split_seed, 0, 2**32 - 2)  # what scikit-learn takes, for two parts
        require_whole("data.num_folds", self.num_folds, 2)
        if self.fold is not None:
            reason = f", as data.num_folds={self.num_folds}, or null"
            require_whole("data.fold", self.fold, 0, self.num_folds - 1, reason)
        if self.limit_per_class is not None:
            require_whole("data.limit_per_class", self.limit_per_class, 1, otherwise=", or null for all")

    def split(self, samples: Samples) -> Split:
        """Divide `samples`.

        Raises:
            UserError: There are fewer images, or groups, than folds.
        """
        assigned, groups = samples.splits.copy(), samples.group_ids()
        train, val, test = range(3)
        prescribed = {number for number in (train, val, test) if (assigned == number).any()}
        if self.fold is not None:
            part = val if prescribed else test
            if val in prescribed:
                assigned[assigned == val] = train
            pool = np.flatnonzero(assigned != test)
            assigned[self._fold(samples, groups, pool)] = part
            prescribed |= {part}
        elif not prescribed:
            pool = np.arange(len(samples))
            assigned[self._cut(samples, groups, pool, "test")] = test
        if val not in prescribed:
            pool = np.flatnonzero(assigned == (train if train in prescribed else UNASSIGNED))
            assigned[self._cut(samples, groups, pool, "val")] = val
        assigned[assigned == UNASSIGNED] = train
        split = {name: np.flatnonzero(assigned == number) for number, name in enumerate(SPLITS)}
        return self.limited(samples, {name: rows for name, rows in split.items() if len(rows)})

    def limited(self, samples: Samples, split: Split) -> Split:
        """`split` with at most `limit_per_class` samples of each class in each part."""
        return {name: self._some(samples.labels, rows) for name, rows in split.items()}

    def _fold(self, samples: Samples, groups: np.ndarray, pool: np.ndarray) -> np.ndarray:
        """Rows of the wanted fold of `pool`."""
        pool_groups, labels = groups[pool], samples.labels[pool]
        units, first = np.unique(pool_groups, return_index=True)
        if len(units) < self.num_folds:
            what = "images" if samples.groups is None else "groups"
            raise UserError(
                f"data.num_folds={self.num_folds} is more than the {len(units)} {what}: use data.num_folds="
                f"{max(2, len(units))}"
            )
        most = int(np.bincount(labels[first] if samples.groups is None else labels).max())
        if most < self.num_folds:
            hint = f"data.num_folds={most}" if most > 1 else "data.fold=null"
            raise UserError(f"data.num_folds={self.num_folds} is more than any class has members: use {hint}")
        if samples.groups is None:  # a unit is an image, and has the class of its first box
            folds = _folds(StratifiedKFold, self.num_folds, self.split_seed, labels[first])
            chosen = units[folds[self.fold or 0]]
        else:
            folds = _folds(StratifiedGroupKFold, self.num_folds, self.split_seed, labels, pool_groups)
            chosen = np.unique(pool_groups[folds[self.fold or 0]])
        held_out: np.ndarray = pool[np.isin(pool_groups, chosen)]
        return held_out

    def _cut(self, samples: Samples, groups: np.ndarray, pool: np.ndarray, part: str) -> np.ndarray:
        """Rows of `pool` for the `val` or `test` part, class by class."""
        fraction = self.test_fraction if part == "test" else self.val_fraction
        seed = self.split_seed if part == "test" else self.split_seed + 1
        if fraction <= 0 or len(pool) == 0:
            return pool[:0]
        pool_groups, labels = groups[pool], samples.labels[pool]
        units, first = np.unique(pool_groups, return_index=True)
        if samples.groups is None:
            chosen = units[_share(labels[first], fraction, seed)]
        elif len(units) == 1:
            return pool[:0]
        else:
            most = int(np.bincount(labels).max())
            if most < 2:
                raise UserError(
                    f"data.{part}_fraction={fraction} cannot be cut from {len(pool)} images in groups, of which no "
                    f"two are of one class: use data.{part}_fraction=0"
                )
            # so many folds of so many: 0.3 is three of ten
            share = Fraction(fraction).limit_denominator(min(20, len(units), most))
            number, of = (share.numerator, share.denominator) if 0 < share < 1 else (1, 2)
            rows = np.concatenate(_folds(StratifiedGroupKFold, of, seed, labels, pool_groups)[:number])
            chosen = np.unique(pool_groups[rows])
        taken: np.ndarray = pool[np.isin(pool_groups, chosen)]
        return taken

    def _some(self, labels: np.ndarray, rows: np.ndarray) -> np.ndarray:
        if self.limit_per_class is None:
            return rows
        random = np.random.default_rng((self.split_seed, 2))
        # of a shuffled part the first of each class, so that a smaller limit keeps a part of what a larger one does
        shuffled = random.permutation(rows)
        order = np.argsort(labels[shuffled], kind="stable")
        starts = np.searchsorted(labels[shuffled][order], labels[shuffled][order])
        kept: np.ndarray = np.sort(shuffled[order[np.arange(len(rows)) - starts < self.limit_per_class]])
        return kept


def grouped(samples: Samples, pattern: str) -> Samples:
    """`samples` with those of one group where the regular expression finds the same text in their paths.

    Raises:
        UserError: The pattern is malformed, or finds nothing in a path.
    """
    names = []
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(f"data.group_pattern={pattern} is no regular expression ({error})") from error
    for row in range(len(samples)):
        path = samples.relative_path(row)
        found = expression.search(path)
        name = found and found[1 if expression.groups else 0]
        if not name:  # an empty text would put all such images into one group
            raise UserError(f"data.group_pattern={pattern} finds nothing in {path}: it must fit every path")
        names.append(name)
    return replace(samples, groups=numbered(names))


def _folds(
    kind: type[StratifiedKFold] | type[StratifiedGroupKFold],
    count: int,
    seed: int,
    labels: np.ndarray,
    groups: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Positions in `labels` of each of `count` folds."""
    splitter = kind(n_splits=count, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of classes that have fewer members than there are folds
        return [held_out for _, held_out in splitter.split(np.zeros(len(labels)), labels, groups)]


def _share(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Positions in `labels` of a share of each class, to within one, and at least one where the class has three.

    (scikit-learn's StratifiedShuffleSplit refuses classes of one member and parts smaller than the number of classes.)
    """
    random = np.random.default_rng(seed)
    chosen: list[np.ndarray] = []
    for label in range(labels.max() + 1):
        members = np.flatnonzero(labels == label)
        count = round(len(members) * fraction)
        if len(members) >= 3:
            count = min(max(1, count), len(members) - 1)
        chosen.append(random.permutation(members)[:count])
    return np.concatenate(chosen)


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
