"""The data sets that come with torchvision, by name."""

import inspect
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import datasets

from classifier.data.arrays import ArrayStore, channels_first, kept
from classifier.data.samples import SPLITS, UNASSIGNED, ImageStore, Problem, Samples, match_classes
from classifier.errors import UserError, did_you_mean
from classifier.files import locked

log = logging.getLogger(__name__)


SPLIT_VALUES = {"train": ("train", "trainval", "train-standard"), "val": ("val", "valid"), "test": ("test",)}
WHOLE = ("LFWPeople",)  # the people of its parts differ


@dataclass(frozen=True)
class Part:
    """A part of a data set, as arguments of its constructor; `split` is empty where parts are not told apart."""

    kind: type
    root: Path
    split: str
    arguments: dict[str, Any]

    def open(self, **more: bool) -> Any:
        root = {"root": str(self.root)} if "root" in parameters(self.kind) else {}
        return self.kind(**root, **self.arguments, **more)


@dataclass
class DatasetStore:
    """An `ImageStore` that asks the data sets; pickled, it is what they are opened with."""

    parts: list[Part]
    ends: np.ndarray
    _open: dict[int, Any] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def read(self, item: int) -> Image.Image:
        number = int(np.searchsorted(self.ends, item, side="right"))
        if number not in self._open:
            self._open[number] = self.parts[number].open()
        dataset = self._open[number]
        picture: Image.Image = dataset[len(dataset) + item - int(self.ends[number])][0]
        return picture


def candidates(kind: type, root: Path, options: dict[str, Any]) -> list[list[Part]]:
    """For each part, the ways in which the data set may name it."""
    known = parameters(kind)

    def part(split: str, key: str, value: str | bool) -> Part:
        return Part(kind, root, split, {**options, key: value})

    whole = [[Part(kind, root, "", options)]]

    if "train" in known:
        return whole if "train" in options else [[part("train", "train", True)], [part("test", "train", False)]]
    if "split" in known and "split" not in options and kind.__name__ not in WHOLE:
        return [[part(split, "split", value) for value in values] for split, values in SPLIT_VALUES.items()]
    return whole


def parameters(kind: type) -> dict[str, inspect.Parameter]:
    """What the constructor takes, with what it hands on to those of its base classes."""
    found: dict[str, inspect.Parameter] = {}
    for base in kind.__mro__:
        if "__init__" not in vars(base):
            continue
        own = inspect.signature(vars(base)["__init__"]).parameters
        named = {
            key: value for key, value in own.items() if value.kind not in (value.VAR_KEYWORD, value.VAR_POSITIONAL)
        }
        found = {**named, **found}
        if not any(value.kind == value.VAR_KEYWORD for value in own.values()):
            break
    found.pop("self", None)
    return found


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


# torchvision's data sets for classification; others are tried when they are named
NAMES = (
    "CIFAR10", "CIFAR100", "CLEVRClassification", "Caltech101", "Caltech256", "Country211", "DTD", "EMNIST", "EuroSAT",
    "FER2013", "FGVCAircraft", "FashionMNIST", "Flowers102", "Food101", "GTSRB", "INaturalist", "ImageNet",
    "Imagenette", "KMNIST", "LFWPeople", "MNIST", "Omniglot", "OxfordIIITPet", "PCAM", "Places365", "QMNIST",
    "RenderedSST2", "SEMEION", "STL10", "SUN397", "SVHN", "StanfordCars", "USPS",
)  # fmt: skip
OWN = ("self", "root", "download", "transform", "target_transform", "transforms", "loader")  # set here, or not at all


