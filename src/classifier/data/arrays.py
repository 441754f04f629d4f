"""Images and labels in numpy arrays: one .npz file, or a folder of .npy files."""

import hashlib
import logging
import shutil
import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from classifier.data import samples
from classifier.data.datamodule import ClassificationDataModule
from classifier.data.image import Picture, ValueRange, known_range, require_file
from classifier.errors import UserError, as_typed, did_you_mean
from classifier.files import made_once

log = logging.getLogger(__name__)


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
        **settings: Any,
    ) -> None:
        super().__init__(root, **settings)
        keys = {"train": (x_train, y_train), "val": (x_val, y_val), "test": (x_test, y_test)}
        self.keys = {part: (x, y) for part, (x, y) in keys.items() if x is not None and y is not None}
        if not self.keys or any((x is None) != (y is None) for x, y in keys.values()):
            raise UserError(f"name images and labels, as data.x_train=... data.y_train=..., not {as_typed(keys)}")
        self.classes_key = classes_key

    def list_samples(self) -> pd.DataFrame:
        """List the images; paths are names such as `X_train/00017`.

        Raises:
            UserError: The file is missing or damaged, an array is missing or cannot be used, or images and labels
                differ in number.
        """
        files = ArrayFiles(self.root, self.cache_dir)
        parts = dict(self.keys)
        if parts.get("test") == ("X_test", "Y_test") and not {"X_test", "Y_test"} & {*files.names}:
            log.info("%s has %s, no X_test: the test part is cut from training", self.root, files.names)
            del parts["test"]
        names = None
        if self.classes_key in files.names:
            names = files.open(str(self.classes_key), "classes_key").ravel().astype(str).tolist()
            if len(names) == 0 or len(set(names)) < len(names):
                raise UserError(f"{self.classes_key} has no names, or one twice: use data.classes_key=null")
        tables = []
        for part, (x, y) in parts.items():
            images, labels = files.open(x, f"x_{part}"), read_labels(files.open(y, f"y_{part}"), y, f"y_{part}")
            require_images(images, x, f"x_{part}", self.preprocessing.value_range)
            if len(images) != len(labels):
                counts = f"{x} has {len(images)} images, and {y} {len(labels)} labels"
                raise UserError(f"{counts}: name arrays that belong together, data.x_{part}=... data.y_{part}=...")
            if names and labels.dtype.kind == "i":
                if labels.max() >= len(names):
                    raise UserError(f"{y} has the label {labels.max()} of {len(names)}: use data.classes_key=null")
                labels = np.array(names)[labels]
            paths = f"{x}/" + pd.Series(np.arange(len(labels))).astype("str").str.zfill(5)
            tables.append(pd.DataFrame({"path": paths, "label": labels.astype(str), "split": part}, dtype="str"))
        table = pd.concat(tables, ignore_index=True)
        if names:
            samples.require_known(table["label"].unique(), names, f"{self.root} has the class")
            table["label"] = pd.Categorical(table["label"], categories=names)
        self._mapped = MappedImages([files.path(x) for x, _ in parts.values()])
        return table.drop(columns="split" if len(parts) == 1 else []).assign(item=np.arange(len(table)))

    def read_images(self, items: np.ndarray) -> Sequence[Picture]:
        """Numbers (H, W) or (H, W, C); views of the file."""
        return [self._mapped[item] for item in items]


