"""All images of a table, each read once to its end."""

import warnings
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
from PIL import Image

from classifier.data.samples import Samples
from classifier.parallel import parallel_map, tracked, worker_count
from classifier.tools.check.image_facts import Facts, facts_of

CHUNK = 32  # images a task


@dataclass(frozen=True)
class Reading:
    """A table and what is in its images.

    Args:
        ids: int64 (N,), the number of each sample's image.
        rows_of: Of each image, by that number, the int64 rows of its samples.
        facts: Of each image.
    """

    samples: Samples
    ids: np.ndarray
    rows_of: list[np.ndarray]
    facts: list[Facts]

    @cached_property
    def sizes(self) -> np.ndarray:
        """int64 (N, 2): width and height of each sample's image, in pixels; 0 where it cannot be used."""
        sizes = [(0, 0) if item.problem else (item.width, item.height) for item in self.facts]
        of_samples: np.ndarray = np.array(sizes, dtype=np.int64).reshape(-1, 2)[self.ids]
        return of_samples

    @cached_property
    def boxes(self) -> np.ndarray:
        """int64 (N, 4): the part of each box that lies in the image, or all of the image."""
        whole = np.concatenate([np.zeros_like(self.sizes), self.sizes], axis=1)
        return whole if self.samples.boxes is None else np.clip(self.samples.boxes, 0, np.tile(self.sizes, 2))

    @cached_property
    def sides(self) -> np.ndarray:
        """int64 (N, 2): width and height of these, in pixels; not positive where nothing is left."""
        sides: np.ndarray = self.boxes[:, 2:] - self.boxes[:, :2]
        return sides

    @cached_property
    def usable(self) -> np.ndarray:
        """int64 rows that training would accept."""
        return np.flatnonzero((self.sides > 0).all(axis=1))

    def thumbnails(self) -> np.ndarray:
        """uint8 (N, 16, 16), grey; black where there is none."""
        side = self.facts[0].thumbnails.shape[-1] if self.facts else 0
        thumbnails = np.zeros((len(self.ids), side, side), dtype=np.uint8)
        for rows, item in zip(self.rows_of, self.facts, strict=True):
            if item.problem is None:
                thumbnails[rows] = item.thumbnails
        return thumbnails

    def name(self, row: int) -> str:
        """Path of a sample, with its box where it has one."""
        box = self.samples.box(row)
        return self.samples.relative_path(row) + ("" if box is None else f" {box}")


def read_all(samples: Samples) -> Reading:
    """Read every image, on all cores."""
    ids = samples.image_ids()
    rows_of = members(ids)
    boxes = samples.boxes

    def read(chunk: list[np.ndarray]) -> list[Facts]:
        return [facts_of(samples.image(int(rows[0])), None if boxes is None else boxes[rows]) for rows in chunk]

    chunks = [rows_of[start : start + CHUNK] for start in range(0, len(rows_of), CHUNK)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # such images are remarked upon
        found = chain.from_iterable(parallel_map(read, chunks, worker_count("auto")))
        facts = list(tracked(found, "reading", len(rows_of)))
    return Reading(samples, ids, rows_of, facts)


def members(numbers: np.ndarray) -> list[np.ndarray]:
    """int64 positions of each value in `numbers` (N,), by value."""
    order = np.argsort(numbers, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1) if len(order) else []


def equal_ones(numbers: np.ndarray) -> list[np.ndarray]:
    """int64 positions of each value that `numbers` (N,) has more than once, in the order of their first ones."""
    return sorted((group for group in members(numbers) if len(group) > 1), key=lambda group: int(group[0]))
