"""Decoded images kept for many epochs."""

import hashlib
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from classifier.data.image import Box, Picture, decode, everything, unreadable, upright_size
from classifier.data.samples import Samples
from classifier.data.transforms import Preprocessing
from classifier.errors import UserError, require_choice
from classifier.files import made_once, require_outside
from classifier.parallel import parallel_map, tracked, worker_count

log = logging.getLogger(__name__)


SHARED_MEMORY = Path("/dev/shm")
FORMAT = b"pixels 1"  # 8 bytes; another number where the layout or the decoding changes


class PixelStore:
    """Images of different sizes, one behind the other: an `ImageStore`.

    Layout: `FORMAT`; int64 N; int64 (N, 3): offset in the pixels, height, width; uint8 pixels, (H, W, C) each.

    Args:
        origin: The file, or shared memory uint8 (length,).
    """

    def __init__(self, origin: Path | torch.Tensor, channels: int) -> None:
        self.origin = origin
        self.channels = channels
        content = np.memmap(origin, dtype=np.uint8, mode="c") if isinstance(origin, Path) else origin.numpy()
        self.length = len(content)
        count = int(content[8:16].view(np.int64)[0])
        self.table = content[16 : 16 + 24 * count].view(np.int64).reshape(count, 3)
        self.pixels = content[16 + 24 * count :]

    def read(self, item: int) -> np.ndarray:
        """uint8 (H, W, C), without a copy."""
        offset, height, width = self.table[item].tolist()
        return self.pixels[offset : offset + height * width * self.channels].reshape(height, width, self.channels)

    def __reduce__(self) -> tuple[type["PixelStore"], tuple[Path | torch.Tensor, int]]:
        # a spawned worker maps the file, or shares the memory, instead of getting a copy
        return PixelStore, (self.origin, self.channels)


def is_store(path: Path, count: int, channels: int) -> bool:
    """Whether the file holds a store of `count` images, and all of it."""
    start = 16 + 24 * count
    head = np.fromfile(path, dtype=np.uint8, count=start)
    if len(head) < start or head[:8].tobytes() != FORMAT or head[8:16].view(np.int64)[0] != count:
        return False
    table = head[16:].view(np.int64).reshape(count, 3)
    return path.stat().st_size == start + int(table[:, 1:].prod(1).sum()) * channels


def build_store(
    count: int,
    channels: int,
    shape: Callable[[int], tuple[int, int]],
    read: Callable[[int, tuple[int, int]], torch.Tensor],
    allocate: Callable[[int], torch.Tensor],
) -> PixelStore:
    """Decode `count` images, on all cores.

    Args:
        shape: Number of an image -> its height and width, in pixels.
        read: Number of an image, and its height and width -> uint8 (channels, height, width).
        allocate: Number of bytes -> the memory to put them in, uint8 (bytes,).
    """
    workers = worker_count("auto")
    shapes = np.array(list(parallel_map(shape, range(count), workers)), dtype=np.int64).reshape(-1, 2)
    sizes = shapes.prod(1) * channels
    length = 16 + 24 * count + int(sizes.sum())
    log.info("decoding %d images into a cache of %s", count, in_bytes(length))
    memory = allocate(length)
    content = memory.numpy()
    content[:8] = np.frombuffer(FORMAT, dtype=np.uint8)
    content[8:16].view(np.int64)[0] = count
    store = PixelStore(memory, channels)
    store.table[:] = np.column_stack([np.cumsum(sizes) - sizes, shapes])

    def put(item: int) -> None:
        _, height, width = store.table[item].tolist()
        store.read(item)[:] = read(item, (height, width)).permute(1, 2, 0).numpy()

    for _ in tracked(parallel_map(put, range(count), workers), "decoding", count):
        pass
    return store


def new_file(path: Path, length: int) -> torch.Tensor:
    """A file of `length` bytes, mapped.

    Raises:
        UserError: The disk has no room for it.
    """
    free = shutil.disk_usage(path.parent).free
    if length > free:
        raise UserError(
            f"data.cache=disk needs {in_bytes(length)} and {path.parent} has {in_bytes(free)} left: use "
            "data.cache=none, a smaller data.cache_size=..., or another data.cache_dir=..."
        )
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):  # a disk that fills under a mapped file kills the process
            os.posix_fallocate(file.fileno(), 0, length)
    return torch.from_file(str(path), shared=True, size=length, dtype=torch.uint8)


def new_memory(length: int) -> torch.Tensor:
    """Memory that other processes can share.

    Raises:
        UserError: There is too little of it.
    """
    # where Linux keeps shared memory; containers often have 64 MB, and end the process that takes more
    if SHARED_MEMORY.is_dir() and length > (free := shutil.disk_usage(SHARED_MEMORY).free):
        raise UserError(
            f"data.cache=ram needs {in_bytes(length)} and {SHARED_MEMORY} has {in_bytes(free)} left: use "
            "data.cache=disk, a smaller data.cache_size=..., or a container with more (docker run --shm-size=...)"
        )
    memory: torch.Tensor = torch.empty(length, dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]
    return memory


