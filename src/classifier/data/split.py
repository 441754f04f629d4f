"""Which sample is in which part, and split.csv, which keeps that."""

import logging
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import csr_array
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from classifier.data.labels import MULTI, SINGLE, strata
from classifier.data.samples import BOX, PART_WORDS, SPLITS, group_ids, labels_of, usable
from classifier.data.table_file import read_columns
from classifier.errors import UserError, require_number, require_whole
from classifier.files import write_csv

log = logging.getLogger(__name__)


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
        task: With `multi_label`, each class has its share in each part, see `_iterative`.
    """

    val_fraction: float = 0.1
    test_fraction: float = 0.2
    split_seed: int = 0
    fold: int | None = None
    num_folds: int = 5
    limit_per_class: int | None = None
    task: str = SINGLE

    def __post_init__(self) -> None:
        require_number("data.val_fraction", self.val_fraction, least=0)
        require_number("data.test_fraction", self.test_fraction, least=0)
        if self.val_fraction + self.test_fraction >= 1:
            given = f"data.val_fraction={self.val_fraction} and data.test_fraction={self.test_fraction}"
            raise UserError(f"{given} must leave images to train on: their sum must be below 1")
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
        parts = table["split"].fillna("").to_numpy(object) if "split" in table else np.full(len(table), "", object)
        units = pd.DataFrame({"unit": group_ids(table), "label": labels_of(table)})
        whole = "group" not in table
        prescribed = set(parts) - {""}
        kinds = strata(table["label"], self.task)[units["label"].to_numpy()] if self.task == MULTI else None

        def hold_out(part: str, pool: np.ndarray, folds: bool = False) -> None:
            # an image has the class of its first box
            members = units[pool].drop_duplicates("unit").sort_values("unit") if whole else units[pool]
            if kinds is not None:
                chosen = self._of_sets(units["unit"].to_numpy()[pool], kinds[pool], part, folds)
            else:
                chosen = self._fold(members, whole) if folds else self._share(members, part, whole)
            parts[pool & np.isin(units["unit"], chosen)] = part

        if self.fold is not None:
            parts[parts == "val"] = "train"
            part = "val" if prescribed else "test"
            hold_out(part, parts != "test", folds=True)
            prescribed.add(part)
        elif not prescribed and self.test_fraction > 0:
            hold_out("test", parts == "")
        if "val" not in prescribed and self.val_fraction > 0:
            hold_out("val", parts == ("train" if "train" in prescribed else ""))
        parts[parts == ""] = "train"
        return self.limited(table, pd.Series(parts, dtype="str"))

    def limited(self, table: pd.DataFrame, parts: pd.Series) -> pd.Series:
        """`parts` with at most `limit_per_class` samples of each class in each part, NA for the others."""
        if self.limit_per_class is None:
            return parts
        labels, kept = labels_of(table), np.zeros(len(parts), bool)
        for part in SPLITS:
            random = np.random.default_rng((self.split_seed, 2))
            # of a shuffled part the first of each class, so that a smaller limit keeps a part of what a larger one does
            shuffled = random.permutation(np.flatnonzero(parts == part))
            if self.task == MULTI:
                kinds = strata(table["label"], self.task)[labels[shuffled]]
                kept[_limited(shuffled, kinds, self.limit_per_class)] = True
                continue
            before = pd.Series(shuffled).groupby(labels[shuffled]).cumcount()
            kept[shuffled[before < self.limit_per_class]] = True
        return parts.where(kept)

    def _of_sets(self, units: np.ndarray, kinds: csr_array, part: str, folds: bool) -> np.ndarray:
        """The units of the wanted fold, or for the `val` or `test` part, of images with several labels.

        Args:
            units: int64 (N,), of each image.
            kinds: int64 (N, K), 1 where an image has a label.
        """
        names, numbers = np.unique(units, return_inverse=True)
        counts = csr_array((np.ones(len(units), np.int64), (numbers, np.arange(len(units))))) @ kinds
        if folds:
            self._require_folds(len(names), int(np.diff(counts.tocsc().indptr).max(initial=0)))
            shares, seed, wanted = [1 / self.num_folds] * self.num_folds, self.split_seed, self.fold or 0
        else:
            test = part == "test"
            share = self.test_fraction if test else self.val_fraction
            shares, seed, wanted = [1 - share, share], self.split_seed + (not test), 1
        return np.asarray(names[_iterative(counts.tocsr(), np.bincount(numbers), shares, seed) == wanted])

    def _fold(self, members: pd.DataFrame, whole: bool) -> np.ndarray:
        """The units of the wanted fold."""
        self._require_folds(members["unit"].nunique(), members["label"].value_counts().max())
        folds = _folds(members, self.num_folds, self.split_seed, whole)
        return folds[self.fold or 0]

    def _require_folds(self, units: int, largest: int) -> None:
        most = min(units, largest)
        if most < self.num_folds:
            found = f"{most} images or groups that the largest class has"
            hint = f"data.num_folds={most}" if most > 1 else "data.fold=null"
            raise UserError(f"data.num_folds={self.num_folds} is more than the {found}: use {hint}")

    def _share(self, members: pd.DataFrame, part: str, whole: bool) -> np.ndarray:
        """Units for the `val` or `test` part, class by class."""
        test = part == "test"
        fraction, seed = (self.test_fraction if test else self.val_fraction), self.split_seed + (not test)
        units, labels = members["unit"].to_numpy(), members["label"].to_numpy()
        count = len(np.unique(units))
        if count == 0 or (count == 1 and not whole):
            return units[:0]
        if whole:
            return np.asarray(units[_stratified(labels, fraction, seed)])
        most = int(np.bincount(labels).max())
        if most < 2:
            raise UserError(
                f"data.{part}_fraction={fraction} cannot be cut from {len(members)} images in groups, of which no "
                f"two are of one class: use data.{part}_fraction=0"
            )
        # so many folds of so many: 0.3 is three of ten
        share = Fraction(fraction).limit_denominator(min(20, count, most))
        number, of = (share.numerator, share.denominator) if 0 < share < 1 else (1, 2)
        return np.concatenate(_folds(members, of, seed, whole)[:number])


def _folds(members: pd.DataFrame, count: int, seed: int, whole: bool) -> list[np.ndarray]:
    """The units of each of `count` folds, stratified by class."""
    kind = StratifiedKFold if whole else StratifiedGroupKFold
    units = members["unit"].to_numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of classes that have fewer members than there are folds
        folds = kind(n_splits=count, shuffle=True, random_state=seed).split(units, members["label"], units)
        return [units[held_out] for _, held_out in folds]


def _stratified(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Positions in `labels` of a share of each class, to within one, and at least one where the class has three.

    (scikit-learn's StratifiedShuffleSplit refuses classes of one member and parts smaller than the number of classes.)
    """
    random = np.random.default_rng(seed)
    chosen: list[np.ndarray] = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = round(len(members) * fraction)
        if len(members) >= 3:
            count = min(max(1, count), len(members) - 1)
        chosen.append(random.permutation(members)[:count])
    return np.concatenate(chosen)


