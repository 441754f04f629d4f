"""Images of different sizes in one file or one piece of memory, decoded on all cores."""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from classifier.errors import UserError
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