def in_bytes(length: int) -> str:
    """A number of bytes in words."""
    return f"{length / 1e9:.1f} GB" if length >= 1e9 else f"{length / 1e6:.1f} MB"


CACHES = ("none", "disk", "ram")


@dataclass(frozen=True)
class Shrunk:
    """An image (its box) whole, but no larger than training needs.

    Args:
        short_side: In pixels; smaller images stay as they are.
        interpolation: As of `Preprocessing`.
        channels: 3 for RGB, 1 for grey.
    """

    short_side: int
    interpolation: str
    channels: int

    def shape(self, width: int, height: int) -> tuple[int, int]:
        """Height and width of what is kept of an image of this size."""
        scale = min(1.0, self.short_side / min(width, height))
        return max(1, round(height * scale)), max(1, round(width * scale))

    def __call__(self, picture: Picture, box: Box | None, shape: tuple[int, int]) -> torch.Tensor:
        """Read it at the `shape` that is kept."""
        return decode(
            picture,
            box,
            everything,
            shape,
            interpolation=self.interpolation,
            channels=self.channels,
        )


Form = Shrunk | Preprocessing
"""What is kept of an image."""


@dataclass(frozen=True)
class Cache:
    """Images that are decoded once, in this run or an earlier one.

    A file is found again by the paths, sizes and times of the images, their boxes and their form. It is shared by all
    processes, and takes its name only once it is whole. Memory is shared by the workers of a process.

    Args:
        where: One of `CACHES`.
        short_side: That training images are kept at, in pixels.
        folder: Where the files are.
    """

    where: str
    short_side: int
    folder: Path

    def __post_init__(self) -> None:
        require_choice("data.cache", self.where, CACHES)
        if self.short_side < 1:
            raise UserError(f"data.cache_size={self.short_side} must be at least 1, or null")

    def for_training(self, samples: Samples, rows: np.ndarray, preprocessing: Preprocessing) -> Samples:
        """`samples` whose images at `rows` come whole, without their boxes' surroundings, for crops to be cut from."""
        return self._holding(
            samples, rows, Shrunk(self.short_side, preprocessing.interpolation, preprocessing.channels)
        )

    def for_evaluation(self, samples: Samples, rows: np.ndarray, preprocessing: Preprocessing) -> Samples:
        """`samples` whose images at `rows` come as `preprocessing` reads them; see `stored_pixels`."""
        return self._holding(samples, rows, preprocessing)

    def _holding(self, samples: Samples, rows: np.ndarray, form: Form) -> Samples:
        def picture(item: int) -> tuple[Path, Box | None]:
            return samples.path(int(rows[item])), samples.box(int(rows[item]))

        def shape(item: int) -> tuple[int, int]:
            return form.image_size if isinstance(form, Preprocessing) else form.shape(*upright_size(*picture(item)))

        def read(item: int, shape: tuple[int, int]) -> torch.Tensor:
            return form(*picture(item)) if isinstance(form, Preprocessing) else form(*picture(item), shape)

        def build(allocate: Callable[[int], torch.Tensor]) -> PixelStore:
            return build_store(len(rows), form.channels, shape, read, allocate)

        if self.where == "ram":
            store = build(new_memory)
        else:
            # a source may take a folder in the data for a class
            require_outside(self.folder, samples.root, "data.cache_dir")
            path = self.folder / "pixels" / f"{samples.root.resolve().name}_{_key(samples, rows, form)}"
            made_once(
                path,
                lambda scratch: build(partial(new_file, scratch)),
                "data.cache_dir",
                partial(is_store, count=len(rows), channels=form.channels),
            )
            store = PixelStore(path, form.channels)
            log.info("reading %d images from %s (%s)", len(rows), path, in_bytes(store.length))
        items = np.full(len(samples), -1, dtype=np.int64)
        items[rows] = np.arange(len(rows))
        return replace(samples, boxes=None, store=store, items=items)


def stored_pixels(picture: Picture, box: Box | None = None) -> torch.Tensor:
    """The (H, W, C) pixels of a store as they are, uint8 (C, H, W)."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def _key(samples: Samples, rows: np.ndarray, form: Form) -> str:
    digest = hashlib.sha256(FORMAT + repr((type(form).__name__, asdict(form))).encode())
    for row in rows.tolist():
        try:
            state = samples.path(row).stat()
        except OSError as error:
            raise unreadable(samples.path(row), error) from error
        name = (samples.relative_path(row), state.st_size, state.st_mtime_ns, samples.box(row))
        digest.update(repr(name).encode())
    return digest.hexdigest()[:16]
