"""Sets of labels: what the label of an image is where it may have several, and how tables write that down.

A table of samples has the text of an image's class names in `label`, joined by `|`; an empty text for none of them. It
becomes a Categorical whose categories are sets: one of each class alone, in the order of the classes, and then those
others that occur. So all that counts, compares or divides by `label` works as for a single label.
"""

import json
import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from itertools import compress
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_array, eye_array, hstack
from sklearn.preprocessing import MultiLabelBinarizer

from classifier.data.boxes import SIZE
from classifier.data.class_names import check_names
from classifier.data.samples import BOX, image_ids, mark, order_classes, require_known, usable
from classifier.errors import UserError, as_typed

log = logging.getLogger(__name__)

SINGLE, MULTI = "single_label", "multi_label"  # of `task`
JOIN = "|"
COLUMN = "*"  # how the key of a column begins that is a class of its own; alone, each column that has no other use
WORDS = {"1": 1.0, "1.0": 1.0, "true": 1.0, "yes": 1.0, "0": 0.0, "0.0": 0.0, "false": 0.0, "no": 0.0}


def classes_of(labels: pd.Series, task: str) -> pd.Index:
    """Names of the classes, in their order; `labels` is the Categorical column of a table of samples."""
    sets = labels.cat.categories
    return sets if task == SINGLE else sets[(sets != "") & ~sets.str.contains(JOIN, regex=False)]


def members(labels: pd.Series, task: str) -> csr_array:
    """int64 (categories of `labels`, classes): 1 where a class is in the set; of single labels the identity."""
    sets = labels.cat.categories
    if task == SINGLE:
        return eye_array(len(sets), dtype=np.int64, format="csr")
    binarizer = MultiLabelBinarizer(classes=classes_of(labels, task).tolist(), sparse_output=True)
    return csr_array(binarizer.fit_transform([text.split(JOIN) if text else [] for text in sets]))


def strata(labels: pd.Series, task: str) -> csr_array:
    """As `members`, with one more column where an image may have several labels: the set of none."""
    sets = members(labels, task)
    return sets if task == SINGLE else hstack([sets, (sets.sum(axis=1) == 0).astype(np.int64)[:, None]], format="csr")


def class_counts(labels: pd.Series, task: str) -> np.ndarray:
    """int64 (K,): in how many samples each class is."""
    sets = members(labels, task)
    counts: np.ndarray = sets.T @ np.bincount(labels.cat.codes, minlength=sets.shape[0])
    return counts


def with_label_sets(table: pd.DataFrame, classes: Sequence[str] | None, what: str) -> pd.DataFrame:
    """`table` with one row for each image, whose label is the set of those of its rows; as `with_labels` else.

    Boxes are dropped: the labels are those of whole images. A problem of one of an image's rows is the image's.
    """
    if classes is None and isinstance(table["label"].dtype, pd.CategoricalDtype):
        classes = classes_of(table["label"], MULTI).tolist()
    if BOX[0] in table:  # each of which has one name
        table = one_name_each(table).drop(columns=[*BOX, *SIZE], errors="ignore")
    table = table.assign(label=table["label"].astype("str").fillna(""))
    if table["path"].duplicated().any():
        images = image_ids(table)
        joined = (table["label"] + JOIN).groupby(images).sum()
        table = table.groupby(images).first().assign(label=joined).reset_index(drop=True)
    codes, texts = pd.factorize(table["label"])
    sets = [{*map(str.strip, text.split(JOIN))} - {""} for text in texts]
    rows = usable(table)
    names = sorted(set().union(*(sets[code] for code in np.unique(codes[rows]))))
    if classes is None:
        training = rows & (table["split"] == "train").to_numpy() if "split" in table else rows
        counts = Counter[str]()
        for code, count in zip(*np.unique(codes[rows], return_counts=True), strict=True):
            counts.update(dict.fromkeys(sets[code], int(count)))
        check_names(pd.Series(counts, dtype="int64"))
        found = np.unique(codes[training if training.any() else rows])
        classes = order_classes(set().union(*(sets[code] for code in found)))
    require_known(names, classes, what)
    places = {name: place for place, name in enumerate(classes)}
    canonical = [JOIN.join(sorted(found & places.keys(), key=places.__getitem__)) for found in sets]
    table = table.assign(label=_categorical(codes, canonical, classes))
    if bare := int(((table["label"] == "") & rows).sum()):
        log.warning("%d of %d images have no label, and count as having none of the classes", bare, rows.sum())
    return table


def one_name_each(table: pd.DataFrame) -> pd.DataFrame:
    """`table`, whose labels are one name each, with a problem where that would be taken for several."""
    names = table["label"].astype("str")
    what = f'\' holds {JOIN}, which is between names: rename it, or in a table use data.label_separator="{JOIN}"'
    return mark(table, names.str.contains(JOIN, regex=False), "'" + names + what)


