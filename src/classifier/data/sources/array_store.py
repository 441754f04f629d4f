"""Arrays of images -> single images as uint8, read out of mapped files."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from classifier.data.sources.array_files import ArrayFile
from classifier.errors import UserError

log = logging.getLogger(__name__)

CHUNK = 1 << 24  # numbers looked at at once
DEPTHS = (8, 10, 12, 14, 16)  # bits of cameras and scanners
LEAST = 64
ROUNDING = 0.01  # by which resized fractions leave 0 to 1
Range = tuple[float, float]


class ArrayStore:
    """An `ImageStore` over arrays that follow each other: image i is in the first that reaches so far.

    Pickled, it is the places of the arrays alone; a process opens them when it first reads.

    Args:
        arrays: Each (N, H, W), (N, H, W, C) or (N, C, H, W), C being 1 or 3.
        ranges: For each array, the values that become 0 and 255.
    """

    def __init__(self, arrays: Sequence[ArrayFile], ranges: Sequence[Range]) -> None:
        self.arrays = list(arrays)
        self.ranges = list(ranges)
        self.ends = np.cumsum([array.shape[0] for array in arrays])
        self._open: dict[int, np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def read(self, item: int) -> np.ndarray:
        """Image number `item`, uint8 (H, W) or (H, W, C); a view of the file where nothing is to be converted."""
        number = int(np.searchsorted(self.ends, item, side="right"))
        if number not in self._open:
            self._open[number] = self.arrays[number].open()
        image = np.asarray(self._open[number][item - self.ends[number]])  # counted from the end, and so below 0
        if channels_first(self.arrays[number].shape):
            image = image.transpose(1, 2, 0)
        return to_uint8(image, self.ranges[number])

    def size(self, item: int) -> tuple[int, int]:
        """Width and height, in pixels; nothing is read."""
        shape = self.arrays[int(np.searchsorted(self.ends, item, side="right"))].shape
        height, width = shape[2:] if channels_first(shape) else shape[1:3]
        return width, height


def to_uint8(image: np.ndarray, values: Range) -> np.ndarray:
    """`image` with the range `values` stretched to 0 to 255, and what lies outside of it cut."""
    if image.dtype == np.uint8 and values == (0, 255):
        return image
    low, high = values
    scaled = (image.astype(np.float64) - low) * (255 / (high - low))
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def channels_first(shape: tuple[int, ...]) -> bool:
    """Whether an array is (N, C, H, W); where it could be (N, H, W, C) as well, it is taken for that."""
    return len(shape) == 4 and shape[1] in (1, 3) and shape[3] not in (1, 3)


def require_images(shape: tuple[int, ...], name: str, key: str) -> None:
    """Raise a UserError where an array of this shape is not one of images."""
    if len(shape) not in (3, 4) or (len(shape) == 4 and not {shape[1], shape[3]} & {1, 3}):
        raise UserError(
            f"the array {name} has the shape {shape}: images are (N, H, W), (N, H, W, 3) or (N, 3, H, W), with 1 or 3 "
            f"channels. Save it so, as with {name}.reshape(...), or name another array with data.{key}=..."
        )
    if 0 in shape:
        raise UserError(f"the array {name} is empty, its shape is {shape}: name another array with data.{key}=...")


def value_ranges(arrays: Sequence[ArrayFile], names: Sequence[str], given: Sequence[float] | None) -> list[Range]:
    """For each array the values that become 0 and 255: a rule for whole arrays, never for an image.

    uint8 stays as it is, and bool is 0 and 1. Of other numbers all arrays of one kind are looked at together: integers
    have the fewest bits of 8, 10, 12, 14, 16 that hold them; fractions reach to 1, or to 255 where one is at least
    `LEAST`. (A set of photographs whose brightest pixel is darker than that has another range.)

    Args:
        given: The two values, instead of a rule.

    Raises:
        UserError: Another kind of array, or numbers that no rule fits.
    """
    if given is not None:
        if len(given) != 2 or not given[0] < given[1]:
            raise UserError(f"data.value_range={list(given)} must be two numbers, the lower one first, such as [0,1]")
        return [(float(given[0]), float(given[1]))] * len(arrays)
    ranges: dict[str, Range] = {}
    for array, name in zip(arrays, names, strict=True):
        kind = array.dtype
        if kind in ranges:
            continue
        of_kind = [(other.open(), label) for other, label in zip(arrays, names, strict=True) if other.dtype == kind]
        ranges[kind] = _rule(np.dtype(kind), of_kind, name)
        if np.dtype(kind) not in (np.uint8, np.bool_):
            low, high = ranges[kind]
            log.info(
                "%s: %s from %g to %g become 0 to 255; data.value_range=[%g,%g] fixes that", name, np.dtype(kind),
                low, high, low, high,
            )  # fmt: skip
    return [ranges[array.dtype] for array in arrays]


def _rule(dtype: np.dtype, arrays: list[tuple[np.ndarray, str]], name: str) -> Range:
    if dtype == np.uint8:
        return (0, 255)
    if dtype == np.bool_:
        return (0, 1)
    if dtype.kind not in "iuf":
        raise UserError(f"the array {name} is of {dtype}: images are of numbers, best np.uint8")
    extremes = [_extremes(array, label) for array, label in arrays]
    low, high = min(low for low, _ in extremes), max(high for _, high in extremes)
    if dtype.kind == "f" and low >= -ROUNDING and high <= 1 + ROUNDING:
        return (0, 1)
    if dtype.kind == "f" and low >= 0 and LEAST <= high <= 255:
        return (0, 255)
    if dtype.kind != "f" and low >= 0 and LEAST <= high < 1 << DEPTHS[-1]:
        return (0, next((1 << depth) - 1 for depth in DEPTHS if high < 1 << depth))
    raise UserError(
        f"the array {name} ({dtype}) has values from {low:g} to {high:g}: say which of them are black and white with "
        f"data.value_range=[{low:g},{high:g}]"
    )


def _extremes(array: np.ndarray, name: str) -> Range:
    lows, highs = zip(*((chunk.min(), chunk.max()) for chunk in _chunks(array)), strict=True)
    low, high = float(np.min(lows)), float(np.max(highs))  # NaN, where there is one
    if not np.isfinite([low, high]).all():
        raise UserError(f"the array {name} has values that are not finite (NaN or infinite): save it without")
    return low, high


def _chunks(array: np.ndarray) -> Iterator[np.ndarray]:
    step = max(1, CHUNK // max(1, int(np.prod(array.shape[1:]))))
    return (array[start : start + step] for start in range(0, len(array), step))
