"""The table of samples: a pandas DataFrame that each data set lists, and what is asked of it.

Its columns, on a RangeIndex:

- `path`: text, relative to the data folder with forward slashes; a mere name where images are not files.
- `label`: class name; text, or a Categorical whose categories are all classes in their order. With several labels an
  image, a set of names, see `classifier.data.labels`.
- `x1`, `y1`, `x2`, `y2`: int32 box in stored pixels, half-open; only where samples are boxes. As they are listed, they
  may be float64 as annotated, with NA for the whole image; the check makes pixels of them (`boxes.in_pixels`).
- `width`, `height`: float64, what such a box refers to: the image's size in pixels that the annotation states, 1 where
  it is in fractions of the upright image, NA for the image's own size. Optional, and gone after the check.
- `split`: "train", "val" or "test"; NA where nothing is prescribed. Optional.
- `group`: samples of one group stay on one side of a split; NA is a group of its own. Optional.
- `item`: int64, what `read_images` is asked for; only where images are not files.
- `problem`: why a row cannot be used; NA where it can. Optional.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from classifier.data.class_names import NUMBER, check_names, look
from classifier.errors import UserError

SPLITS = ("train", "val", "test")
# what they are called in folders and tables, in small or capital letters
PART_WORDS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}
PART_WORDS |= {"test": "test", "testing": "test"}
BOX = ["x1", "y1", "x2", "y2"]


def list_paths(paths: Iterable[str], labels: Iterable[str] | pd.Categorical, **columns: Any) -> pd.DataFrame:
    """A table of samples of paths as the system gives them: one that is not UTF-8 becomes a problem.

    Args:
        paths: (N,), relative to the data folder.
        labels: (N,) class names.
        columns: Further columns, each (N,).
    """
    given = pd.Series(list(paths), dtype=object)
    shown = given.map(readable).astype("str")
    if not isinstance(labels, pd.Categorical):
        labels = pd.Series([readable(name) for name in labels], dtype="str")
    table = pd.DataFrame({"path": shown, "label": labels, **columns})
    return mark(table, shown.astype(object) != given, "its name is not UTF-8: rename it")


def readable(name: str) -> str:
    """A file name as UTF-8 text, with other bytes as `\\xff`."""
    return name if name.isascii() else os.fsencode(name).decode("utf-8", "backslashreplace")


def mark(table: pd.DataFrame, rows: Any, problem: Any) -> pd.DataFrame:
    """Note the `problem` (text, or texts (N,)) of `rows` (bool (N,)) that have none yet."""
    if not np.any(rows):
        return table
    noted = table["problem"] if "problem" in table else pd.Series(np.nan, table.index, dtype="str")
    return table.assign(problem=noted.mask(noted.isna() & rows, problem))


def usable(table: pd.DataFrame) -> np.ndarray:
    """bool (N,): the rows without a problem."""
    return table["problem"].isna().to_numpy() if "problem" in table else np.ones(len(table), bool)


def order_classes(names: Iterable[str]) -> list[str]:
    """The distinct names in text order; where all of them are numbers, in their order."""
    distinct = sorted(set(names))
    if all(map(NUMBER.fullmatch, distinct)):
        distinct.sort(key=Decimal)  # exact, at any length
    return distinct


def with_labels(table: pd.DataFrame, classes: Sequence[str] | None, what: str) -> pd.DataFrame:
    """`table` with labels as a Categorical.

    Args:
        classes: Names of a trained model's classes; by default the categories that the table declares, else the
            labels of the training part, or where no part is prescribed, of all samples.
        what: Where the names were found, as `photos.csv has the class`.

    Raises:
        UserError: A usable row has another class, or two names look the same.
    """
    labels, rows = table["label"], usable(table)
    if classes is None:
        check_names(labels[rows].value_counts())
    if classes is None and isinstance(labels.dtype, pd.CategoricalDtype):
        classes = list(labels.cat.categories)
    elif classes is None:
        training = rows & (table["split"] == "train").to_numpy() if "split" in table else rows
        classes = order_classes(labels[training if training.any() else rows].unique())
    names, order = labels.astype("str"), pd.Index(list(classes), dtype="str")
    codes = order.get_indexer(pd.Index(names))
    require_known(names[rows & (codes < 0)].unique(), classes, what)
    return table.assign(label=pd.Categorical.from_codes(codes, categories=order))


def require_known(names: Iterable[str], classes: Sequence[str], what: str) -> None:
    """Raise a UserError where one of `names` is not among `classes`; for `what` see `with_labels`."""
    if unknown := [name for name in names if name not in classes]:
        known = ", ".join(list(classes)[:10]) + (", ..." if len(classes) > 10 else "")
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        if alike := [name for name in classes if look(name) == look(unknown[0])]:
            known += f"; {unknown[0]!a} only looks like its {alike[0]!a}"
        unknown_to = f"{more} that training does not know (its {len(classes)} classes: {known})"
        raise UserError(f"{what} {unknown[0]!r}{unknown_to}: rename or remove it, or use another data.root=...")


def labels_of(table: pd.DataFrame) -> np.ndarray:
    """int64 (N,): the numbers of the classes."""
    return table["label"].cat.codes.to_numpy(np.int64)


def boxes_of(table: pd.DataFrame) -> np.ndarray | None:
    """int32 (N, 4), or None where samples are whole images."""
    return table[BOX].to_numpy(np.int32) if BOX[0] in table else None


def image_ids(table: pd.DataFrame) -> np.ndarray:
    """int64 (N,): the same number for samples of the same image, counted from 0 in the table's order."""
    return pd.factorize(table["path"])[0]


def group_ids(table: pd.DataFrame) -> np.ndarray:
    """int64 (N,): the same number for samples that must not be divided, counted from 0.

    Those are the samples of an image, and those of a group; where an image belongs to two groups, both.
    """
    images = image_ids(table)
    if "group" not in table or len(table) == 0:
        return images
    groups, names = pd.factorize(table["group"])
    count = int(images.max()) + 1
    linked = groups >= 0
    ends = (images[linked], groups[linked] + count)
    links = coo_array((np.ones(linked.sum()), ends), shape=(count + len(names),) * 2)
    joined: np.ndarray = pd.factorize(connected_components(links, directed=False)[1][images])[0]
    return joined


def fingerprint(table: pd.DataFrame) -> str:
    """SHA-256 over classes, paths, labels and boxes: equal only where the data is listed the same."""
    digest = hashlib.sha256("\0".join(table["label"].cat.categories).encode())
    digest.update("\0".join(["", *table["path"].tolist()]).encode())
    digest.update(labels_of(table).tobytes())
    if (boxes := boxes_of(table)) is not None:
        digest.update(np.ascontiguousarray(boxes).tobytes())
    return digest.hexdigest()
