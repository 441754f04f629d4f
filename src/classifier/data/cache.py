"""Decoded images kept for many epochs."""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from classifier.data.decode import decode
from classifier.data.picture import Box, Picture
from classifier.data.pixels import FORMAT, PixelStore, build_store, in_bytes, is_store, new_file, new_memory
from classifier.data.samples import Samples
from classifier.data.stored import unreadable
from classifier.data.transforms import Preprocessing
from classifier.data.upright import everything, upright_size
from classifier.errors import UserError, require_choice
from classifier.files import made_once, require_outside

log = logging.getLogger(__name__)

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
