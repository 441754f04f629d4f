"""Decoded pixels kept for many epochs, in one memory-mapped file or in memory."""

import hashlib
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from classifier.data.decode import Box, Picture, decode
from classifier.data.samples import Samples
from classifier.data.transforms import Preprocessing
from classifier.data.upright import everything, upright_size
from classifier.errors import UserError
from classifier.parallel import parallel_map, tracked, worker_count

log = logging.getLogger(__name__)

CACHES = ("none", "disk", "ram")
SHARED_MEMORY = Path("/dev/shm")
FORMAT = b"pixels 1"  # 8 bytes; another number where the layout or the decoding changes


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

    def __call__(self, picture: Picture, box: Box | None) -> torch.Tensor:
        shape = self.shape(*upright_size(picture, box))
        return decode(
            picture,
            box,
            everything,
            shape,
            interpolation=self.interpolation,
            channels=self.channels,
        )


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


def stored_pixels(picture: Picture, box: Box | None = None) -> torch.Tensor:
    """The (H, W, C) pixels of a store as they are, uint8 (C, H, W)."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


Form = Shrunk | Preprocessing
"""What is kept of an image."""


def cached(samples: Samples, rows: np.ndarray, form: Form, where: str, cache_dir: Path) -> Samples:
    """`samples` whose images at `rows` are read from pixels that are decoded now, or were in an earlier run.

    A file is found again by the paths, sizes and times of the images, their boxes and `form`. It is shared by all
    processes, and takes its name only once it is whole. Memory (`ram`) is shared by the workers of a process.

    Raises:
        UserError: Too little space, or an image that cannot be read.
    """
    if samples.store is not None:
        log.warning("%s needs no cache: its images are at hand decoded", samples.root)
        return samples
    if where == "disk":
        path = cache_dir / "pixels" / f"{samples.root.resolve().name}_{_key(samples, rows, form)}"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.is_file():
                scratch = Path(f"{path}.part")
                _build(samples, rows, form, lambda length: _new_file(scratch, length))
                scratch.replace(path)
        store = PixelStore(path, form.channels)
        log.info("reading %d images from %s (%s)", len(rows), path, _size(store.length))
    else:
        store = PixelStore(_build(samples, rows, form, _new_memory), form.channels)
    items = np.full(len(samples), -1, dtype=np.int64)
    items[rows] = np.arange(len(rows))
    return replace(samples, boxes=None, store=store, items=items)


def _key(samples: Samples, rows: np.ndarray, form: Form) -> str:
    digest = hashlib.sha256(FORMAT + repr((type(form).__name__, asdict(form))).encode())
    for row in rows.tolist():
        state = samples.path(row).stat()
        name = (samples.relative_path(row), state.st_size, state.st_mtime_ns, samples.box(row))
        digest.update(repr(name).encode())
    return digest.hexdigest()[:16]


def _build(samples: Samples, rows: np.ndarray, form: Form, allocate: Callable[[int], torch.Tensor]) -> torch.Tensor:
    """Decode `rows` into what `allocate` gives for a number of bytes, on all cores."""

    def shape(row: int) -> tuple[int, int]:
        if isinstance(form, Preprocessing):
            return form.image_size
        return form.shape(*upright_size(samples.path(row), samples.box(row)))

    def decode_into(item: int) -> None:
        row = int(rows[item])
        pixels = form(samples.path(row), samples.box(row))
        store.read(item)[:] = pixels.permute(1, 2, 0).numpy()

    workers = worker_count("auto")
    shapes = np.array(list(parallel_map(shape, rows.tolist(), workers)), dtype=np.int64).reshape(-1, 2)
    sizes = shapes.prod(1) * form.channels
    length = 16 + 24 * len(rows) + int(sizes.sum())
    log.info("decoding %d images into a cache of %s", len(rows), _size(length))
    memory = allocate(length)
    content = memory.numpy()
    content[:8] = np.frombuffer(FORMAT, dtype=np.uint8)
    content[8:16].view(np.int64)[0] = len(rows)
    store = PixelStore(memory, form.channels)
    store.table[:] = np.column_stack([np.cumsum(sizes) - sizes, shapes])
    for _ in tracked(parallel_map(decode_into, range(len(rows)), workers), "decoding", len(rows)):
        pass
    return memory


def _new_file(path: Path, length: int) -> torch.Tensor:
    free = shutil.disk_usage(path.parent).free
    if length > free:
        raise UserError(
            f"data.cache=disk needs {_size(length)} and {path.parent} has {_size(free)} left: use data.cache=none, a "
            "smaller data.cache_size=..., or another data.cache_dir=..."
        )
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):  # a disk that fills under a mapped file kills the process
            os.posix_fallocate(file.fileno(), 0, length)
    return torch.from_file(str(path), shared=True, size=length, dtype=torch.uint8)


def _new_memory(length: int) -> torch.Tensor:
    # where Linux keeps shared memory; containers often have 64 MB, and end the process that takes more
    if SHARED_MEMORY.is_dir() and length > (free := shutil.disk_usage(SHARED_MEMORY).free):
        raise UserError(
            f"data.cache=ram needs {_size(length)} and {SHARED_MEMORY} has {_size(free)} left: use data.cache=disk, a "
            "smaller data.cache_size=..., or a container with more (docker run --shm-size=...)"
        )
    memory: torch.Tensor = torch.empty(length, dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]
    return memory


def _size(length: int) -> str:
    return f"{length / 1e9:.1f} GB" if length >= 1e9 else f"{length / 1e6:.1f} MB"