class TorchvisionSource:
    """A data set of torchvision.datasets with its official parts.

    Files are read as those of any other source, pixels are mapped from a copy in `cache_dir`, and where a data set has
    neither, it is asked for each image.

    Args:
        root: Folder of torchvision's data sets; each has its own below it.
        name: Class in torchvision.datasets.
        download: Fetch what is missing.
        options: Further arguments of the class, such as EMNIST's `split`. One that chooses a part (`train`, or `split`
            where that names parts) leaves that part alone, to be divided anew.
        cache_dir: Where pixels are kept.
    """

    def __init__(
        self,
        root: Path,
        *,
        name: str,
        download: bool = False,
        options: Mapping[str, Any] | None = None,
        cache_dir: Path = Path("data/cache"),
    ) -> None:
        kind = getattr(datasets, name, None)
        if not (isinstance(kind, type) and issubclass(kind, datasets.VisionDataset)):
            raise UserError(f"data.name={name} is no data set of torchvision: {did_you_mean(name, NAMES)}")
        self.root = root.expanduser()
        self.name = name
        self.kind = kind
        self.download = download
        self.options = dict(options or {})
        self.cache_dir = cache_dir
        self._prepared = False
        self._waiting: list[tuple[Part, Any]] = []  # what `prepare` has opened, for `read`
        self._require_options()

    def _require_options(self) -> None:
        known = parameters(self.kind)
        free = [key for key in known if key not in OWN]
        for key in self.options:
            if key not in free:
                hint = did_you_mean(key, free) if free else "it takes none"
                raise UserError(f"data.options={{{key}:...}} is no option of {self.name}: {hint}")
        for key in free:
            if known[key].default is inspect.Parameter.empty and key not in self.options:
                raise UserError(f"data.name={self.name} needs data.options={{{key}:...}}")

    def prepare(self) -> None:
        """Download what is missing, where that is wished; a second process waits for the first."""
        if not self.download or self._prepared:
            return
        if "download" not in parameters(self.kind):
            raise UserError(
                f"torchvision does not download {self.name}: use data.download=false, and {self._by_hand()}"
            )
        if self.root.is_dir() and not os.access(self.root, os.W_OK):
            self._waiting = list(self._opened())
        else:
            # before the first look: what another process is unpacking looks complete to torchvision
            with locked(self.root / ".lock", "data.root"):
                try:
                    self._waiting = list(self._opened())
                except UserError:  # something is missing
                    self._waiting = list(self._opened(download=True))
        self._prepared = True

    def read(self, classes: Sequence[str] | None = None) -> tuple[Samples, list[Problem]]:
        """List the images.

        Raises:
            UserError: The data set is missing or damaged, or not one of pictures with a class each, or a class is not
                among the given `classes` or those of the training part.
        """
        parts: list[Part] = []
        found: list[Contents] = []
        opened, self._waiting = self._waiting or self._opened(), []
        for part, dataset in opened:
            inside = contents(dataset, self.name)
            if inside is None:
                log.warning("%s has no labels for its %s part, which is left out", self.name, part.split)
            else:
                parts.append(part)
                found.append(inside)
        if not found:
            raise UserError(f"data.name={self.name} has no labels: choose another data set")
        as_files = all(
            inside.files is not None and all(path.is_relative_to(self.root) for path in inside.files)
            for inside in found
        )
        if as_files:
            found = [inside.by_file() for inside in found]
        numbers = [SPLITS.index(part.split) if part.split and len(parts) > 1 else UNASSIGNED for part in parts]
        sizes = [len(inside.names) for inside in found]
        splits = np.repeat(np.array(numbers, dtype=np.int8), sizes)
        names = [name for inside in found for name in inside.names]
        classes = classes or found[0].classes
        classes, labels = match_classes(names, splits, classes, f"{self.name} has the class")
        if as_files:
            files = [path.relative_to(self.root).as_posix() for inside in found for path in inside.files or ()]
            return Samples.build(self.root, classes, files, labels, splits=splits), []
        rows = [(part.split or "all", row) for part, size in zip(parts, sizes, strict=True) for row in range(size)]
        store = self._store(parts, found, np.cumsum(sizes))
        paths = [f"{split}/{row:05d}" for split, row in rows]
        return Samples.build(self.root, classes, paths, labels, splits=splits, store=store), []

    def _store(self, parts: list[Part], found: list[Contents], ends: np.ndarray) -> ImageStore:
        arrays = [
            kept(inside.pixels, f"{self.name}-{part.split or 'all'}", self.cache_dir)
            for part, inside in zip(parts, found, strict=True)
            if inside.pixels is not None
        ]
        return ArrayStore(arrays, [(0, 255)] * len(arrays)) if len(arrays) == len(parts) else DatasetStore(parts, ends)

    def _opened(self, download: bool = False) -> Iterator[tuple[Part, Any]]:
        """Each part that the data set has, opened."""
        more = {"download": download} if "download" in parameters(self.kind) else {}
        opened = False
        for ways in candidates(self.kind, self.root, self.options):
            for part in ways:
                try:
                    dataset = part.open(**more)
                except Exception as error:  # each has its own kinds for what is missing or damaged
                    if part.split and isinstance(error, ValueError) and "for argument split" in str(error):
                        continue  # no such part
                    raise self._unusable(part, download, error) from error
                opened = True
                yield part, dataset
                break
        if not opened:
            raise UserError(f"data.name={self.name} has no part that is known here: choose one with data.options")

    def _unusable(self, part: Part, download: bool, error: Exception) -> UserError:
        text = str(error).partition("You can use download=True")[0]
        reason = " ".join(text.split()).rstrip(".") or type(error).__name__
        what = f"the {part.split} part of {self.name}" if part.split else self.name
        if download:
            return UserError(f"cannot download {what} ({reason}): try again, or {self._by_hand()}")
        remedy = "use data.download=true, or " if "download" in parameters(self.kind) and not self.download else ""
        return UserError(f"cannot open {what} in {self.root} ({reason}): {remedy}{self._by_hand()}")

    def _by_hand(self) -> str:
        page = f"https://docs.pytorch.org/vision/stable/generated/torchvision.datasets.{self.name}.html"
        return f"put its files below data.root={self.root} as {page} says"
