"""Which images are there twice: in one class, under two labels, or on both sides of a split."""

import logging
from collections.abc import Sequence

import numpy as np

from classifier.data.samples import SPLITS, numbered
from classifier.parallel import worker_count
from classifier.tools.check.image_facts import THUMBNAIL
from classifier.tools.check.near_duplicates import near_duplicates
from classifier.tools.check.reading import Reading, equal_ones
from classifier.tools.check.remarks import Kind, Remark

log = logging.getLogger(__name__)

MIN_SIDE = 2 * THUMBNAIL  # pixels; smaller pictures look alike without being copies


def contents_of(reading: Reading) -> np.ndarray:
    """int64 (images,): the same number for images of the same bytes, or of the same pixels out of a store."""
    # what cannot be used is remarked upon already
    return numbered(number if item.problem else item.digest for number, item in enumerate(reading.facts))


def duplicate_remarks(reading: Reading, parts: np.ndarray) -> list[Remark]:
    """Remarks on equal images.

    Args:
        parts: int8 (N,), position in `SPLITS` of each sample.
    """
    samples, remarks = reading.samples, []
    for images in equal_ones(contents_of(reading)):
        rows_of = [reading.rows_of[image] for image in images.tolist()]
        names = [samples.relative_path(int(rows[0])) for rows in rows_of]
        labels = [" + ".join(sorted({samples.classes[label] for label in samples.labels[rows]})) for rows in rows_of]
        remarks += _remarks((Kind.OTHER_CLASS, Kind.LEAK, Kind.TWICE), names, labels, parts[np.concatenate(rows_of)])
    return remarks


def near_duplicate_remarks(reading: Reading, parts: np.ndarray, most: int | None = None) -> list[Remark]:
    """Remarks on images, or the insides of boxes, that are nearly equal without being of equal files.

    Args:
        most: Of more samples than these, none are compared.
    """
    rows = reading.usable[(reading.sides[reading.usable] >= MIN_SIDE).all(axis=1)]
    if most is not None and len(rows) > most:
        log.info(
            "not looking for near duplicates among more than %s samples; near_duplicates=true does, in a time that "
            "grows with the square of their number",
            f"{most:,}",
        )
        return []
    contents = contents_of(reading)[reading.ids[rows]]
    remarks = []
    for members in near_duplicates(reading.thumbnails()[rows], contents, worker_count("auto")):
        group = rows[members]
        names = [reading.name(row) for row in group.tolist()]
        labels = [reading.samples.classes[label] for label in reading.samples.labels[group]]
        remarks += _remarks((Kind.ALIKE_OTHER_CLASS, Kind.ALIKE_LEAK, Kind.ALIKE), names, labels, parts[group])
    return remarks


def _remarks(
    kinds: tuple[Kind, Kind, Kind], names: Sequence[str], labels: Sequence[str], parts: np.ndarray
) -> list[Remark]:
    other_class, leak, inside = kinds
    found = []
    if len(set(labels)) > 1:
        found.append(Remark(other_class, tuple(names), " or ".join(sorted(set(labels)))))
    taken = np.unique(parts[parts >= 0]).tolist()
    if len(taken) > 1:
        found.append(Remark(leak, tuple(names), " and ".join(SPLITS[part] for part in taken)))
    return found or [Remark(inside, tuple(names))]
