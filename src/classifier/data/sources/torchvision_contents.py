"""What is in a data set of torchvision: its files or pixels, and the class of each.

They are read out of the data set's own tables, whose names differ, and are compared with what it gives for some items.
What does not agree is not used; where nothing does, items are asked for one by one.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from classifier.data.sources.array_store import channels_first
from classifier.errors import UserError

log = logging.getLogger(__name__)

PROBES = 24  # items that tables are compared with
LABELS = {
    "targets": "classes",
    "_labels": "classes",
    "labels": "classes",
    "y": "categories",
    "_bin_labels": "bin_classes",
}
PAIRS = {
    "samples": "classes",
    "_samples": "classes",
    "imgs": "classes",
    "index": "all_categories",
    "_flat_character_images": "_characters",
}
"""Tables of labels, and of pairs of a file and a label -> the table with the names of their classes."""
UNORDERED = ("Omniglot",)  # whose classes are numbered in the order of the disk
FILES = ("_image_files", "_images", "data")
BUILT_FILES: dict[str, Callable[[Any], list[Path]]] = {
    "Caltech101": lambda data: [
        Path(data.root, "101_ObjectCategories", data.categories[label], f"image_{index:04d}.jpg")
        for label, index in zip(data.y, data.index, strict=True)
    ],
    "Caltech256": lambda data: [
        Path(data.root, "256_ObjectCategories", data.categories[label], f"{label + 1:03d}_{index:04d}.jpg")
        for label, index in zip(data.y, data.index, strict=True)
    ],
    "INaturalist": lambda data: [Path(data.root, data.all_categories[label], name) for label, name in data.index],
    "Omniglot": lambda data: [
        Path(data.target_folder, data._characters[label], name) for name, label in data._flat_character_images
    ],
}
"""Data sets without a table of paths."""


@dataclass(frozen=True)
class Contents:
    """N labelled images: of files, of pixels, or of neither where the data set has to be asked for each.

    Args:
        names: The class of each image.
        classes: The names in the data set's own order; None where it numbers its classes only.
        files: Paths of the images.
        pixels: uint8 (N, H, W), (N, H, W, C) or (N, C, H, W).
    """

    names: list[str]
    classes: list[str] | None
    files: list[Path] | None = None
    pixels: np.ndarray | None = None

    def by_file(self) -> "Contents":
        """The same in the order of the files: some are listed in that of the disk, and a split follows the order."""
        assert self.files is not None
        pairs = sorted(zip(self.files, self.names, strict=True))
        return replace(self, files=[path for path, _ in pairs], names=[name for _, name in pairs])


def contents(dataset: Any, name: str) -> Contents | None:
    """Look into the data set `name`; None where it has no labels, as some have none for their test part.

    Raises:
        UserError: Its items are no pairs of a picture and a number.
    """
    probes = _probes(dataset)
    for item in probes.values():
        if isinstance(item, tuple) and len(item) == 2 and item[1] is None:
            return None
        if not (isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], Image.Image) and _whole(item[1])):
            kinds = ", ".join(type(part).__name__ for part in item) if isinstance(item, tuple) else type(item).__name__
            raise UserError(
                f"data.name={name} gives ({kinds}) instead of a picture and its class: it is no data set for "
                "classification, or is one with other data.options={...}"
            )
    labels, classes = _labels(dataset, {row: int(label) for row, (_, label) in probes.items()})
    names = [str(label) if classes is None else classes[label] for label in labels.tolist()]
    if name in UNORDERED and classes is not None:
        classes = sorted(classes)
    files = _files(dataset)
    if files is not None:
        return Contents(names, classes, files=files)
    return Contents(names, classes, pixels=_pixels(dataset, {row: picture for row, (picture, _) in probes.items()}))


def _probes(dataset: Any) -> dict[int, Any]:
    """Row -> item, of some items that can be read."""
    probes = {}
    failure: Exception | None = None
    for row in np.linspace(0, len(dataset) - 1, min(PROBES, len(dataset)), dtype=int).tolist():
        try:
            probes[row] = dataset[row]
        except Exception as error:  # a damaged file, of which the check says more
            failure = error
    if not probes:
        raise UserError(f"no item of {type(dataset).__name__} can be read ({failure or 'it is empty'})") from failure
    return probes


def _whole(label: Any) -> bool:
    return isinstance(label, (int, np.integer)) or (isinstance(label, torch.Tensor) and label.ndim == 0)


def _labels(dataset: Any, probes: dict[int, int]) -> tuple[np.ndarray, list[str] | None]:
    """int64 (N,) labels, and the names of the classes that they count."""
    for labels, names in _label_tables(dataset):
        if len(labels) == len(dataset) and all(labels[row] == label for row, label in probes.items()):
            return labels.astype(np.int64), _class_names(dataset, names, labels)
    log.info("%s: reading %d labels one by one", type(dataset).__name__, len(dataset))
    labels = np.array([int(dataset[row][1]) for row in range(len(dataset))])
    return labels, _class_names(dataset, "classes", labels)


def _label_tables(dataset: Any) -> Iterator[tuple[np.ndarray, str]]:
    """Arrays of integers (N,) that may be the labels, and the table of their names."""
    for key, names in LABELS.items():
        if isinstance(table := getattr(dataset, key, None), (list, np.ndarray, torch.Tensor)):
            labels = np.asarray(table)
            labels = labels[:, 0] if labels.ndim == 2 else labels  # QMNIST tells more of a digit
            if labels.ndim == 1 and labels.dtype.kind in "iu":
                yield labels, names
    for key, names in PAIRS.items():
        table = getattr(dataset, key, None)
        if isinstance(table, list) and table and isinstance(table[0], (tuple, list)):
            for side in (0, 1):
                if _whole(table[0][side]):
                    yield np.array([pair[side] for pair in table]), names


def _class_names(dataset: Any, key: str, labels: np.ndarray) -> list[str] | None:
    found = getattr(dataset, key, None)
    if found is None and isinstance(numbers := getattr(dataset, "class_to_idx", None), dict):
        found = sorted(numbers, key=lambda name: numbers[name])
    if labels.min() < 0 or not isinstance(found, (list, tuple)) or len(found) <= labels.max():
        return None
    names = [", ".join(name) if isinstance(name, (tuple, list)) else str(name) for name in found]  # ImageNet: synonyms
    # ImageNet has two cranes, a bird and a machine
    return [name if names.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(names)]


def _files(dataset: Any) -> list[Path] | None:
    """The paths of the images, where each is a file."""
    if builder := BUILT_FILES.get(type(dataset).__name__):
        return builder(dataset)
    for key in FILES:
        table = getattr(dataset, key, None)
        if isinstance(table, list) and len(table) == len(dataset) and isinstance(table[0], (str, Path)):
            return [Path(path) for path in table]
    for key in PAIRS:
        table = getattr(dataset, key, None)
        if isinstance(table, list) and len(table) == len(dataset) and isinstance(table[0][0], (str, Path)):
            return [Path(path) for path, _ in table]
    return None


def _pixels(dataset: Any, probes: dict[int, Image.Image]) -> np.ndarray | None:
    """The array of all images, where it agrees with the pictures."""
    table = getattr(dataset, "data", None)
    samples = getattr(dataset, "_samples", None)
    if isinstance(samples, list) and isinstance(samples[0][0], torch.Tensor):  # FER2013
        table = torch.stack([picture for picture, _ in samples])
    if not isinstance(table, (np.ndarray, torch.Tensor)):
        return None
    pixels = np.asarray(table)
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or len(pixels) != len(dataset):
        return None
    for row, picture in probes.items():
        image = pixels[row].transpose(1, 2, 0) if channels_first(pixels.shape) else pixels[row]
        if not np.array_equal(np.asarray(picture), image):
            return None
    return pixels
