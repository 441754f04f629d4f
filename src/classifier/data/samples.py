"""The table of samples: what every source gives and every later step reads."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SPLITS = ("train", "val", "test")
UNASSIGNED = -1


@dataclass(frozen=True)
class Problem:
    """A file that cannot be used, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Samples:
    """N samples in flat numpy buffers, which worker processes share instead of copying.

    (A million paths as Python objects are copied into every worker as their reference counts change.)

    Args:
        root: Folder that the paths are relative to.
        classes: Class names; a label is a position in this tuple.
        path_bytes: uint8 (total length,), all paths in UTF-8, one behind the other.
        path_ends: int64 (N,), where each path ends in `path_bytes`.
        labels: int64 (N,).
        boxes: int32 (N, 4) as (x1, y1, x2, y2) in stored pixels, half-open; None where whole images are meant.
        splits: int8 (N,), position in `SPLITS` that the source itself prescribes, or `UNASSIGNED`.
    """

    root: Path
    classes: tuple[str, ...]
    path_bytes: np.ndarray
    path_ends: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray | None
    splits: np.ndarray

    @classmethod
    def build(
        cls,
        root: Path,
        classes: Sequence[str],
        paths: Sequence[str],
        labels: Sequence[int],
        *,
        boxes: Sequence[Sequence[int]] | None = None,
        splits: Sequence[int] | None = None,
    ) -> "Samples":
        """Build the table from sequences of equal length; `paths` are relative to `root`, with forward slashes."""
        # surrogateescape: a file name on Linux need not be valid UTF-8
        encoded = [path.encode("utf-8", "surrogateescape") for path in paths]
        return cls(
            root=root,
            classes=tuple(classes),
            path_bytes=np.frombuffer(b"".join(encoded), dtype=np.uint8),
            path_ends=np.cumsum([len(path) for path in encoded], dtype=np.int64),
            labels=np.asarray(labels, dtype=np.int64),
            boxes=None if boxes is None else np.asarray(boxes, dtype=np.int32).reshape(-1, 4),
            splits=np.full(len(paths), UNASSIGNED, np.int8) if splits is None else np.asarray(splits, np.int8),
        )

    def __len__(self) -> int:
        return len(self.labels)

    def relative_path(self, row: int) -> str:
        start = int(self.path_ends[row - 1]) if row else 0
        raw = self.path_bytes[start : int(self.path_ends[row])].tobytes()
        return raw.decode("utf-8", "surrogateescape")

    def path(self, row: int) -> Path:
        return self.root / self.relative_path(row)

    def box(self, row: int) -> tuple[int, int, int, int] | None:
        if self.boxes is None:
            return None
        x1, y1, x2, y2 = self.boxes[row].tolist()
        return x1, y1, x2, y2

    def select(self, rows: np.ndarray, boxes: np.ndarray | None = None) -> "Samples":
        """The table of `rows` (int64 positions) only, with other `boxes` int32 (len(rows), 4) where given."""
        if boxes is None and self.boxes is not None:
            boxes = self.boxes[rows]
        return Samples.build(
            self.root,
            self.classes,
            [self.relative_path(row) for row in rows],
            self.labels[rows],
            boxes=boxes,  # type: ignore[arg-type]
            splits=self.splits[rows],
        )

    def image_ids(self) -> np.ndarray:
        """int64 (N,): the same number for samples of the same file, so that one image is never split in two."""
        numbers: dict[str, int] = {}
        return np.array([numbers.setdefault(self.relative_path(row), len(numbers)) for row in range(len(self))])

    def fingerprint(self) -> str:
        """SHA-256 over paths, labels, boxes and class names: equal only where the data is listed the same."""
        digest = hashlib.sha256("\0".join(self.classes).encode("utf-8", "surrogateescape"))
        for array in (self.path_bytes, self.path_ends, self.labels, self.boxes):
            if array is not None:
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()
