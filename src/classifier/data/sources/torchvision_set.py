"""The data sets that come with torchvision, by name."""

import inspect
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torchvision import datasets

from classifier.data.samples import SPLITS, UNASSIGNED, ImageStore, Problem, Samples
from classifier.data.sources.array_files import kept
from classifier.data.sources.array_store import ArrayStore
from classifier.data.sources.class_names import match_classes
from classifier.data.sources.torchvision_contents import Contents, contents
from classifier.data.sources.torchvision_parts import DatasetStore, Part, candidates, parameters
from classifier.errors import UserError, did_you_mean
from classifier.files import locked

log = logging.getLogger(__name__)

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
