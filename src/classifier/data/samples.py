"""Where samples come from: each source lists what is on disk as one Samples table."""

import hashlib
import math
import os
import posixpath
import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from classifier.data.image import Box
from classifier.errors import UserError, require_number

SPLITS = ("train", "val", "test")
UNASSIGNED = -1
# what they are called in folders and tables, in small or capital letters
PART_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class Problem:
    """A file that cannot be used, and why."""

    path: str
    reason: str


class ImageStore(Protocol):
    """Images that are no files of their own: an array, a packed data set, a cache of decoded pixels."""

    def read(self, item: int) -> np.ndarray | Image.Image:
        """Image number `item`: uint8 (H, W) or (H, W, C), or a Pillow image."""


@runtime_checkable
class SizedStore(ImageStore, Protocol):
    """One that knows the sizes of its images without reading them."""

    def size(self, item: int) -> tuple[int, int]:
        """Width and height, in pixels, of image number `item`."""


@dataclass(frozen=True)
class Samples:
    """N samples in flat numpy buffers, which worker processes share instead of copying.

    (A million paths as Python objects are copied into every worker as their reference counts change.)

    Args:
        root: Folder that the paths are relative to; the file that `store` reads, where there is one.
        classes: Class names; a label is a position in this tuple.
        path_bytes: uint8 (total length,), all paths in UTF-8, one behind the other.
        path_ends: int32 (N,), or int64 for paths of more than 2 GB, where each path ends in `path_bytes`.
        labels: int64 (N,).
        boxes: int32 (N, 4) as (x1, y1, x2, y2) in stored pixels, half-open; None where whole images are meant.
        splits: int8 (N,), position in `SPLITS` that the source itself prescribes, or `UNASSIGNED`.
        groups: int64 (N,), the same number for samples that must stay on one side of a split; None where only the
            boxes of one image must.
        store: Reads the images where they are no files; `path_bytes` then are mere names.
        items: int64 (N,), their numbers in `store`.
    """

    root: Path
    classes: tuple[str, ...]
    path_bytes: np.ndarray
    path_ends: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray | None
    splits: np.ndarray
    groups: np.ndarray | None = None
    store: ImageStore | None = None
    items: np.ndarray | None = None

    @classmethod
    def build(
        cls,
        root: Path,
        classes: Sequence[str],
        paths: Sequence[str],
        labels: Sequence[int] | np.ndarray,
        *,
        boxes: Sequence[Sequence[int]] | np.ndarray | None = None,
        splits: Sequence[int] | np.ndarray | None = None,
        groups: Sequence[str] | None = None,
        store: ImageStore | None = None,
    ) -> "Samples":
        """Build the table from sequences of equal length; `paths` are relative to `root`, with forward slashes.

        Args:
            groups: Names of the groups, such as a patient; an empty name is a group of its own.
            store: Reads image `i` for row `i`.
        """
        # surrogateescape: a file name on Linux need not be valid UTF-8
        encoded = [path.encode("utf-8", "surrogateescape") for path in paths]
        return cls(
            root=root,
            classes=tuple(classes),
            path_bytes=np.frombuffer(b"".join(encoded), dtype=np.uint8),
            path_ends=_ends(np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))),
            labels=np.asarray(labels, dtype=np.int64),
            boxes=None if boxes is None else np.asarray(boxes, dtype=np.int32).reshape(-1, 4),
            splits=np.full(len(paths), UNASSIGNED, np.int8) if splits is None else np.asarray(splits, np.int8),
            groups=None if groups is None else numbered(name or index for index, name in enumerate(groups)),
            store=store,
            items=None if store is None else np.arange(len(paths)),
        )

    def __len__(self) -> int:
        return len(self.labels)

    def relative_path(self, row: int) -> str:
        start = int(self.path_ends[row - 1]) if row else 0
        raw = self.path_bytes[start : int(self.path_ends[row])].tobytes()
        return raw.decode("utf-8", "surrogateescape")

    def path(self, row: int) -> Path:
        return self.root / self.relative_path(row)

    def image(self, row: int) -> Path | np.ndarray | Image.Image:
        """What `decode` reads: the file, or the pixels out of the store."""
        if self.store is None or self.items is None:
            return self.path(row)
        return self.store.read(int(self.items[row]))

    def box(self, row: int) -> tuple[int, int, int, int] | None:
        if self.boxes is None:
            return None
        x1, y1, x2, y2 = self.boxes[row].tolist()
        return x1, y1, x2, y2

    def select(self, rows: np.ndarray, boxes: np.ndarray | None = None) -> "Samples":
        """The table of `rows` (int64 positions) only, with other `boxes` int32 (len(rows), 4) where given."""
        rows = np.asarray(rows, dtype=np.int64)
        if len(rows) == len(self) and (rows == np.arange(len(self))).all():
            return self if boxes is None else replace(self, boxes=boxes)
        lengths = np.diff(self.path_ends, prepend=0)[rows]
        ends = _ends(lengths)
        # each byte of the new buffer, as a position in the old one
        shift = np.repeat(self.path_ends[rows] - ends, lengths)
        path_bytes = self.path_bytes[np.arange(len(shift)) + shift]

        def part(column: np.ndarray | None) -> np.ndarray | None:
            return None if column is None else column[rows]

        return replace(
            self,
            path_bytes=path_bytes,
            path_ends=ends,
            labels=self.labels[rows],
            boxes=part(self.boxes) if boxes is None else boxes,
            splits=self.splits[rows],
            groups=part(self.groups),
            items=part(self.items),
        )

    def image_ids(self) -> np.ndarray:
        """int64 (N,): the same number for samples of the same image, counted from 0 in the table's order."""
        return numbered(self.relative_path(row) for row in range(len(self)))

    def group_ids(self) -> np.ndarray:
        """int64 (N,): the same number for samples that must not be divided, counted from 0.

        Those are the samples of an image, and those of a group; where an image belongs to two groups, both.
        """
        images = self.image_ids()
        if self.groups is None or len(self) == 0:
            return images
        links = coo_array((np.ones(len(self)), (images, self.groups + images.max() + 1)))
        side = max(links.shape)
        links.resize(side, side)
        return numbered(connected_components(links, directed=False)[1][images].tolist())

    def fingerprint(self) -> str:
        """SHA-256 over paths, labels, boxes and class names: equal only where the data is listed the same."""
        digest = hashlib.sha256("\0".join(self.classes).encode("utf-8", "surrogateescape"))
        for array in (self.path_bytes, self.path_ends, self.labels, self.boxes):
            if array is not None:
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def numbered(names: Iterable[Hashable]) -> np.ndarray:
    """int64: a number for each name, equal for equal ones, from 0 in the order of their first coming."""
    numbers: dict[Hashable, int] = {}
    return np.fromiter((numbers.setdefault(name, len(numbers)) for name in names), dtype=np.int64)


