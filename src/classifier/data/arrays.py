"""Images and labels in numpy arrays: one .npz file, or a folder of .npy files."""

import hashlib
import io
import logging
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from classifier.data.samples import SPLITS, UNASSIGNED, Problem, Samples, match_classes
from classifier.errors import UserError, did_you_mean
from classifier.files import made_once

log = logging.getLogger(__name__)


LOCAL_HEADER = 30  # bytes of a zip's member before its name
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, struct.error, NotImplementedError, RuntimeError)


@dataclass(frozen=True)
class ArrayFile:
    """Where an array lies: small to pickle, however large the array.

    Args:
        path: The file.
        offset: Where in it the numbers begin, in bytes.
        shape: Of the array.
        dtype: Of the array, as numpy's `dtype.str`.
        order: `C`, or `F` for Fortran's.
    """

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: str
    order: Literal["C", "F"]

    def open(self) -> np.ndarray:
        """Map it, for reading; nothing is read yet."""
        if 0 in self.shape:  # the system maps no empty range
            return np.zeros(self.shape, self.dtype)
        dtype: np.dtype[np.generic] = np.dtype(self.dtype)
        return np.memmap(self.path, dtype, mode="r", offset=self.offset, shape=self.shape, order=self.order)


class ArrayFiles:
    """The arrays of `root`, by name.

    An uncompressed array is mapped where it is. A compressed one is unpacked to `cache_dir` when it is first asked
    for, by one process of several, and mapped from there.

    Raises:
        UserError: `root` is missing, no zip, cut off, or has no arrays.
    """

    def __init__(self, root: Path, cache_dir: Path) -> None:
        self.root = root
        self.cache_dir = cache_dir
        self.members: dict[str, zipfile.ZipInfo] = {}
        if root.is_dir():
            self.names = sorted(path.stem for path in root.glob("*.npy"))
        else:
            self.members = {info.filename.removesuffix(".npy"): info for info in self._directory()}
            self.names = list(self.members)
        if not self.names:
            raise UserError(f"{root} has no arrays: name an .npz file, or a folder of .npy files, with data.root=...")

    def _directory(self) -> Iterable[zipfile.ZipInfo]:
        if not self.root.exists():
            raise UserError(f"{self.root} does not exist: name an .npz file or a folder of .npy files with data.root=")
        if self.root.suffix == ".npy":
            raise UserError(
                f"{self.root} is one array: use data.root={self.root.parent}, the folder of images and labels"
            )
        try:
            with zipfile.ZipFile(self.root) as archive:
                return [info for info in archive.infolist() if info.filename.endswith(".npy")]
        except (*DAMAGED, OSError) as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> UserError:
        return UserError(f"{self.root} is cut off, damaged or no .npz file ({error}): copy or save it again")

    def find(self, name: str, key: str) -> ArrayFile:
        """The array `name`.

        Args:
            key: The setting that names it, for messages.

        Raises:
            UserError: There is none, it holds Python objects, it is damaged, or there is no room to unpack it.
        """
        if name not in self.names:
            raise UserError(
                f"{self.root} has no array {name!r} but {', '.join(self.names)}: use data.{key}=..., "
                f"{did_you_mean(name, self.names)}"
            )
        if not self.members:
            return self._located(self.root / f"{name}.npy", name)
        member = self.members[name]
        try:
            if member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & 1:
                with self.root.open("rb") as file:
                    file.seek(member.header_offset)
                    header = file.read(LOCAL_HEADER)
                    lengths = struct.unpack_from("<HH", header, 26)
                return self._located(self.root, name, member.header_offset + LOCAL_HEADER + sum(lengths))
            return self._located(self._unpacked(name, member), name)
        except DAMAGED as error:
            raise self._damaged(error) from error

    def _located(self, path: Path, name: str, start: int = 0) -> ArrayFile:
        """The array whose .npy begins at byte `start` of `path`."""
        try:
            with path.open("rb") as file:
                file.seek(start)
                shape, fortran, dtype = _header(file)
                offset, length = file.tell(), file.seek(0, os.SEEK_END)
        except (OSError, ValueError) as error:
            raise UserError(f"the array {name} of {self.root} is damaged ({error}): save it again") from error
        if dtype.hasobject:
            raise UserError(
                f"the array {name} of {self.root} holds Python objects, which are not read, as they may run code: save "
                "numbers or text, as np.stack(list_of_images_of_one_size), or np.array(list_of_names, dtype=str)"
            )
        size = int(np.prod(shape, dtype=object)) * dtype.itemsize
        if length < offset + size:
            raise UserError(f"the array {name} of {self.root} is cut off ({length - offset} of {size} bytes)")
        return ArrayFile(path, offset, shape, dtype.str, "F" if fortran else "C")

    def _unpacked(self, name: str, member: zipfile.ZipInfo) -> Path:
        """The member as a file of its own, made once for this file as it is now."""
        stat = self.root.stat()
        stamp = f"{self.root.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\0{name}\0{member.CRC}"
        digest = hashlib.sha256(stamp.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        target = self.cache_dir / "arrays" / f"{self.root.stem}-{name.replace('/', '_')}-{digest}.npy"
        made_once(
            target,
            partial(self._unpack, member),
            "data.cache_dir",
            lambda path: path.stat().st_size == member.file_size,
        )
        return target

    def _unpack(self, member: zipfile.ZipInfo, target: Path) -> None:
        free = shutil.disk_usage(target.parent).free
        if member.file_size > free:
            raise OSError(f"{member.file_size / 1e9:.1f} GB are needed, and {free / 1e9:.1f} GB are free")
        log.info("unpacking %s of %s once, into %s", member.filename, self.root, target.parent)
        # zipfile compares the checksum at the end
        with zipfile.ZipFile(self.root) as archive, archive.open(member) as packed, target.open("wb") as file:
            shutil.copyfileobj(packed, file, 1 << 20)


def kept(array: np.ndarray, name: str, cache_dir: Path) -> ArrayFile:
    """`array` as a file in `cache_dir`, written once for this content by one process of several."""
    array = np.ascontiguousarray(array)
    digest = hashlib.sha256(f"{array.shape}{array.dtype.str}".encode())
    digest.update(array.data)
    target = cache_dir / "arrays" / f"{name}-{digest.hexdigest()[:16]}.npy"

    def save(scratch: Path) -> None:
        with scratch.open("wb") as file:  # to a name, numpy would add .npy
            np.save(file, array, allow_pickle=False)

    made_once(target, save, "data.cache_dir", partial(_holds, array=array))
    with target.open("rb") as file:
        _header(file)
        return ArrayFile(target, file.tell(), array.shape, array.dtype.str, "C")


def _holds(path: Path, array: np.ndarray) -> bool:
    """Whether the .npy file is as long as one of `array` is."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    return path.stat().st_size == header.tell() + array.nbytes


def _header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise ValueError(f"format {version}, which is for tables with named columns")


def read_labels(array: np.ndarray, name: str, key: str) -> np.ndarray:
    """int64 (N,), or text (N,) where the labels are names.

    Args:
        array: (N,) or (N, 1) of integers, whole fractions, bool or text; or (N, K) with a single 1 in each row.
        name: Of the array.
        key: The setting that names it.

    Raises:
        UserError: Another shape or kind, negative or fractional labels, no or several ones in a row.
    """
    other = f"name another array with data.{key}=..."
    if array.ndim not in (1, 2) or array.size == 0:
        raise UserError(
            f"the array {name} has the shape {array.shape}: labels are (N,), (N, 1) or (N, K) one-hot; {other}"
        )
    if array.ndim == 2 and array.shape[1] > 1:
        return _from_one_hot(array, name, other)
    labels = np.array(array).reshape(-1)
    if labels.dtype.kind in "US":
        return texts(labels)
    if labels.dtype.kind not in "iufb":
        raise UserError(f"the array {name} is of {labels.dtype}: labels are integers or text; {other}")
    whole = np.isfinite(labels) & (labels == np.floor(labels))
    _require(whole, labels, name, f"labels are integers; save {name}.astype(int), or {other}")
    _require(labels >= 0, labels, name, f"labels count from 0; {other}")
    return labels.astype(np.int64)


def _require(good: np.ndarray, labels: np.ndarray, name: str, remedy: str) -> None:
    if not good.all():
        row = int(np.argmin(good))
        raise UserError(f"the array {name} has the label {labels[row]} at {row}: {remedy}")


def _from_one_hot(array: np.ndarray, name: str, other: str) -> np.ndarray:
    ones = array == 1 if array.dtype.kind in "iufb" else np.zeros(array.shape, bool)
    single = (
        (ones.sum(axis=1) == 1) & (array.astype(bool).sum(axis=1) == 1) if ones.any() else np.zeros(len(array), bool)
    )
    if not single.all():
        row = int(np.argmin(single))
        raise UserError(
            f"the array {name} has the shape {array.shape}, and its row {row} is not a single 1 among zeros: labels "
            f"are (N,), (N, 1) or (N, K) one-hot; {other}"
        )
    log.info("%s: one-hot labels of %d classes", name, array.shape[1])
    classes: np.ndarray = np.argmax(array, axis=1).astype(np.int64)
    return classes


def texts(array: np.ndarray) -> np.ndarray:
    """Text (N,) of an array of anything, bytes being UTF-8.

    Raises:
        UserError: Bytes that are not.
    """
    if array.dtype.kind == "S":
        try:
            decoded: np.ndarray = np.char.decode(array, "utf-8")
            return decoded
        except UnicodeDecodeError as error:
            raise UserError(f"class names are not in UTF-8 ({error}): save them with dtype=str") from error
    as_text: np.ndarray = array.astype(str)
    return as_text


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


CACHE_DIR = "data/cache"
DEFAULT_TEST = ("X_test", "Y_test")


class ArraySource:
    """The arrays of `root`, however large: they are mapped, never loaded, and nothing in them is unpickled.

    Where the file has training arrays alone, all parts are cut from them. Labels are the names of the classes, or
    numbers, whose names are in the array `classes_key` or, without that, the numbers themselves.

    Args:
        root: An .npz file, or a folder of .npy files.
        x_train, y_train, x_val, y_val, x_test, y_test: Names of the arrays of images, see `ArrayStore`, and labels,
            see `read_labels`; None for a part that does not exist. X_test and Y_test may be absent from the file.
        classes_key: Array of class names, by number; may be absent.
        value_range: The values that become black and white, where `value_ranges` does not find them.
        cache_dir: Where compressed arrays are unpacked to, once.
    """

    def __init__(
        self,
        root: Path,
        *,
        x_train: str | None = "X_train",
        y_train: str | None = "Y_train",
        x_val: str | None = None,
        y_val: str | None = None,
        x_test: str | None = "X_test",
        y_test: str | None = "Y_test",
        classes_key: str | None = "classes",
        value_range: Sequence[float] | None = None,
        cache_dir: Path = Path(CACHE_DIR),
    ) -> None:
        self.root = root
        self.keys = {"train": (x_train, y_train), "val": (x_val, y_val), "test": (x_test, y_test)}
        for part, (images, labels) in self.keys.items():
            if (images is None) != (labels is None):
                key, other = (f"x_{part}", f"y_{part}") if images is None else (f"y_{part}", f"x_{part}")
                raise UserError(f"data.{key}=null, but data.{other} is not: name both arrays or none")
        self.classes_key = classes_key
        self.value_range = value_range
        self.cache_dir = cache_dir

    def prepare(self) -> None:
        """Nothing to make before it is read."""

    def read(self, classes: Sequence[str] | None = None) -> tuple[Samples, list[Problem]]:
        """List the images; paths are names such as `X_train/00017`.

        Raises:
            UserError: The file is missing or damaged, an array is missing or cannot be used, images and labels differ
                in number, or a class is not among the given `classes` or those of the training part.
        """
        files = ArrayFiles(self.root, self.cache_dir)
        parts = self._parts(files)
        arrays: list[ArrayFile] = []
        paths: list[str] = []
        splits: list[np.ndarray] = []
        names: list[str] = []
        listed = self._listed_classes(files)
        for part, (images, targets) in parts.items():
            array = files.find(images, f"x_{part}")
            require_images(array.shape, images, f"x_{part}")
            labels = read_labels(files.find(targets, f"y_{part}").open(), targets, f"y_{part}")
            count = array.shape[0]
            if count != len(labels):
                raise UserError(
                    f"{images} has {count} images and {targets} {len(labels)} labels: name arrays that belong "
                    f"together with data.x_{part}=... data.y_{part}=..."
                )
            names += self._names(labels, targets, listed)
            arrays.append(array)
            width = max(5, len(str(count - 1)))
            paths += [f"{images}/{number:0{width}d}" for number in range(count)]
            splits.append(np.full(count, SPLITS.index(part) if len(parts) > 1 else UNASSIGNED, np.int8))
        what = f"{self.root}: {', '.join(labels for _, labels in parts.values())} has the class"
        classes, numbers = match_classes(names, np.concatenate(splits), classes or listed, what)
        store = ArrayStore(arrays, value_ranges(arrays, [images for images, _ in parts.values()], self.value_range))
        samples = Samples.build(self.root, classes, paths, numbers, splits=np.concatenate(splits), store=store)
        return samples, []

    def _parts(self, files: ArrayFiles) -> dict[str, tuple[str, str]]:
        """The arrays of each part that there is."""
        parts = {
            part: (images, labels)
            for part, (images, labels) in self.keys.items()
            if images is not None and labels is not None
        }
        if parts.get("test") == DEFAULT_TEST and not set(DEFAULT_TEST) & set(files.names):
            del parts["test"]
            others = [name for name in files.names if name not in {self.classes_key, *sum(parts.values(), ())}]
            unused = f" (not used: {', '.join(others)})" if others else ""
            log.info("%s has no %s: the test part is cut from training%s", self.root, DEFAULT_TEST[0], unused)
        if not parts:
            raise UserError("data.x_train=null leaves no arrays: name them with data.x_train=... data.y_train=...")
        return parts

    def _listed_classes(self, files: ArrayFiles) -> list[str] | None:
        if self.classes_key is None or self.classes_key not in files.names:
            return None
        listed = files.find(self.classes_key, "classes_key").open()
        if listed.ndim != 1 or len(listed) == 0:
            raise UserError(
                f"the array {self.classes_key} has the shape {listed.shape}: class names are (K,); use "
                "data.classes_key=null, or the name of another array"
            )
        names: list[str] = texts(np.array(listed)).tolist()
        if len(set(names)) < len(names):
            raise UserError(f"the array {self.classes_key} names a class twice: use data.classes_key=null")
        return names

    def _names(self, labels: np.ndarray, key: str, listed: list[str] | None) -> list[str]:
        """The class name of each label."""
        if labels.dtype.kind == "U" or listed is None:
            return [str(label) for label in labels.tolist()]
        if labels.max() >= len(listed):
            raise UserError(
                f"the array {key} has the label {labels.max()}, but {self.classes_key} names {len(listed)} classes "
                "only: labels count from 0; use data.classes_key=null"
            )
        return [listed[label] for label in labels.tolist()]
