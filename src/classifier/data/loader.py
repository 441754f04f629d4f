"""In which order, and by which process, samples are read; and how a run returns to its place."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, SequentialSampler, default_collate

from classifier.data.image import Box, Picture, ValueRange
from classifier.data.labels import MULTI, SINGLE, members, strata
from classifier.data.samples import boxes_of, labels_of
from classifier.data.table_file import read_columns
from classifier.data.transforms import EpochAugmentation
from classifier.errors import UserError, require_choice
from classifier.seeding import seed_place

Reader = Callable[[np.ndarray], Sequence[Picture]]
"""int64 (N,), items of the table of samples -> their pictures."""

Read = Callable[[Picture, Box | None], torch.Tensor]

Key = tuple[int, int, int]
"""Epoch, position in `rows`, and how many times the epoch has drawn that position before."""


Item = dict[str, Any]
"""`image` uint8 (C, H, W), `label`, and `index`, its row in the table of samples.

A label is the number of a class, or of several labels an image float32 (K,), 1 for each of its classes.
"""

Batch = dict[str, torch.Tensor]
"""`image` uint8 (B, C, H, W), `label` int64 (B,) or float32 (B, K), `index` int64 (B,): the row in the table of
samples.
"""


def collate(items: Sequence[Item]) -> Batch:
    """Stack items into a batch, whose images are channels_last in memory."""
    # the decoder leaves an image as (H, W, C): stacked like this, it is copied in one piece
    images = default_collate([item["image"].permute(1, 2, 0) for item in items])
    numbers = {key: default_collate([item[key] for item in items]) for key in ("label", "index")}
    return {"image": images.permute(0, 3, 1, 2), **numbers}


@dataclass(frozen=True)
class Images:
    """What reading processes need of N samples, in flat buffers that they share.

    (A million paths as Python objects are copied into every worker, as their reference counts change.)

    Args:
        root: Folder that the paths are relative to.
        paths: (N,).
        labels: (N,), the numbers of the classes, as integers of any size.
        boxes: int32 (N, 4), or None for whole images.
        items: int64 (N,), what `read_images` is asked for; None where the images are files.
        value_range: As in `decode`.
        targets: uint8 (sets, K), 1 for each class of a set, where `labels` are the numbers of sets of classes.
    """

    root: Path
    paths: pa.StringArray
    labels: np.ndarray
    boxes: np.ndarray | None = None
    items: np.ndarray | None = None
    read_images: Reader | None = None
    value_range: ValueRange | None = None
    targets: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        table: pd.DataFrame,
        root: Path,
        read_images: Reader | None = None,
        value_range: ValueRange | None = None,
        task: str = SINGLE,
    ) -> "Images":
        """Those of a table of samples; `read_images` is needed where it has a column `item`."""
        paths = pa.array(table["path"])
        pa.default_memory_pool().release_unused()  # it keeps for itself what listing and splitting took
        paths = paths.combine_chunks() if isinstance(paths, pa.ChunkedArray) else paths
        items = table["item"].to_numpy(np.int64) if "item" in table else None
        targets = members(table["label"], task).toarray().astype(np.uint8) if task == MULTI else None
        labels, boxes = table["label"].cat.codes.to_numpy(), boxes_of(table)
        return cls(root, paths, labels, boxes, items, read_images, value_range, targets)

    def picture(self, row: int) -> Picture:
        """What `decode` reads."""
        if self.items is None or self.read_images is None:
            return self.root / str(self.paths[row])
        return self.read_images(self.items[row : row + 1])[0]

    def label(self, row: int) -> int | torch.Tensor:
        """As in an `Item`."""
        label = int(self.labels[row])
        return label if self.targets is None else torch.from_numpy(self.targets[label]).float()

    def box(self, row: int) -> Box | None:
        return None if self.boxes is None else tuple(self.boxes[row].tolist())


class ImageDataset(Dataset[Item]):
    """The samples at `rows`, read by `read`: a picture and its box -> uint8 (C, H, W).

    An item is asked for by `Key` in training, where all random draws are a function of (seed, epoch, row, times drawn
    before in the epoch), and by the position in `rows` alone otherwise.
    """

    def __init__(self, images: Images, rows: np.ndarray, read: Read | EpochAugmentation, seed: int = 0) -> None:
        self.images, self.rows, self.read, self.seed = images, rows.astype(np.int32), read, seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | Key) -> Item:
        epoch, position, repeat = key if isinstance(key, tuple) else (0, key, 0)
        row = int(self.rows[position])
        if isinstance(key, tuple):
            seed_place(self.seed, epoch, row, *([repeat] if repeat else []))
        read = self.read.at(epoch) if isinstance(self.read, EpochAugmentation) else self.read
        image = read(self.images.picture(row), self.images.box(row))
        return {"image": image, "label": self.images.label(row), "index": row}


def training_weights(
    table: pd.DataFrame, rows: np.ndarray, sampler: str, weights_file: str | None, task: str = SINGLE
) -> np.ndarray | None:
    """float64 (len(rows),), proportional to how often each of `rows` is drawn; None for each once an epoch.

    With several labels an image, `balanced` draws it as often as its rarest label asks for; those of none are a class.

    Raises:
        UserError: The settings do not fit, the file cannot be read, or it lacks a training image.
    """
    require_choice("data.sampler", sampler, ("shuffle", "balanced", "weighted"))
    if (sampler == "weighted") != (weights_file is not None):
        raise UserError(f"data.sampler={sampler} does not fit data.weights_file={weights_file or 'null'}: use both")
    if sampler == "balanced":
        labels = labels_of(table)[rows]
        sets = strata(table["label"], task)
        counts = sets.T @ np.bincount(labels, minlength=sets.shape[0])
        return np.asarray(sets.multiply(1 / np.maximum(counts, 1)[None]).max(axis=1).toarray()[labels])
    if weights_file is None:
        return None
    try:
        listed = read_columns(Path(weights_file), ("path", "weight")).drop_duplicates()
        weights = pd.to_numeric(listed["weight"], errors="coerce")
        bad = ~weights.between(0, np.inf, inclusive="left") | listed["path"].duplicated()
        for line, path, weight in listed[bad].itertuples():
            raise ValueError(f"line {line}: weight {weight!r} of {path} is not its one number of at least 0")
        wanted = table["path"].iloc[rows]
        found = wanted.map(weights.set_axis(listed["path"]))
        if missing := wanted[found.isna()].tolist():
            raise ValueError(f"it lacks {missing[0]} and {len(missing) - 1} more")
        if not found.any():
            raise ValueError("all training images weigh 0")
    except (OSError, ValueError) as error:
        advice = "mend it, or use data.sampler=shuffle data.weights_file=null"
        raise UserError(f"data.weights_file={weights_file} cannot be used ({error}): {advice}") from error
    return found.to_numpy(np.float64)


@dataclass(eq=False)
class EpochSampler(Sampler[list[Key]]):
    """Batches of keys of samples in an order that is a function of (seed, epoch), shared out over processes.

    The processes together take each sample once an epoch, and the same global batches whatever their number: of each
    global batch of `batch_size * world_size` samples, process `rank` takes each `world_size`-th. What is left at the
    end is shared evenly with the batch before it, so that no process is left with nothing. If the last two batches
    together hold fewer than 2 images per process, the remainder is dropped (BatchNorm needs 2; with a `batch_size` of
    1, one is enough): another remainder each epoch.

    Args:
        length: Number of training samples, at least `batch_size * world_size`.
        batch_size: Images per process and step, at most.
        drop_last: Leave out any remainder that does not fill a batch on each process.
        weights: float64 (length,), proportional to how often each sample is drawn in an epoch of `length` draws, to
            within one; None to draw each once.
        labels: int64 (length,), classes whose totals are then kept to within one, too.

    Attributes:
        bounds: Where each global batch begins in the epoch's order, and where the last one ends.
    """

    length: int
    batch_size: int
    _: KW_ONLY
    seed: int
    rank: int = 0
    world_size: int = 1
    drop_last: bool = False
    weights: np.ndarray | None = None
    labels: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.epoch = self.skip_batches = 0
        step = self.batch_size * self.world_size
        remainder = self.length % step
        self.bounds: Sequence[int] = range(0, self.length + 1, step)
        if remainder and not self.drop_last and step + remainder >= 2 * self.world_size * min(self.batch_size, 2):
            self.bounds = [*self.bounds[:-1], self.length - (step + remainder) // 2, self.length]

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    @property
    def sampler(self) -> "EpochSampler":
        """What Lightning calls `set_epoch` of, where a loader has a sampler of batches."""
        return self

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self.bounds) - 1

    def __iter__(self) -> Iterator[list[Key]]:
        order, repeats = self._order()
        for start, stop in pairwise(self.bounds[self.skip_batches :]):
            share = slice(start + self.rank, stop, self.world_size)
            pairs = zip(order[share].tolist(), repeats[share].tolist(), strict=True)
            yield [(self.epoch, position, repeat) for position, repeat in pairs]

    def _order(self) -> tuple[np.ndarray, np.ndarray]:
        """The epoch's positions, of all processes, and how many times each has come before."""
        random = np.random.default_rng((self.seed, self.epoch))
        order = random.permutation(np.arange(self.length, dtype=np.int32))
        if self.weights is None:
            return order, np.broadcast_to(np.int64(0), self.length)
        # Systematic resampling: marks at even distances on the line of all weights, laid end to end, class by class.
        # Each sample, and each class, meets floor or ceil of its expected number of marks.
        if self.labels is not None:
            order = order[np.argsort(self.labels[order], kind="stable")]
        line = np.cumsum(self.weights[order])
        marks = (np.arange(self.length) + random.random()) * (line[-1] / self.length)
        places = np.minimum(np.searchsorted(line, marks, side="right"), self.length - 1)
        repeats = np.arange(self.length) - np.searchsorted(places, places)
        shuffled = random.permutation(self.length)
        return order[places][shuffled], repeats[shuffled]


