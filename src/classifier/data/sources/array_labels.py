"""An array of labels -> the class name of each image."""

import logging

import numpy as np

from classifier.errors import UserError

log = logging.getLogger(__name__)


def read_labels(array: np.ndarray, name: str, key: str) -> np.ndarray:
    """int64 (N,), or text (N,) where the labels are names.

    Args:
        array: (N,) or (N, 1) of integers, whole fractions, bool or text; or (N, K) with a single 1 in each row.
        name: Of the array.
        key: The setting that names it.

    Raises:
        UserError: Another shape or kind, negative or fractional labels, no or several ones in a row.
    """
    other = f"name another array with data.{key}=..."
    if array.ndim not in (1, 2) or array.size == 0:
        raise UserError(
            f"the array {name} has the shape {array.shape}: labels are (N,), (N, 1) or (N, K) one-hot; {other}"
        )
    if array.ndim == 2 and array.shape[1] > 1:
        return _from_one_hot(array, name, other)
    labels = np.array(array).reshape(-1)
    if labels.dtype.kind in "US":
        return texts(labels)
    if labels.dtype.kind not in "iufb":
        raise UserError(f"the array {name} is of {labels.dtype}: labels are integers or text; {other}")
    whole = np.isfinite(labels) & (labels == np.floor(labels))
    _require(whole, labels, name, f"labels are integers; save {name}.astype(int), or {other}")
    _require(labels >= 0, labels, name, f"labels count from 0; {other}")
    return labels.astype(np.int64)


def _require(good: np.ndarray, labels: np.ndarray, name: str, remedy: str) -> None:
    if not good.all():
        row = int(np.argmin(good))
        raise UserError(f"the array {name} has the label {labels[row]} at {row}: {remedy}")


def _from_one_hot(array: np.ndarray, name: str, other: str) -> np.ndarray:
    ones = array == 1 if array.dtype.kind in "iufb" else np.zeros(array.shape, bool)
    single = (
        (ones.sum(axis=1) == 1) & (array.astype(bool).sum(axis=1) == 1) if ones.any() else np.zeros(len(array), bool)
    )
    if not single.all():
        row = int(np.argmin(single))
        raise UserError(
            f"the array {name} has the shape {array.shape}, and its row {row} is not a single 1 among zeros: labels "
            f"are (N,), (N, 1) or (N, K) one-hot; {other}"
        )
    log.info("%s: one-hot labels of %d classes", name, array.shape[1])
    classes: np.ndarray = np.argmax(array, axis=1).astype(np.int64)
    return classes


def texts(array: np.ndarray) -> np.ndarray:
    """Text (N,) of an array of anything, bytes being UTF-8.

    Raises:
        UserError: Bytes that are not.
    """
    if array.dtype.kind == "S":
        try:
            decoded: np.ndarray = np.char.decode(array, "utf-8")
            return decoded
        except UnicodeDecodeError as error:
            raise UserError(f"class names are not in UTF-8 ({error}): save them with dtype=str") from error
    as_text: np.ndarray = array.astype(str)
    return as_text
