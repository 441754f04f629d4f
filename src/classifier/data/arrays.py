"""Images and labels in numpy arrays: one .npz file, or a folder of .npy files."""

import hashlib
import logging
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from classifier.data import samples
from classifier.data.datamodule import ClassificationDataModule
from classifier.data.image import Picture
from classifier.errors import UserError, did_you_mean
from classifier.files import made_once

log = logging.getLogger(__name__)

DEFAULT_TEST = ("X_test", "Y_test")
ROUNDING = 0.01  # by which resized fractions leave 0 to 1
LEAST = 64  # photographs whose brightest pixel is darker than that are not taken for 0 to 255


class ArrayDataModule(ClassificationDataModule):
    """The arrays of `root`, however large: they are mapped, never loaded, and nothing in them is unpickled.

    Where the file has training arrays alone, all parts are cut from them. Labels are the names of the classes, or
    numbers, whose names are in the array `classes_key` or, without that, the numbers themselves.

    Args:
        root: An .npz file, or a folder of .npy files.
        x_train, y_train, x_val, y_val, x_test, y_test: Names of the arrays of images, (N, H, W), (N, H, W, C) or
            (N, C, H, W), C being 1 or 3, and labels, see `read_labels`; None for a part that does not exist. X_test and
            Y_test may be absent from the file.
        classes_key: Array of class names, by number; may be absent.
        value_range: The values that become black and white, where `value_range` does not find them.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        x_train: str | None = "X_train",
        y_train: str | None = "Y_train",
        x_val: str | None = None,
        y_val: str | None = None,
        x_test: str | None = "X_test",
        y_test: str | None = "Y_test",
        classes_key: str | None = "classes",
        value_range: Sequence[float] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(root, **settings)
        keys = {"train": (x_train, y_train), "val": (x_val, y_val), "test": (x_test, y_test)}
        self.keys = {part: (x, y) for part, (x, y) in keys.items() if x is not None and y is not None}
        if not self.keys or any((x is None) != (y is None) for x, y in keys.values()):
            raise UserError(f"name images and labels of a part, as data.x_train=... data.y_train=..., not {keys}")
        if value_range is not None and (len(value_range) != 2 or not value_range[0] < value_range[1]):
            raise UserError(f"data.value_range={list(value_range)} must be two numbers, the lower one first: [0,1]")
        self.classes_key = classes_key
        self.value_range = value_range

    def list_samples(self) -> pd.DataFrame:
        """List the images; paths are names such as `X_train/00017`.

        Raises:
            UserError: The file is missing or damaged, an array is missing or cannot be used, or images and labels
                differ in number.
        """
        files = ArrayFiles(self.root, self.cache_dir)
        parts = dict(self.keys)
        if parts.get("test") == DEFAULT_TEST and not set(DEFAULT_TEST) & set(files.names):
            del parts["test"]
            log.info("%s has %s, no %s: the test part is cut from training", self.root, files.names, DEFAULT_TEST[0])
        names = self._class_names(files)
        images = {x: files.open(x, f"x_{part}") for part, (x, _) in parts.items()}
        tables = []
        for part, (x, y) in parts.items():
            require_images(images[x], x, f"x_{part}")
            labels = read_labels(files.open(y, f"y_{part}"), y, f"y_{part}")
            if len(images[x]) != len(labels):
                counts = f"{x} has {len(images[x])} images, and {y} {len(labels)} labels"
                raise UserError(f"{counts}: name arrays that belong together, data.x_{part}=... data.y_{part}=...")
            if names and labels.dtype.kind == "i":
                if labels.max() >= len(names):
                    raise UserError(f"{y} has the label {labels.max()} of {len(names)}: use data.classes_key=null")
                labels = np.array(names)[labels]
            numbers = pd.Series(np.arange(len(labels))).astype("str").str.zfill(5)
            tables.append(pd.DataFrame({"path": f"{x}/" + numbers, "label": labels.astype(str), "split": part}))
        table = pd.concat(tables, ignore_index=True).astype("str")
        if names:
            samples.require_known(table["label"].unique(), names, f"{self.root} has the class")
            table["label"] = pd.Categorical(table["label"], categories=names)
        self._mapped = MappedImages([files.path(x) for x in images], value_ranges(images, self.value_range))
        return table.drop(columns="split" if len(parts) == 1 else []).assign(item=np.arange(len(table)))

    def read_images(self, items: np.ndarray) -> Sequence[Picture]:
        """uint8 (H, W) or (H, W, C); views of the file where nothing is to be converted."""
        return [self._mapped[item] for item in items]

    def _class_names(self, files: "ArrayFiles") -> list[str] | None:
        if self.classes_key not in files.names:
            return None
        listed = files.open(str(self.classes_key), "classes_key")
        names: list[str] = to_text(np.array(listed)).tolist() if listed.ndim == 1 else []
        if len(names) == 0 or len(set(names)) < len(names):
            raise UserError(f"{self.classes_key} is not (K,) class names, each once: use data.classes_key=null")
        return names


class ArrayFiles:
    """The arrays of `root`, by name. Those of an .npz file are unpacked to `cache_dir` once, when first asked for.

    Raises:
        UserError: `root` is missing, no zip, cut off, or has no arrays.
    """

    def __init__(self, root: Path, cache_dir: Path) -> None:
        self.root = root
        self.cache_dir = cache_dir
        self.members: dict[str, zipfile.ZipInfo] = {}
        if root.is_dir():
            self.names = sorted(path.stem for path in root.glob("*.npy"))
        elif not root.exists() or root.suffix == ".npy":
            what = "is one array" if root.exists() else "does not exist"
            raise UserError(f"{root} {what}: name an .npz file or a folder of .npy files with data.root=...")
        else:
            with self._undamaged(), zipfile.ZipFile(root) as archive:
                self.members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            self.names = list(self.members)
        if not self.names:
            raise UserError(f"{root} has no arrays: name an .npz file, or a folder of .npy files, with data.root=...")

    def open(self, name: str, key: str) -> np.ndarray:
        """Map the array `name`; nothing is read yet.

        Args:
            key: The setting that names it, for messages.

        Raises:
            UserError: There is none, it holds Python objects, it is damaged, or there is no room to unpack it.
        """
        if name not in self.names:
            raise UserError(f"{self.root} has no array {name!r}: use data.{key}=..., {did_you_mean(name, self.names)}")
        try:
            array: np.ndarray = np.load(self.path(name), mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            if "Python objects" in str(error):
                advice = "save it by np.stack(images_of_one_size) or np.array(names, dtype=str)"
                raise UserError(f"{name} of {self.root} holds Python objects, which may run code: {advice}") from error
            raise UserError(f"the array {name} of {self.root} is damaged ({error}): save it again") from error
        return array

    def path(self, name: str) -> Path:
        """The .npy file of the array `name`."""
        if not self.members:
            return self.root / f"{name}.npy"
        member, stat = self.members[name], self.root.stat()
        stamp = f"{self.root.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\0{name}\0{member.CRC}"
        digest = hashlib.sha256(stamp.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        target = self.cache_dir / "arrays" / f"{self.root.stem}-{name.replace('/', '_')}-{digest}.npy"
        with self._undamaged():
            made_once(target, partial(self._unpack, member), "data.cache_dir", is_whole)
        return target

    def _unpack(self, member: zipfile.ZipInfo, target: Path) -> None:
        log.info("unpacking %s of %s once, into %s", member.filename, self.root, target.parent)
        # zipfile compares the checksum at the end
        with zipfile.ZipFile(self.root) as archive, archive.open(member) as packed, target.open("wb") as file:
            shutil.copyfileobj(packed, file, 1 << 20)

    @contextmanager
    def _undamaged(self) -> Iterator[None]:
        try:
            yield
        except (OSError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"{self.root} is cut off, damaged or no .npz file ({error}): save it again") from error


def is_whole(path: Path) -> bool:
    """Whether an .npy file in the cache has all its numbers."""
    try:
        np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError):
        return False
    return True


def keep_array(array: np.ndarray, name: str, cache_dir: Path) -> Path:
    """`array` as a file in `cache_dir`, written once for this content by one process of several."""
    array = np.ascontiguousarray(array)
    digest = hashlib.sha256(f"{array.shape}{array.dtype.str}".encode())
    digest.update(array.data)
    target = cache_dir / "arrays" / f"{name}-{digest.hexdigest()[:16]}.npy"

    def save(scratch: Path) -> None:
        with scratch.open("wb") as file:  # to a name, numpy would add .npy
            np.save(file, array, allow_pickle=False)

    made_once(target, save, "data.cache_dir", is_whole)
    return target


class MappedImages:
    """The images of several .npy files, one after the other; pickled, it is their paths alone.

    Args:
        paths: Files of arrays (N, H, W), (N, H, W, C) or (N, C, H, W), C being 1 or 3.
        ranges: For each, the values that become 0 and 255.
    """

    def __init__(self, paths: Sequence[Path], ranges: Sequence[tuple[float, float]]) -> None:
        self.paths = paths
        self.ranges = ranges
        self._arrays: list[np.ndarray] = []

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_arrays": []}

    def __getitem__(self, item: int) -> np.ndarray:
        """Image number `item`, uint8 (H, W) or (H, W, C)."""
        self._arrays = self._arrays or [np.load(path, mmap_mode="r", allow_pickle=False) for path in self.paths]
        starts = np.cumsum([0, *map(len, self._arrays)])
        number = int(np.searchsorted(starts, item, side="right")) - 1
        array = self._arrays[number]
        image = np.asarray(array[item - starts[number]])
        return to_uint8(image.transpose(1, 2, 0) if channels_first(array.shape) else image, self.ranges[number])


def to_uint8(image: np.ndarray, values: tuple[float, float]) -> np.ndarray:
    """`image` with the range `values` stretched to 0 to 255, and what lies outside of it cut."""
    if image.dtype == np.uint8 and values == (0, 255):
        return image
    scaled = (image.astype(np.float64) - values[0]) * (255 / (values[1] - values[0]))
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def channels_first(shape: tuple[int, ...]) -> bool:
    """Whether an array is (N, C, H, W); where it could be (N, H, W, C) as well, it is taken for that."""
    return len(shape) == 4 and shape[1] in (1, 3) and shape[3] not in (1, 3)


def require_images(array: np.ndarray, name: str, key: str) -> None:
    """Raise a UserError where an array is not one of images."""
    shape = array.shape
    if len(shape) not in (3, 4) or (len(shape) == 4 and not {shape[1], shape[3]} & {1, 3}) or 0 in shape:
        wanted = f"images are (N, H, W), (N, H, W, 3) or (N, 3, H, W), or use another data.{key}=..."
        raise UserError(f"the array {name} has the shape {shape}: {wanted}")


def value_ranges(images: dict[str, np.ndarray], given: Sequence[float] | None) -> list[tuple[float, float]]:
    """For each array the values that become 0 and 255: one rule for all arrays of a kind, never for an image.

    uint8 stays as it is, bool is 0 and 1, uint16 reaches to 65535, fractions reach to 1, or to 255 where one is at
    least `LEAST`. Others have no rule: bits of a camera cannot be read from the numbers.

    Args:
        given: The two values, instead of a rule.

    Raises:
        UserError: Another kind of array, or numbers that no rule fits.
    """
    if given is not None:
        return [(given[0], given[1])] * len(images)
    ranges: dict[np.dtype, tuple[float, float]] = {np.dtype(np.uint8): (0, 255), np.dtype(bool): (0, 1)}
    for name, array in images.items():
        if array.dtype not in ranges:
            ranges[array.dtype] = _found_range(name, [other for other in images.values() if other.dtype == array.dtype])
    return [ranges[array.dtype] for array in images.values()]


def _found_range(name: str, arrays: list[np.ndarray]) -> tuple[float, float]:
    dtype = arrays[0].dtype
    if dtype.kind not in "iuf":
        raise UserError(f"the array {name} is of {dtype}: images are of numbers, best np.uint8")
    low, high = (float(function([function(array) for array in arrays])) for function in (np.min, np.max))
    white = 255 if low >= 0 and high <= 255 else high  # a guess for the message alone
    if dtype == np.uint16:
        white = 65535
    elif dtype.kind == "f" and low >= -ROUNDING and high <= 1 + ROUNDING:
        white = 1
    elif not (dtype.kind == "f" and low >= 0 and LEAST <= high <= 255):  # nan is not, either
        advice = f"name black and white with data.value_range=[{min(low, 0):g},{white:g}]"
        raise UserError(f"the array {name} ({dtype}) has values from {low:g} to {high:g}: {advice}")
    tell = log.warning if white > 2 * high else log.info
    tell("%s has values from %g to %g: 0 is black and %g white; or use data.value_range", name, low, high, white)
    return 0, white


def read_labels(array: np.ndarray, name: str, key: str) -> np.ndarray:
    """int64 (N,), or text (N,) where the labels are names.

    Args:
        array: (N,) or (N, 1) of integers, whole fractions, bool or text; or (N, K) with a single 1 in each row.
        name: Of the array.
        key: The setting that names it.

    Raises:
        UserError: Another shape or kind, negative or fractional labels, no or several ones in a row.
    """
    wanted = (
        f"labels are (N,) integers from 0 or text, or (N, K) with a single 1 in a row, or use another data.{key}=..."
    )
    if array.ndim not in (1, 2) or array.size == 0 or array.dtype.kind not in "iufbUS":
        raise UserError(f"the array {name} has the shape {array.shape} and {array.dtype}: {wanted}")
    labels = np.array(array) if array.ndim == 2 and array.shape[1] > 1 else np.array(array).reshape(-1)
    if labels.ndim == 1 and labels.dtype.kind in "US":
        return to_text(labels)
    if labels.ndim == 1:
        good = np.isfinite(labels) & (labels == np.floor(labels)) & (labels >= 0)
    else:
        good = (np.sort(labels, axis=1) == np.eye(labels.shape[1])[-1]).all(axis=1)
        labels = labels.argmax(axis=1)
    if not good.all():
        raise UserError(f"the array {name} has {array[np.argmin(good)]} at {np.argmin(good)}: {wanted}")
    return labels.astype(np.int64)


def to_text(array: np.ndarray) -> np.ndarray:
    """Text (N,) of an array of anything, bytes being UTF-8.

    Raises:
        UserError: Bytes that are not.
    """
    try:
        return np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array.astype(str)
    except UnicodeDecodeError as error:
        raise UserError(f"class names are not in UTF-8 ({error}): save them with dtype=str") from error