class ArrayFiles:
    """The arrays of `root`, by name. Those of an .npz file are unpacked to `cache_dir` once, when first asked for.

    Raises:
        UserError: `root` is missing, damaged, or has no arrays.
    """

    def __init__(self, root: Path, cache_dir: Path) -> None:
        self.root = root
        self.cache_dir = cache_dir
        self.members: dict[str, zipfile.ZipInfo] = {}
        try:
            if not root.is_dir():
                require_file(root)
                with zipfile.ZipFile(root) as archive:
                    self.members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            self.names = list(self.members) or sorted(path.stem for path in root.glob("*.npy"))
            if not self.names:
                raise OSError("no array")
        except Exception as error:  # zipfile's, of any kind on damaged bytes
            what = f"{root} is no whole .npz file or folder of .npy files ({error})"
            raise UserError(f"{what}: name another with data.root=...") from error

    def open(self, name: str, key: str) -> np.ndarray:
        """Map the array `name`; nothing is read yet.

        Args:
            key: The setting that names it, for messages.

        Raises:
            UserError: There is none, it holds Python objects, is damaged or not in UTF-8, or cannot be unpacked.
        """
        if name not in self.names:
            raise UserError(f"{self.root} has no array {name!r}: use data.{key}=..., {did_you_mean(name, self.names)}")
        try:
            array: np.ndarray = np.load(self.path(name), mmap_mode="r", allow_pickle=False)
            array = np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array
            if array.dtype.kind == "U":
                "".join(array.ravel().tolist()).encode().decode()  # raises on what is no text
            return array
        except UserError:
            raise
        except Exception as error:  # numpy's, zipfile's and zlib's, of any kind on damaged bytes
            advice = "save it again, by np.stack(images_of_one_size) or np.array(names, dtype=str)"
            raise UserError(f"cannot read the array {name} of {self.root} ({error}): {advice}") from error

    def path(self, name: str) -> Path:
        """The .npy file of the array `name`."""
        if not self.members:
            return self.root / f"{name}.npy"
        member, stat = self.members[name], self.root.stat()
        stamp = f"{self.root.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\0{name}\0{member.CRC}"
        digest = hashlib.sha256(stamp.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        target = self.cache_dir / "arrays" / f"{self.root.stem}-{name.replace('/', '_')}-{digest}.npy"
        made_once(target, partial(self._unpack, member), "data.cache_dir", partial(self._is_whole, member))
        return target

    def _is_whole(self, member: zipfile.ZipInfo, path: Path) -> bool:
        """Whether what was unpacked has its size, and the header, by which its numbers are read."""
        with zipfile.ZipFile(self.root) as archive, archive.open(member) as packed, path.open("rb") as file:
            return path.stat().st_size == member.file_size and file.read(128) == packed.read(128)

    def _unpack(self, member: zipfile.ZipInfo, target: Path) -> None:
        log.info("unpacking %s of %s once, into %s", member.filename, self.root, target.parent)
        # zipfile compares the checksum at the end
        with zipfile.ZipFile(self.root) as archive, archive.open(member) as packed, target.open("wb") as file:
            shutil.copyfileobj(packed, file, 1 << 20)


def is_whole(path: Path) -> bool:
    """Whether an .npy file in the cache has all its numbers."""
    try:
        np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception:  # numpy's, of any kind on damaged bytes
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
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths
        self._arrays: list[np.ndarray] = []

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_arrays": []}

    def __getitem__(self, item: int) -> np.ndarray:
        """Image number `item`, (H, W) or (H, W, C)."""
        self._arrays = self._arrays or [np.load(path, mmap_mode="r", allow_pickle=False) for path in self.paths]
        starts = np.cumsum([0, *map(len, self._arrays)])
        number = int(np.searchsorted(starts, item, side="right")) - 1
        array = self._arrays[number]
        image = np.asarray(array[item - starts[number]])
        return image.transpose(1, 2, 0) if channels_first(array.shape) else image


def channels_first(shape: tuple[int, ...]) -> bool:
    """Whether an array is (N, C, H, W); where it could be (N, H, W, C) as well, it is taken for that."""
    return len(shape) == 4 and shape[1] in (1, 3) and shape[3] not in (1, 3)


def require_images(array: np.ndarray, name: str, key: str, value_range: ValueRange | None) -> None:
    """Raise a UserError where an array is not one of images, or says nothing of black and white."""
    shape = array.shape
    known = len(shape) == 3 or (len(shape) == 4 and {shape[1], shape[3]} & {1, 3})
    if not known or 0 in shape or array.dtype.kind not in "biuf":
        wanted = f"images are numbers (N, H, W), (N, H, W, 3) or (N, 3, H, W), or use another data.{key}=..."
        raise UserError(f"the array {name} has the shape {shape} and {array.dtype}: {wanted}")
    fixed = array.dtype in (np.uint8, np.bool_)
    if fixed and value_range is not None:
        raise UserError(f"the array {name} ({array.dtype}) keeps its values: use data.value_range=null, or save uint16")
    if not fixed and value_range is None:
        try:
            known_range(array)
        except ValueError as error:
            raise UserError(f"the array {name} has {error}") from error


def read_labels(array: np.ndarray, name: str, key: str) -> np.ndarray:
    """int64 (N,), or text (N,) where the labels are names.

    Args:
        array: (N,) or (N, 1) of integers, whole fractions, bool or text; or (N, K) with a single 1 in each row.
        name: Of the array.
        key: The setting that names it.

    Raises:
        UserError: Another shape or kind, labels that are negative, fractional or of 2**63 and more, no or several ones
            in a row.
    """
    wanted = (
        f"labels are (N,) integers from 0 or text, or (N, K) with a single 1 in a row; or name other data.{key}=..."
    )
    if array.ndim not in (1, 2) or array.size == 0 or array.dtype.kind not in "iufbUS":
        raise UserError(f"the array {name} has the shape {array.shape} and {array.dtype}: {wanted}")
    labels = array if array.ndim == 2 and array.shape[1] > 1 else array.reshape(-1)
    if labels.ndim == 1 and labels.dtype.kind in "US":
        return labels
    if labels.ndim == 1:
        with np.errstate(all="ignore"):  # of nan, of fractions and of what int64 cannot hold, another number comes out
            whole = labels.astype(np.int64)
        labels, good = whole, (whole == labels) & (whole >= 0)
    else:
        good = (np.sort(labels, axis=1) == np.eye(labels.shape[1])[-1]).all(axis=1)
        labels = labels.argmax(axis=1)
    if not good.all():
        raise UserError(f"the array {name} has {array[np.argmin(good)]} at {np.argmin(good)}: {wanted}")
    return labels
