"""What is to say about the classes and how they are divided."""

import numpy as np

from classifier.data.samples import SPLITS
from classifier.tools.check.image_remarks import Limits
from classifier.tools.check.reading import Reading, equal_ones
from classifier.tools.check.remarks import Kind, Remark


def class_counts(reading: Reading, parts: np.ndarray) -> dict[str, np.ndarray]:
    """Part -> int64 (classes,), the number of usable samples; of the parts that have any, and of `all`."""
    labels, count = reading.samples.labels[reading.usable], len(reading.samples.classes)
    taken = parts[reading.usable]
    counts = {
        name: np.bincount(labels[taken == number], minlength=count)
        for number, name in enumerate(SPLITS)
        if (taken == number).any()
    }
    return {**counts, "all": np.bincount(labels, minlength=count)}


def class_remarks(reading: Reading, parts: np.ndarray, limits: Limits) -> list[Remark]:
    """Remarks on classes that are rare or missing somewhere, and on groups that a split divides."""
    counts, classes = class_counts(reading, parts), reading.samples.classes
    every = counts.pop("all")
    remarks = []
    for name, numbers in counts.items():
        kind = Kind.UNTRAINED if name == "train" else Kind.MISSING_CLASS
        missing = np.flatnonzero(numbers == 0).tolist()
        remarks += [Remark(kind, (classes[label],), f"none in {name}") for label in missing]
    few = np.flatnonzero((every < limits.min_per_class) & (every > 0)).tolist()
    remarks += [Remark(Kind.FEW, (classes[label],), f"{every[label]} in all") for label in few]
    found = np.flatnonzero(every)
    if len(found) < 2:
        remarks.append(Remark(Kind.ONE_CLASS, tuple(classes[label] for label in found.tolist())))
    else:
        largest, smallest = int(found[every[found].argmax()]), int(found[every[found].argmin()])
        if every[largest] > limits.max_imbalance * every[smallest]:
            names = (classes[largest], classes[smallest])
            remarks.append(Remark(Kind.IMBALANCE, names, f"{every[largest]} and {every[smallest]}"))
    return remarks + _divided_groups(reading, parts)


def _divided_groups(reading: Reading, parts: np.ndarray) -> list[Remark]:
    remarks = []
    rows = reading.usable[parts[reading.usable] >= 0]
    for members in equal_ones(reading.samples.select(rows).group_ids()):
        group = rows[members]
        taken = np.unique(parts[group])
        if len(taken) > 1:
            names = tuple(reading.name(row) for row in group.tolist())
            remarks.append(Remark(Kind.DIVIDED_GROUP, names, " and ".join(SPLITS[part] for part in taken)))
    return remarks