def _ends(lengths: np.ndarray) -> np.ndarray:
    ends: np.ndarray = np.cumsum(lengths, dtype=np.int64)
    return ends if len(ends) and ends[-1] > np.iinfo(np.int32).max else ends.astype(np.int32)


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


def inside(path: str, folder: str = "", root: Path | None = None) -> str:
    """`path` below `folder`, relative to the data folder, with forward slashes and without `.` and `..`.

    Decided by the text alone: a link inside of the data folder may lead elsewhere, as its owner wished.

    Args:
        root: The data folder: a path may then be absolute, where it lies below.

    Raises:
        ValueError: It is absolute, or leads out of the data folder.
    """
    clean = path.replace("\\", "/")
    # elsewhere than on Windows a file may be called `a:b`
    drive = clean[1:2] == ":" and (clean[2:3] == "/" or os.name == "nt")
    if clean.startswith("/") or drive:
        tops = [] if root is None else [f"{top.as_posix()}/" for top in (root.absolute(), root.resolve())]
        if not (above := [top for top in tops if clean.startswith(top)]):
            raise ValueError(f"{path!r} is an absolute path" + (" elsewhere" if root else ""))
        clean = clean.removeprefix(above[0])
    elif folder:
        clean = f"{folder}/{clean}"
    if "//" in clean or "/." in clean or clean.startswith("."):
        clean = posixpath.normpath(clean)
        if clean == ".." or clean.startswith("../"):
            raise ValueError(f"{path!r} leads out of the data folder")
    return clean


