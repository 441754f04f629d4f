"""Images and labels in numpy arrays: one .npz file, or a folder of .npy files."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from classifier.data.samples import SPLITS, UNASSIGNED, Problem, Samples
from classifier.data.sources.array_files import ArrayFile, ArrayFiles
from classifier.data.sources.array_labels import read_labels, texts
from classifier.data.sources.array_store import ArrayStore, require_images, value_ranges
from classifier.data.sources.class_names import match_classes
from classifier.errors import UserError

log = logging.getLogger(__name__)

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