def _iterative(counts: csr_array, sizes: np.ndarray, shares: Sequence[float], seed: int) -> np.ndarray:
    """The part of each unit, so that each part gets its share of each label: int64 (U,). Each unit has one at least.

    The label with the fewest units left is dealt out first, each time to the part that lacks most of it, so that
    rare labels come into each part. Of two parts, the second gets at least one unit of a label that three have.

    Args:
        counts: int64 (U, K), images of each label in each unit.
        sizes: int64 (U,), images in each unit.
        shares: Of the parts, which add up to 1.

    Source: K. Sechidis et al., On the Stratification of Multi-label Data, ECML PKDD 2011.
    """
    of_label = counts.tocsc()
    holders, totals = np.diff(of_label.indptr), counts.sum(axis=0)
    wanted = np.outer(shares, totals)
    if len(shares) == 2:
        some = holders >= 3
        wanted[1, some] = np.maximum(wanted[1, some], 1)
        wanted[0] = totals - wanted[1]
    lacking, room = wanted.T.tolist(), (np.array(shares) * sizes.sum()).tolist()
    parts, left = np.full(len(sizes), -1), holders.copy()
    # groups of many images first, as they fit less well later
    rank = np.lexsort((np.random.default_rng(seed).permutation(len(sizes)), -sizes)).argsort()

    while left.any():
        label = int(np.where(left > 0, left, len(sizes) + 1).argmin())
        units = of_label.indices[of_label.indptr[label] : of_label.indptr[label + 1]]
        units = units[parts[units] < 0]
        for unit in units[np.argsort(rank[units])].tolist():
            _, _, part = max(zip(lacking[label], room, range(len(shares)), strict=True))
            parts[unit] = part
            room[part] -= sizes[unit]
            place = slice(counts.indptr[unit], counts.indptr[unit + 1])
            for other, images in zip(counts.indices[place].tolist(), counts.data[place].tolist(), strict=True):
                lacking[other][part] -= images
                left[other] -= 1
    return parts


def _limited(rows: np.ndarray, kinds: csr_array, most: int) -> list[int]:
    """Those of `rows` that are kept where no label may have more than `most`; such with rare labels come first.

    Args:
        kinds: int64 (N, K), 1 where one of the rows has a label.
    """
    held = kinds.multiply(1 / np.maximum(kinds.sum(axis=0), 1)[None]).max(axis=1).toarray()
    free, kept = [most] * kinds.shape[1], []
    for position in np.argsort(-held, kind="stable").tolist():
        labels = kinds.indices[kinds.indptr[position] : kinds.indptr[position + 1]].tolist()
        if all(free[label] for label in labels):
            kept.append(rows[position])
            for label in labels:
                free[label] -= 1
    return kept


def grouped(table: pd.DataFrame, pattern: str) -> pd.DataFrame:
    """`table` with those of one group where the regular expression finds the same text in their paths.

    Raises:
        UserError: The pattern is malformed, or finds nothing in a path.
    """
    try:
        expression = re.compile(pattern)
        paths = table["path"][usable(table)]
        # not pandas' extract, which may be RE2's, with another grammar
        found = [(match and match[min(expression.groups, 1)]) or "" for match in map(expression.search, paths)]
        if "" in found:  # an empty text would put all such images into one group
            raise ValueError(f"it finds nothing in {paths.iloc[found.index('')]}")
    except (re.error, ValueError) as error:
        raise UserError(f"data.group_pattern={pattern} must fit every path ({error})") from error
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