def sub_folder(key: str, value: str) -> str:
    """The folder below the data folder that the setting data.`key` names, cleaned by `inside`.

    Raises:
        UserError: It leads elsewhere.
    """
    try:
        return inside(value) if value else ""
    except ValueError as error:
        raise UserError(f"data.{key}={value} must be a folder below data.root ({error})") from error


class Listing:
    """Which files exist below `root`, by one listing of each folder that is asked for instead of a look at each file.

    (A million looks over a network take minutes.)
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._names: dict[str, frozenset[str]] = {}

    def __contains__(self, path: str) -> bool:
        folder, _, name = path.rpartition("/")
        if folder not in self._names:
            try:
                with os.scandir(self.root / folder) as entries:
                    self._names[folder] = frozenset(entry.name for entry in entries)
            except (OSError, ValueError):  # ValueError: a zero byte in the name
                self._names[folder] = frozenset()
        return name in self._names[folder]


OBJECTS = ("all", "largest", "first")
FAR = 1 << 24  # pixels; keeps boxes, with any margin, in int32


class BoxedObject(NamedTuple):
    """An annotated object: its class name and its box, (x1, y1, x2, y2) in stored pixels, half-open."""

    name: str
    box: Box

    @property
    def area(self) -> int:
        return (self.box[2] - self.box[0]) * (self.box[3] - self.box[1])


def require_margin(margin: float) -> None:
    """Raise a UserError unless it can be added around a box."""
    require_number("data.margin", margin)
    if margin < 0:
        raise UserError(f"data.margin={margin} must not be negative: use data.margin=0 for the box alone")


def choose(objects: list[BoxedObject], which: str) -> list[BoxedObject]:
    """Of the objects of one image, `all`, the `largest` or the `first`."""
    if which == "largest":
        return [max(objects, key=lambda item: item.area)] if objects else []
    return objects[:1] if which == "first" else objects


def with_margin(box: Box, margin: float) -> Box:
    """`box` grown on each side by `margin` times its width or height; it may then leave the image."""
    x1, y1, x2, y2 = box
    dx, dy = round((x2 - x1) * margin), round((y2 - y1) * margin)
    return (x1 - dx, y1 - dy, x2 + dx, y2 + dy)


def covering(x1: float, y1: float, x2: float, y2: float) -> Box:
    """The smallest box of whole pixels around one of fractions.

    Raises:
        ValueError: A corner is not finite, or the box is empty.
    """
    if not all(map(math.isfinite, (x1, y1, x2, y2))):
        raise ValueError(f"the box {x1:g}, {y1:g}, {x2:g}, {y2:g} is not finite")
    if x2 <= x1 or y2 <= y1:
        raise ValueError(f"empty box: x {x1:g} to {x2:g}, y {y1:g} to {y2:g}")
    x1, y1, x2, y2 = (max(-FAR, min(FAR, edge)) for edge in (x1, y1, x2, y2))
    return math.floor(x1), math.floor(y1), math.ceil(x2), math.ceil(y2)


class Source(Protocol):
    """Where samples come from. To add one, write these two methods and a data module that passes it on."""

    root: Path

    def prepare(self) -> None:
        """Make or fetch what is missing; called once a machine, before `read`."""

    def read(self, classes: Sequence[str] | None = None) -> tuple[Samples, list[Problem]]:
        """All samples, with labels for the given class names or, without them, for the data's own."""
