"""Rare classes and rare images: how often a training epoch draws each."""

import logging
from pathlib import Path

import numpy as np

from classifier.data.samples import Samples
from classifier.data.sources.table_file import read_fixed
from classifier.errors import UserError, require_choice

log = logging.getLogger(__name__)

SAMPLERS = ("shuffle", "balanced", "weighted")


def require_sampler(sampler: str, weights_file: str | None) -> None:
    """Raise a UserError unless the two settings fit."""
    require_choice("data.sampler", sampler, SAMPLERS)
    if (sampler == "weighted") != (weights_file is not None):
        raise UserError(
            f"data.sampler={sampler} with data.weights_file={weights_file or 'null'}: a file of weights and "
            "data.sampler=weighted go together"
        )


def warn_of_untrained(samples: Samples, rows: np.ndarray) -> None:
    """Say which classes have none of the training images at `rows`: nothing can be learnt of them."""
    counts = np.bincount(samples.labels[rows], minlength=len(samples.classes))
    names = [samples.classes[label] for label in np.flatnonzero(counts == 0).tolist()]
    if names:
        log.warning(
            "%d of %d classes have no training image and will not be recognized: %s%s. Add some, or remove the class",
            len(names),
            len(samples.classes),
            ", ".join(names[:5]),
            ", ..." if len(names) > 5 else "",
        )


def training_weights(samples: Samples, rows: np.ndarray, sampler: str, weights_file: str | None) -> np.ndarray | None:
    """float64 (len(rows),), proportional to how often each of `rows` is drawn; None for each once an epoch.

    Raises:
        UserError: The file cannot be read, or lacks a training image.
    """
    if sampler == "shuffle":
        return None
    labels = samples.labels[rows]
    if sampler == "balanced":
        weights: np.ndarray = 1 / np.bincount(labels)[labels]
        return weights
    by_path = _read_weights(Path(weights_file or ""))
    missing = [path for path in map(samples.relative_path, rows) if path not in by_path]
    if missing:
        raise UserError(
            f"{weights_file} has no weight for {missing[0]} and {len(missing) - 1} more training images: add them, "
            "or use data.sampler=shuffle data.weights_file=null"
        )
    weights = np.array([by_path[samples.relative_path(row)] for row in rows])
    if not weights.any():
        raise UserError(
            f"all weights of the training images in {weights_file} are 0: raise some, or use data.sampler=shuffle "
            "data.weights_file=null"
        )
    return weights


def _read_weights(path: Path) -> dict[str, float]:
    weights: dict[str, float] = {}
    try:
        for line, (name, text) in read_fixed(path, ("path", "weight")):
            weight = _number(text)
            if not 0 <= weight < float("inf"):
                raise ValueError(f"line {line}: weight {text!r} is not a number from 0 on")
            if weights.setdefault(name, weight) != weight:
                raise ValueError(f"line {line}: {name} has two weights")
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read the weights {path} ({error}): name another file with data.weights_file"
        ) from error
    return weights


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def balanced_class_weights(labels: np.ndarray, num_classes: int) -> list[float]:
    """A loss weight for each class, inverse to its share of `labels` int64 (N,), with a mean of 1 over the samples.

    A class without samples has weight 0: it never occurs.
    """
    counts = np.bincount(labels, minlength=num_classes)
    occurring = int(np.count_nonzero(counts))  # plain numbers, as checkpoints hold no others
    return [len(labels) / (occurring * count) if count else 0.0 for count in counts.tolist()]