def _categorical(codes: np.ndarray, texts: Sequence[str], classes: Sequence[str]) -> pd.Categorical:
    """Labels from the number of each row's set, and the canonical texts of the sets."""
    categories = [*classes, *sorted({*texts}.difference(classes))]
    places = {text: place for place, text in enumerate(categories)}
    numbers = np.array([places[text] for text in texts], np.int64)
    return pd.Categorical.from_codes(numbers[codes], categories=pd.Index(categories, dtype="str"))


def label_columns(columns: Sequence[str] | str | None) -> dict[str, str]:
    """Key -> column, for `read_rows`: of the columns that are a class each.

    Raises:
        UserError: They are not a list of different names, or `all`.
    """
    if columns is None or columns == "all":
        return {} if columns is None else {COLUMN: COLUMN}
    if isinstance(columns, str) or len({*columns}) < len(columns) or not columns:
        raise UserError(f"data.label_columns={as_typed(columns)}: use all, or a list of columns, as [cat,dog]")
    return {COLUMN + str(name): str(name) for name in columns}


def with_label_text(table: pd.DataFrame, separator: str | None, task: str) -> pd.DataFrame:
    """`table` with the label that is written in its columns or cells; rows where it cannot be one are problems.

    Args:
        table: With columns of 0 and 1 whose names begin with `COLUMN`, or with a column `label`.
        separator: What is between the names in a cell; `json` for a list in JSON; None where a cell is a name.
        task: With a single label, a row has to have exactly one.

    Raises:
        UserError: The name of a column cannot be a class.
    """
    keys = [key for key in table if str(key).startswith(COLUMN)]
    if not keys and separator is None:
        return table if task == SINGLE else one_name_each(table)
    if keys:
        cells = table[keys].rename(columns=lambda key: key.removeprefix(COLUMN))
        table = _from_columns(table.drop(columns=keys), cells)
    else:
        table = _from_cells(table, separator or " ")  # Hydra reads a blank as nothing
    if task == SINGLE:
        table = table.astype({"label": "str"})
        odd = (table["label"] == "") | table["label"].str.contains(JOIN, regex=False)
        table = mark(table, odd, "its labels are '" + table["label"] + "', not exactly one: use task=multi_label")
    return table


def _from_columns(table: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    classes = order_classes([*cells])
    if joined := [name for name in classes if JOIN in name]:
        raise UserError(f"the name of the column {joined[0]!r} holds {JOIN}: rename it, or use data.label_columns=...")
    found = {name: pd.factorize(cells[name]) for name in classes}  # few words, in many rows
    texts = {name: [text.strip().lower() for text in of_column] for name, (_, of_column) in found.items()}
    # -1 says no where nothing else does, as in CelebA; beside a 0 it says something else, as in CheXpert
    words = WORDS if {"0", "0.0"} & set().union(*texts.values()) else {**WORDS, "-1": 0.0, "-1.0": 0.0}
    values = np.empty((len(table), len(classes)))
    for place, name in enumerate(classes):
        values[:, place] = np.array([words.get(text, np.nan) for text in texts[name]])[found[name][0]]
        what = f"' in the column {name} is neither 0 nor 1: mend it, or use data.label_columns=[...]"
        table = mark(table, np.isnan(values[:, place]), "'" + cells[name] + what)
    codes, _ = pd.factorize(pd.Series([row.tobytes() for row in np.packbits(values == 1, axis=1)], dtype=object))
    sets = values[np.unique(codes, return_index=True)[1]] == 1
    return table.assign(label=_categorical(codes, [JOIN.join(compress(classes, row)) for row in sets], classes))


def _from_cells(table: pd.DataFrame, separator: str) -> pd.DataFrame:
    codes, cells = pd.factorize(table["label"])
    texts, problems = [], {}
    for number, cell in enumerate(cells):
        try:
            names = _listed(cell) if separator == "json" else cell.split(separator)
            names = [name for name in map(str.strip, names) if name]
            if held := [name for name in names if JOIN in name]:
                raise ValueError(f"{held[0]!r} holds {JOIN}, which is between names: rename it")
        except ValueError as error:
            names, problems[number] = [], str(error)
        texts.append(JOIN.join(dict.fromkeys(names)))
    what = pd.Series(codes, table.index).map(problems)
    return mark(table.assign(label=pd.Series(texts, dtype="str").to_numpy()[codes]), what.notna(), what)


def _listed(cell: str) -> list[str]:
    """The names in a list of JSON, or in the only list of an object, as Label Studio writes `{"choices": [...]}`.

    Raises:
        ValueError: It is something else.
    """
    found: Any = None if cell else []
    with suppress(ValueError, RecursionError):
        found = json.loads(cell if '"' in cell else cell.replace("'", '"'))  # as Python writes it
    if isinstance(found, dict) and len(found) == 1:
        (found,) = found.values()
    found = [found] if isinstance(found, str) else found
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise ValueError(f"{cell[:80]!r} is no list of names in JSON: use another data.label_separator=...")
    return found