class ShardSampler(SequentialSampler):
    """Every `world_size`-th position from `rank` on, in order and without padding.

    Padding, as DistributedSampler does it, counts some images twice. (A SequentialSampler, so that Lightning knows it
    does not shuffle.)
    """

    def __init__(self, length: int, *, rank: int = 0, world_size: int = 1) -> None:
        self.positions = range(rank, length, world_size)
        super().__init__(self.positions)

    def __iter__(self) -> Iterator[int]:
        return iter(self.positions)


class Loader(DataLoader[Item]):
    """A loader whose reading processes block Ctrl-C and SIGTERM, from their first moment on.

    These may be sent to all, and the main process may need more batches to stop where it can be resumed.
    """

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_main(worker: int) -> None:
    """Have a reading process, which blocks SIGTERM, end where the main one itself sends it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))  # if it was not forked
    if hasattr(signal, "sigwaitinfo"):  # macOS does not tell who has sent a signal
        threading.Thread(target=_end_on_signal_of, args=(os.getppid(),), daemon=True).start()


def _end_on_signal_of(parent: int) -> None:
    """End on a SIGTERM from the main process, which has given up waiting."""
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(0)  # torch would report another code in whatever the main process does by then


class ResumableLoader(Loader):
    """A training loader that knows its place: a resumed epoch continues where it stopped."""

    def __init__(self, dataset: ImageDataset, sampler: EpochSampler, **settings: Any) -> None:
        super().__init__(dataset, batch_sampler=sampler, collate_fn=collate, **settings)
        self.epoch_sampler = sampler
        self._resume_at = {"epoch": -1, "batches": 0}
        # epoch, and batches handed out in it, which is not what the workers have read ahead
        self.position = {"epoch": 0, "batches": 0}

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        # A generator, so that nothing is drawn before the first batch is asked for: on resume Lightning makes the
        # iterator before it tells the sampler the epoch, and workers would start to read the wrong one.
        epoch, resumed = self.epoch_sampler.epoch, self._resume_at
        self.position = {"epoch": epoch, "batches": resumed["batches"] if resumed["epoch"] == epoch else 0}
        self._resume_at = {"epoch": -1, "batches": 0}
        self.epoch_sampler.skip_batches = self.position["batches"]
        for batch in super().__iter__():
            self.position = {"epoch": epoch, "batches": self.position["batches"] + 1}
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {**self.position, "images": self.epoch_sampler.batch_size * self.epoch_sampler.world_size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from there, if the sampler is still in that epoch when the next iteration begins.

        Raises:
            UserError: The batches have another size now, so that neither place nor schedule would fit.
        """
        size, processes, images = self.epoch_sampler.batch_size, self.epoch_sampler.world_size, state["images"]
        if size * processes != images:
            found = f"data.batch_size={size} times {processes} processes"
            hint = f"data.batch_size={max(1, images // processes)}"
            raise UserError(f"this run takes {images} images at once, not {found}: use {hint}")
        self._resume_at = self.position = {key: state[key] for key in ("epoch", "batches")}
