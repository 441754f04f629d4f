"""Class names: their order, and the label of each."""

import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from classifier.data.samples import SPLITS
from classifier.errors import UserError

TRAIN = SPLITS.index("train")


def ordered(names: Iterable[str]) -> list[str]:
    """The distinct names in text order; where all of them are integers, in the order of the numbers."""
    distinct = sorted(set(names))
    if all(re.fullmatch("[+-]?[0-9]+", name) for name in distinct):
        distinct.sort(key=int)
    return distinct


def labels_of(names: Sequence[str], classes: Sequence[str], what: str, remedy: str = "") -> np.ndarray:
    """int64 (len(names),): the position of each name in `classes`.

    Args:
        what: Where the names were found, as `photos/val has the class folder`.
        remedy: What to do about an unknown one.

    Raises:
        UserError: A name is not among `classes`.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    if unknown := [name for name in dict.fromkeys(names) if name not in numbers]:
        raise UserError(
            f"{what} {unknown[0]!r}"
            + (f" and {len(unknown) - 1} more" if len(unknown) > 1 else "")
            + f" that training does not know (its {len(classes)} classes: {', '.join(list(classes)[:10])}"
            + (", ..." if len(classes) > 10 else "")
            + f"): {remedy or 'rename or remove it, or name other data with data.root=...'}"
        )
    return np.fromiter((numbers[name] for name in names), dtype=np.int64, count=len(names))


def match_classes(
    names: Sequence[str],
    splits: np.ndarray,
    classes: Sequence[str] | None,
    what: str,
    remedy: str = "",
    order: Callable[[Iterable[str]], list[str]] = ordered,
) -> tuple[list[str], np.ndarray]:
    """Class names, and the label of each sample.

    Args:
        names: The class of each of N samples.
        splits: int8 (N,), as in `Samples`.
        classes: Names of a trained model's classes; by default those of the training part, in `order`, or where the
            source prescribes no such part, of all samples.
        what, remedy: See `labels_of`.

    Raises:
        UserError: A sample has a class that `classes`, or the training part, lacks.
    """
    if classes is None:
        training = np.flatnonzero(splits == TRAIN).tolist()
        classes = order(names[row] for row in training) if training else order(names)
    return list(classes), labels_of(names, classes, what, remedy)
