"""Decoded images kept on disk for many epochs."""

import hashlib
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from classifier.data.image import Box, Picture, decode, everything, unreadable, upright_size
from classifier.data.loader import Images
from classifier.data.transforms import Preprocessing
from classifier.errors import UserError, require_choice, require_whole
from classifier.files import made_once, require_outside
from classifier.parallel import parallel_map, tracked, worker_count

log = logging.getLogger(__name__)

CACHES = ("none", "disk")
FORMAT = b"pixels 1"  # 8 bytes; another number where the layout or the decoding changes


class PixelStore:
    """Images of different sizes, one after the other in a file that is mapped.

    Layout: `FORMAT`; int64 N; int64 (N, 3): offset in the pixels, height, width; uint8 pixels, (H, W, C) each.
    """

    def __init__(self, path: Path, channels: int, mode: str = "c") -> None:
        self.path = path
        self.channels = channels
        content = np.memmap(path, dtype=np.uint8, mode=mode)  # type: ignore[call-overload]
        count = int(content[8:16].view(np.int64)[0])
        self.table = content[16 : 16 + 24 * count].view(np.int64).reshape(count, 3)
        self.pixels = content[16 + 24 * count :]

    def read(self, item: int) -> np.ndarray:
        """uint8 (H, W, C), without a copy."""
        offset, height, width = self.table[item].tolist()
        pixels: np.ndarray = self.pixels[offset : offset + height * width * self.channels]
        return pixels.reshape(height, width, self.channels)

    def read_images(self, items: np.ndarray) -> Sequence[np.ndarray]:
        """The same of each of `items`."""
        return [self.read(item) for item in items.tolist()]

    def __reduce__(self) -> tuple[type["PixelStore"], tuple[Path, int]]:
        # a spawned worker maps the file instead of getting a copy
        return PixelStore, (self.path, self.channels)


def is_whole(path: Path, count: int, channels: int) -> bool:
    """Whether the file holds `count` images, and all of them."""
    start = 16 + 24 * count
    head = np.fromfile(path, dtype=np.uint8, count=start)
    if len(head) < start or head[:8].tobytes() != FORMAT or head[8:16].view(np.int64)[0] != count:
        return False
    table = head[16:].view(np.int64).reshape(count, 3)
    return path.stat().st_size == start + int(table[:, 1:].prod(1).sum()) * channels


def in_bytes(length: int) -> str:
    """A number of bytes in words."""
    return f"{length / 1e9:.1f} GB" if length >= 1e9 else f"{length / 1e6:.1f} MB"


def _reserve(path: Path, length: int) -> None:
    """A file of `length` bytes.

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
        file.truncate(length)
        if hasattr(os, "posix_fallocate"):  # a disk that fills under a mapped file kills the process
            os.posix_fallocate(file.fileno(), 0, length)


@dataclass(frozen=True)
class Form:
    """How images are kept.

    Args:
        short_side: Whole, but no larger than this, in pixels; None as `preprocessing` reads them.
    """

    preprocessing: Preprocessing
    short_side: int | None = None

    def shape(self, picture: Picture, box: Box | None) -> tuple[int, int]:
        """Height and width."""
        if self.short_side is None:
            return self.preprocessing.image_size
        width, height = upright_size(picture, box)
        scale = min(1.0, self.short_side / min(width, height))
        return max(1, round(height * scale)), max(1, round(width * scale))

    def read(self, picture: Picture, box: Box | None, shape: tuple[int, int]) -> torch.Tensor:
        """uint8 (channels, *shape)."""
        if self.short_side is None:
            return self.preprocessing(picture, box)
        interpolation, channels = self.preprocessing.interpolation, self.preprocessing.channels
        return decode(picture, box, everything, shape, interpolation=interpolation, channels=channels)

    def __str__(self) -> str:
        """Equal where the pixels are."""
        if self.short_side is None:
            return str(self.preprocessing)
        return f"{self.short_side} {self.preprocessing.interpolation} {self.preprocessing.channels}"


@dataclass(frozen=True)
class Cache:
    """Images that are decoded once, in this run or an earlier one.

    A file is found again by the paths, sizes and times of the images, their boxes and their form. It is shared by all
    processes, and takes its name only once it is whole.

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
        require_whole("data.cache_size", self.short_side, 1, otherwise=", or null")

    def for_training(self, images: Images, rows: np.ndarray, preprocessing: Preprocessing) -> Images:
        """`images` of which those at `rows` come whole, without their boxes' surroundings, for crops to be cut from."""
        return self._holding(images, rows, Form(preprocessing, self.short_side))

    def for_evaluation(self, images: Images, rows: np.ndarray, preprocessing: Preprocessing) -> Images:
        """`images` of which those at `rows` come as `preprocessing` reads them; see `stored_pixels`."""
        return self._holding(images, rows, Form(preprocessing))

    def _holding(self, images: Images, rows: np.ndarray, form: Form) -> Images:
        require_outside(self.folder, images.root, "data.cache_dir")  # a data set may take a folder for a class
        channels = form.preprocessing.channels
        path = self.folder / "pixels" / f"{images.root.resolve().name}_{_key(images, rows, form)}"
        write = partial(_write, images=images, rows=rows.tolist(), form=form)
        made_once(path, write, "data.cache_dir", partial(is_whole, count=len(rows), channels=channels))
        store = PixelStore(path, channels)
        log.info("reading %d images from %s (%s)", len(rows), path, in_bytes(path.stat().st_size))
        items = np.full(len(images.labels), -1, dtype=np.int64)
        items[rows] = np.arange(len(rows))
        return replace(images, boxes=None, items=items, read_images=store.read_images)


def _write(path: Path, images: Images, rows: Sequence[int], form: Form) -> None:
    """Decode the images at `rows`, on all cores."""
    workers, count, channels = worker_count("auto"), len(rows), form.preprocessing.channels
    shapes = list(parallel_map(lambda row: form.shape(images.picture(row), images.box(row)), rows, workers))
    table = np.array(shapes, dtype=np.int64).reshape(-1, 2)
    sizes = table.prod(1) * channels
    length = 16 + 24 * count + int(sizes.sum())
    log.info("decoding %d images into a cache of %s", count, in_bytes(length))
    _reserve(path, length)
    with path.open("r+b") as file:
        file.write(FORMAT + np.int64(count).tobytes() + np.column_stack([sizes.cumsum() - sizes, table]).tobytes())
    store = PixelStore(path, channels, mode="r+")

    def put(item: int) -> None:
        row = rows[item]
        pixels = form.read(images.picture(row), images.box(row), shapes[item])
        store.read(item)[:] = pixels.permute(1, 2, 0).numpy()

    for _ in tracked(parallel_map(put, range(count), workers), "decoding", count):
        pass


def stored_pixels(picture: Picture, box: Box | None = None) -> torch.Tensor:
    """The (H, W, C) pixels of a store as they are, uint8 (C, H, W)."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def _key(images: Images, rows: np.ndarray, form: Form) -> str:
    digest = hashlib.sha256(FORMAT + str(form).encode())
    for row in rows.tolist():
        path = images.root / str(images.paths[row])
        try:
            state = path.stat()
        except OSError as error:
            raise unreadable(path, error) from error
        digest.update(repr((str(images.paths[row]), state.st_size, state.st_mtime_ns, images.box(row))).encode())
    return digest.hexdigest()[:16]
