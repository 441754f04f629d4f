"""Decoded images kept on disk for many epochs."""

import hashlib
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from classifier.data.check import stamp
from classifier.data.image import Box, Picture, upright_size
from classifier.data.loader import Images
from classifier.data.transforms import Preprocessing
from classifier.errors import UserError
from classifier.files import made_once, require_outside
from classifier.parallel import parallel_map, tracked, worker_count

log = logging.getLogger(__name__)


class PixelStore:
    """Images of different sizes in a folder, which are mapped and not loaded.

    `pixels.npy` holds the bytes of each (H, W, C), one after the other, `table.npy` where they begin, H, W, and C:
    int64 (N, 4).

    Raises:
        UserError: A file is damaged.
    """

    def __init__(self, folder: Path, mode: Literal["c", "r+"] = "c") -> None:
        self.folder = folder
        try:
            # as plain arrays: each slice of a np.memmap runs Python code of numpy's
            self.table, self.pixels = (np.asarray(np.load(folder / name, mode)) for name in ("table.npy", "pixels.npy"))
            lengths = self.table[:, 1:].prod(1)
            fits = (self.table[:, 0] == lengths.cumsum() - lengths).all() and lengths.sum() == len(self.pixels)
            if not fits or self.pixels.dtype != np.uint8:
                raise ValueError("its files do not fit each other")
        except Exception as error:  # numpy's, of any kind on damaged bytes
            raise UserError(f"the cache {folder} is damaged ({error}): remove it") from error

    def read_images(self, items: np.ndarray) -> Sequence[np.ndarray]:
        """uint8 (H, W, C) each, without a copy."""
        rows = self.table[items].tolist()
        return [self.pixels[at : at + h * w * c].reshape(h, w, c) for at, h, w, c in rows]

    def __reduce__(self) -> tuple[type["PixelStore"], tuple[Path]]:
        # a spawned worker maps the files instead of getting a copy
        return PixelStore, (self.folder,)


def is_whole(folder: Path) -> bool:
    """Whether a store has all its pixels."""
    with suppress(UserError):
        PixelStore(folder)
        return True
    return False


def cached(
    images: Images, rows: np.ndarray, preprocessing: Preprocessing, folder: Path, short_side: int | None = None
) -> Images:
    """`images` of which those at `rows` are decoded once, in this run or an earlier one; see `stored_pixels`.

    They are found again by their paths, sizes, times and boxes, and by how they are read. All processes share the
    file, which takes its name only once it is whole.

    Args:
        rows: int64 (M,).
        preprocessing: How the images are read.
        folder: Where the caches are.
        short_side: Keep whole images (or boxes), for crops to be cut from, shrunk to this short side, in pixels.

    Raises:
        UserError: It cannot be written, or an image cannot be read.
    """
    require_outside(folder, images.root, "data.cache_dir")  # a data set may take a folder for a class
    read = preprocessing
    how = f"{short_side} {read.interpolation} {read.channels} {read.value_range}" if short_side else str(read)
    digest = hashlib.sha256(b"pixels 3" + how.encode())  # another number where layout or decoding changes
    for row in rows.tolist():
        name = str(images.paths[row])
        digest.update(repr((name, *stamp(f"{images.root}/{name}"), images.box(row))).encode())
    path = folder / "pixels" / f"{images.root.resolve().name}_{digest.hexdigest()[:16]}"
    if path.exists() and not is_whole(path):
        log.warning("the cache %s is damaged, and is rebuilt", path)
    make = partial(_write, images=images, rows=rows.tolist(), preprocessing=preprocessing, short_side=short_side)
    made_once(path, make, "data.cache_dir", is_whole)
    log.info("reading %d images from %s", len(rows), path)
    items = np.full(len(images.labels), -1, dtype=np.int64)
    items[rows] = np.arange(len(rows))
    return replace(images, boxes=None, items=items, read_images=PixelStore(path).read_images)


def _write(folder: Path, images: Images, rows: list[int], preprocessing: Preprocessing, short_side: int | None) -> None:
    """Decode the images at `rows`, on all cores."""
    workers, channels = worker_count("auto"), preprocessing.channels

    def shape(row: int) -> tuple[int, int, int]:
        if short_side is None:
            return *preprocessing.image_size, channels
        width, height = upright_size(images.picture(row), images.box(row))
        scale = min(1.0, short_side / min(width, height))
        return max(1, round(height * scale)), max(1, round(width * scale)), channels

    shapes = np.array(list(parallel_map(shape, rows, workers)), dtype=np.int64)
    lengths = shapes.prod(1)
    total = int(lengths.sum())
    log.info("decoding %d images into a cache of %.1f MB", len(rows), total / 1e6)
    folder.mkdir()
    np.save(folder / "table.npy", np.column_stack([lengths.cumsum() - lengths, shapes]))
    np.lib.format.open_memmap(folder / "pixels.npy", "w+", np.uint8, (total,))
    if hasattr(os, "posix_fallocate"):  # a disk that fills under a mapped file kills the process
        with (folder / "pixels.npy").open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    store = PixelStore(folder, "r+")

    def put(item: int) -> None:
        picture, box = images.picture(rows[item]), images.box(rows[item])
        (place,) = store.read_images(np.array([item]))
        if short_side is None:
            pixels = preprocessing(picture, box)
        else:
            height, width, _ = place.shape
            pixels = preprocessing.whole(picture, box, (height, width))
        place[:] = pixels.permute(1, 2, 0).numpy()

    for _ in tracked(parallel_map(put, range(len(rows)), workers), "decoding", len(rows)):
        pass


def stored_pixels(picture: Picture, box: Box | None = None) -> torch.Tensor:
    """The (H, W, C) pixels of a store as they are, uint8 (C, H, W)."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)
