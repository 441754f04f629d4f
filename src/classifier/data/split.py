"""Which sample is in which part, and split.csv, which keeps that."""

import logging
import re
import warnings
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from classifier.data.samples import BOX, PART_WORDS, SPLITS, group_ids, labels_of, read_columns, usable
from classifier.errors import UserError, require_number, require_whole
from classifier.files import write_csv

log = logging.getLogger(__name__)

TRAIN, VAL, TEST = range(3)  # positions in SPLITS
NONE = -1


@dataclass(frozen=True)
class Splitting:
    """How samples are divided; a function of the samples and these values alone.

    Parts that the data set prescribes are taken, the missing ones cut. A test part that it prescribes is never
    touched: validation is cut from its training part. Samples of one group (see `group_ids`) stay on one side.

    Args:
        val_fraction: Share of the images to cut for validation, 0 for none, of what is not test already.
        test_fraction: The same for test; used only where the data set prescribes no part at all.
        split_seed: Of the split alone, so that runs with different training seeds share a test set.
        fold: Which of `num_folds` folds is held out, counted from 0; None for no folds. The fold is the test part, or
            where the data set prescribes parts of its own, the validation part.
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

    def split(self, table: pd.DataFrame) -> pd.Series:
        """The part of each sample of `table`; NA for those beyond `limit_per_class`.

        Raises:
            UserError: There are fewer images, or groups, than folds.
        """
        parts = _codes(table["split"]) if "split" in table else np.full(len(table), NONE)
        units = _Units(group_ids(table), labels_of(table), whole="group" not in table)
        prescribed = set(parts.tolist()) - {NONE}
        if self.fold is not None:
            parts[parts == VAL] = TRAIN
            pool = np.flatnonzero(parts != TEST)
            parts[self._fold(units, pool)] = VAL if prescribed else TEST
            prescribed |= {VAL if prescribed else TEST}
        elif not prescribed:
            parts[self._cut(units, np.arange(len(table)), "test")] = TEST
        if VAL not in prescribed:
            pool = np.flatnonzero(parts == (TRAIN if TRAIN in prescribed else NONE))
            parts[self._cut(units, pool, "val")] = VAL
        parts[parts == NONE] = TRAIN
        return self.limited(table, _names(parts))

    def limited(self, table: pd.DataFrame, parts: pd.Series) -> pd.Series:
        """`parts` with at most `limit_per_class` samples of each class in each part, NA for the others."""
        if self.limit_per_class is None:
            return parts
        codes, labels = _codes(parts), labels_of(table)
        kept = np.full(len(codes), NONE)
        for part in (TRAIN, VAL, TEST):
            random = np.random.default_rng((self.split_seed, 2))
            # of a shuffled part the first of each class, so that a smaller limit keeps a part of what a larger one does
            shuffled = random.permutation(np.flatnonzero(codes == part))
            before = pd.Series(shuffled).groupby(labels[shuffled]).cumcount()
            kept[shuffled[before < self.limit_per_class]] = part
        return _names(kept)

    def _fold(self, units: "_Units", pool: np.ndarray) -> np.ndarray:
        """Rows of the wanted fold of `pool`."""
        ids, first = units.of(pool)
        if len(ids) < self.num_folds:
            found = f"{len(ids)} {'images' if units.whole else 'groups'}"
            hint = f"data.num_folds={max(2, len(ids))}"
            raise UserError(f"data.num_folds={self.num_folds} is more than the {found}: use {hint}")
        most = int(np.bincount(units.labels[first] if units.whole else units.labels[pool]).max())
        if most < self.num_folds:
            hint = f"data.num_folds={most}" if most > 1 else "data.fold=null"
            raise UserError(f"data.num_folds={self.num_folds} is more than any class has members: use {hint}")
        return units.rows(pool, [units.folds(pool, self.num_folds, self.split_seed)[self.fold or 0]])

    def _cut(self, units: "_Units", pool: np.ndarray, part: str) -> np.ndarray:
        """Rows of `pool` for the `val` or `test` part, class by class."""
        fraction = self.test_fraction if part == "test" else self.val_fraction
        seed = self.split_seed if part == "test" else self.split_seed + 1
        if fraction <= 0 or len(pool) == 0:
            return pool[:0]
        ids, first = units.of(pool)
        if len(ids) == 1 and not units.whole:
            return pool[:0]
        if units.whole:
            return units.rows(pool, [ids[_share(units.labels[first], fraction, seed)]])
        most = int(np.bincount(units.labels[pool]).max())
        if most < 2:
            raise UserError(
                f"data.{part}_fraction={fraction} cannot be cut from {len(pool)} images in groups, of which no "
                f"two are of one class: use data.{part}_fraction=0"
            )
        # so many folds of so many: 0.3 is three of ten
        share = Fraction(fraction).limit_denominator(min(20, len(ids), most))
        number, of = (share.numerator, share.denominator) if 0 < share < 1 else (1, 2)
        return units.rows(pool, units.folds(pool, of, seed)[:number])


@dataclass(frozen=True)
class _Units:
    """What must not be divided.

    Args:
        groups: int64 (N,), the number of the unit of each sample.
        labels: int64 (N,).
        whole: Each unit is an image, which has the class of its first box; else a group of images.
    """

    groups: np.ndarray
    labels: np.ndarray
    whole: bool

    def of(self, pool: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The units of the rows in `pool`, and the first row of each."""
        ids, first = np.unique(self.groups[pool], return_index=True)
        return ids, pool[first]

    def rows(self, pool: np.ndarray, units: list[np.ndarray]) -> np.ndarray:
        """The rows of `pool` in these units."""
        rows: np.ndarray = pool[np.isin(self.groups[pool], np.concatenate(units))]
        return rows

    def folds(self, pool: np.ndarray, count: int, seed: int) -> list[np.ndarray]:
        """The units of each of `count` folds of `pool`, stratified by class."""
        kind = StratifiedKFold if self.whole else StratifiedGroupKFold
        rows = self.of(pool)[1] if self.whole else pool
        splitter = kind(n_splits=count, shuffle=True, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of classes that have fewer members than there are folds
            folds = splitter.split(rows, self.labels[rows], self.groups[rows])
            return [self.groups[rows[held_out]] for _, held_out in folds]


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


def _codes(parts: pd.Series) -> np.ndarray:
    """int64, positions in `SPLITS`, or NONE."""
    return pd.Index(SPLITS).get_indexer(pd.Index(parts))


def _names(codes: np.ndarray) -> pd.Series:
    return pd.Series(codes).map(dict(enumerate(SPLITS))).astype("str")


def grouped(table: pd.DataFrame, pattern: str) -> pd.DataFrame:
    """`table` with those of one group where the regular expression finds the same text in their paths.

    Raises:
        UserError: The pattern is malformed, or finds nothing in a path.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(f"data.group_pattern={pattern} is no regular expression ({error})") from error
    paths = table["path"][usable(table)]
    # not pandas' extract, which may be RE2's, with another grammar
    found = [(match and match[min(expression.groups, 1)]) or "" for match in map(expression.search, paths)]
    if "" in found:  # an empty text would put all such images into one group
        path = paths.iloc[found.index("")]
        raise UserError(f"data.group_pattern={pattern} finds nothing in {path}: it must fit every path")
    return table.assign(group=pd.Series(found, paths.index, dtype="str").reindex(table.index))


def _box_text(table: pd.DataFrame) -> pd.Series:
    if BOX[0] not in table:
        return pd.Series("", table.index, dtype="str")
    x1, y1, x2, y2 = (table[edge].astype("str") for edge in BOX)
    return x1 + " " + y1 + " " + x2 + " " + y2


def write_split(path: Path, table: pd.DataFrame) -> None:
    """Write split.csv: path, label (name), split, box.

    Raises:
        UserError: It cannot be written.
    """
    listing = table[["path", "label", "split"]].assign(box=_box_text(table))
    write_csv(path, pd.concat([listing[listing["split"] == part] for part in SPLITS]), "log_dir")  # part by part


def read_split(path: Path, table: pd.DataFrame) -> pd.Series:
    """The part of each sample of `table` by a split.csv, of a run or of one's own; NA for those it does not list.

    The columns `path` and `split` are needed; `box` (x1 y1 x2 y2) tells the boxes of an image apart, and a file
    without it divides whole images. A part may have any of the names in `PART_WORDS`.

    Raises:
        UserError: The file is missing or malformed, divides an image twice, or lists what is not in the data.
    """
    try:
        listing = read_columns(path, ("path", "split"), optional=("box",))
        listing = listing.reindex(columns=["path", "split", "box"], fill_value="")
        part = listing["split"].str.strip().str.lower().map(PART_WORDS)
        for line, name in listing["split"][part.isna()].items():
            raise ValueError(f"line {line}: unknown split {name!r}, not {', '.join(SPLITS)}")
        listing = listing.assign(split=part).drop_duplicates()
        for line, image in listing["path"][listing.duplicated(["path", "box"])].items():
            raise ValueError(f"line {line}: {image} is in two parts")
        if listing.empty:
            raise ValueError("no samples")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the split file {path} ({error}): use data.split_file=null") from error
    names, listed = table["path"], listing["path"]
    if (listing["box"] != "").any():
        names, listed = names + "\0" + _box_text(table), listed + "\0" + listing["box"]
    if gone := listing["path"][~listed.isin(names)].tolist():
        raise UserError(
            f"{len(gone)} of the {len(listing)} samples in {path} are not in the data any more, {gone[0]} first: "
            "restore them, or use data.split_file=null for a new split"
        )
    parts = names.map(pd.Series(listing["split"].array, listed)).astype("str")
    if unlisted := int(parts.isna().sum()):  # files that came after the split was made
        log.info("%s does not list %d of the %d samples, which are in no part", path, unlisted, len(table))
    return parts
