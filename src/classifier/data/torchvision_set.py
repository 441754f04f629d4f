"""The data sets that come with torchvision, by name."""

import inspect
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.data import ConcatDataset
from torchvision import datasets

from classifier.data.arrays import MappedImages, channels_first, keep_array
from classifier.data.datamodule import ClassificationDataModule
from classifier.data.image import Picture
from classifier.data.samples import list_paths, mark, require_known, usable
from classifier.errors import UserError, did_you_mean
from classifier.files import locked

log = logging.getLogger(__name__)

SPLIT_VALUES = {"train": ("train", "trainval", "train-standard"), "val": ("val", "valid"), "test": ("test",)}
WHOLE = ("LFWPeople",)  # the people of its parts differ
OWN = ("root", "download", "transform", "target_transform", "transforms", "loader")  # set here, or not at all
PROBES = 24  # items that tables are compared with


class TorchvisionDataModule(ClassificationDataModule):
    """A data set of torchvision.datasets with its official parts.

    Files are read as those of any other data set, pixels are mapped from a copy in `cache_dir`, and where a data set
    has neither, it is asked for each image.

    Args:
        root: Folder of torchvision's data sets; each has its own below it.
        name: Class in torchvision.datasets.
        download: Fetch what is missing.
        options: Further arguments of the class, such as EMNIST's `split`. One that chooses a part (`train`, or `split`
            where that names parts) leaves that part alone, to be divided anew.
    """

    def __init__(
        self,
        root: str | Path = "data/torchvision",
        *,
        name: str,
        download: bool = False,
        options: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(root, **settings)
        kind = getattr(datasets, name, None)
        if not (isinstance(kind, type) and issubclass(kind, datasets.VisionDataset)):
            known = [key for key, value in vars(datasets).items() if isinstance(value, type)]
            raise UserError(f"data.name={name} is no data set of torchvision: {did_you_mean(name, known)}")
        self.name = name
        self.kind = kind
        self.download = download
        self.options = dict(options or {})
        self._parts: dict[str, Any] = {}  # name of a part -> its data set
        self._mapped: MappedImages | None = None
        self.known = parameters(kind)
        free = [key for key in self.known if key not in OWN]
        for key in self.options:
            if key not in free:
                hint = did_you_mean(key, free) if free else "it takes none"
                raise UserError(f"data.options={{{key}:...}} is no option of {name}: {hint}")
        for key in free:
            if self.known[key].default is inspect.Parameter.empty and key not in self.options:
                raise UserError(f"data.name={name} needs data.options={{{key}:...}}")

    def prepare_data(self) -> None:
        """Download what is missing, where that is wished; a second process waits for the first."""
        if not self.download or self._parts:
            return
        if "download" not in self.known:
            raise UserError(f"torchvision has no download of {self.name}: use data.download=false, {self._by_hand()}")
        read_only = self.root.is_dir() and not os.access(self.root, os.W_OK)
        # before the first look: what another process is unpacking looks complete to torchvision
        with nullcontext() if read_only else locked(self.root / ".lock", "data.root"):
            try:
                self._parts = self._open()
            except UserError:  # something is missing
                self._parts = self._open(download=True)

    def list_samples(self) -> pd.DataFrame:
        """List the images; where they are not files, paths are names such as `train/00017`.

        Raises:
            UserError: The data set is missing or damaged, or not one of pictures with a class each.
        """
        self._parts = self._parts or self._open()
        tables: dict[str, pd.DataFrame] = {}
        for part, dataset in list(self._parts.items()):
            table = list_items(dataset, self.name)
            if table is None:
                log.warning("%s has no labels for its %s part, which is left out", self.name, part)
                del self._parts[part]
            else:
                tables[part] = table
        if not tables:
            raise UserError(f"data.name={self.name} has no labels: choose another data set")
        items = pd.concat(tables, names=["split", "row"]).reset_index()
        table = self._table(items, class_names(next(iter(self._parts.values())), self.options))
        if len(tables) > 1:
            table["split"] = items["split"].astype("str")
        files = [Path(file) for file in items["file"] if file]
        if len(files) == len(items) and all(file.is_relative_to(self.root) for file in files):
            listed = list_paths([file.relative_to(self.root).as_posix() for file in files], table["label"])
            # not in the order of the disk, in which some are listed: a split follows the order
            order = np.lexsort([listed["path"], items["split"].map(list(tables).index)])
            return table.assign(**listed).iloc[order].reset_index(drop=True)
        pixels = {part: public_pixels(dataset) for part, dataset in self._parts.items()}
        kept = [
            keep_array(array, f"{self.name}-{part or 'all'}", self.cache_dir)
            for part, array in pixels.items()
            if array is not None
        ]
        if len(kept) == len(pixels):
            self._mapped, self._parts = MappedImages(kept, [(0, 255)] * len(kept)), {}
        return table.assign(item=np.arange(len(table)))

    def _table(self, items: pd.DataFrame, classes: list[str] | None) -> pd.DataFrame:
        """The table of samples, with the names of classes."""
        numbers, good = items["number"], items["problem"].isna()
        names = numbers.astype("str")
        if classes is not None and numbers[good].min() >= 0 and numbers.max() < len(classes):
            names = pd.Categorical.from_codes(numbers, categories=classes)
        elif (items["file"] != "").all():  # a data set may number its classes in the order of the disk
            folders = items["file"].map(os.path.dirname)
            top = os.path.commonpath([*folders.unique()])
            pairs = pd.DataFrame({"number": numbers, "folder": folders.map(lambda folder: os.path.relpath(folder, top))})
            distinct = pairs.drop_duplicates()
            if len(distinct) == distinct["number"].nunique() == distinct["folder"].nunique():
                names = pairs["folder"]
        paths = items["split"].where(items["split"] != "", "all") + "/" + items["row"].astype("str").str.zfill(5)
        table = pd.DataFrame({"path": paths, "label": names})
        return mark(table, ~good, items["problem"])

    def read_images(self, items: np.ndarray) -> Sequence[Picture]:
        """What the data set gives, or uint8 (H, W) or (H, W, C) out of its array."""
        if self._mapped is not None:
            return [self._mapped[item] for item in items]
        chain = ConcatDataset(self._parts.values())
        pictures = [chain[int(item)][0] for item in items]
        return [Path(picture) if isinstance(picture, str) else picture for picture in pictures]

    def _ways(self) -> dict[str, list[dict[str, Any]]]:
        """Part -> the arguments by which the data set may name it; one nameless part where there is no choice."""
        if "train" in self.known:
            return {"": [{}]} if "train" in self.options else {"train": [{"train": True}], "test": [{"train": False}]}
        if "split" in self.known and "split" not in self.options and self.name not in WHOLE:
            return {part: [{"split": value} for value in values] for part, values in SPLIT_VALUES.items()}
        return {"": [{}]}

    def _open(self, download: bool = False) -> dict[str, Any]:
        """Each part that the data set has."""
        common = {"root": str(self.root), "download": download, "loader": as_path}
        common = {key: value for key, value in common.items() if key in self.known} | self.options
        opened: dict[str, Any] = {}
        for part, ways in self._ways().items():
            for arguments in ways:
                try:
                    opened[part] = self.kind(**common, **arguments)
                except Exception as error:  # each has its own kinds for what is missing or damaged
                    if part and isinstance(error, ValueError) and "for argument split" in str(error):
                        continue  # no such part
                    raise self._unusable(part, download, error) from error
                break
        if not opened:
            raise UserError(f"data.name={self.name} has no part that is known here: choose one with data.options")
        return opened

    def _unusable(self, part: str, download: bool, error: Exception) -> UserError:
        text = str(error).partition("You can use download=True")[0]
        reason = " ".join(text.split()).rstrip(".") or type(error).__name__
        what = f"the {part} part of {self.name}" if part else self.name
        if download:
            return UserError(f"cannot download {what} ({reason}): try again, or {self._by_hand()}")
        remedy = "use data.download=true, or " if "download" in self.known and not self.download else ""
        return UserError(f"cannot open {what} in {self.root} ({reason}): {remedy}{self._by_hand()}")

    def _by_hand(self) -> str:
        page = f"https://docs.pytorch.org/vision/stable/generated/torchvision.datasets.{self.name}.html"
        return f"put its files below data.root={self.root} as {page} says"


def parameters(kind: type) -> dict[str, inspect.Parameter]:
    """What the constructor takes, with what it hands on to those of its base classes."""
    found: dict[str, inspect.Parameter] = {}
    for base in (base for base in kind.__mro__ if "__init__" in vars(base)):
        own = inspect.signature(vars(base)["__init__"]).parameters.values()
        found = {item.name: item for item in own if item.kind not in (item.VAR_KEYWORD, item.VAR_POSITIONAL)} | found
        if not any(item.kind == item.VAR_KEYWORD for item in own):
            break
    del found["self"]
    return found


def as_path(path: str | Path) -> str:
    """A `loader` of torchvision's data sets: an item then tells its file, which is not decoded."""
    return str(path)


def file_of(picture: Any) -> str:
    """The file that a picture lies in, where it is not decoded yet; else nothing."""
    return picture if isinstance(picture, str) else str(getattr(picture, "filename", ""))


def probe(dataset: Any) -> dict[int, Any]:
    """Row -> item, of some items that can be read: what is compared with the public tables of a data set."""
    found = {}
    failure: Exception | None = None
    for row in np.linspace(0, len(dataset) - 1, min(PROBES, len(dataset)), dtype=int).tolist():
        try:
            found[row] = dataset[row]
        except Exception as error:  # a damaged file, which the check says more of
            failure = error
    if not found:
        raise UserError(f"no item of {type(dataset).__name__} can be read ({failure or 'it is empty'})") from failure
    return found


def list_items(dataset: Any, name: str) -> pd.DataFrame | None:
    """The items of a data set: number of the class, file (or nothing) and problem; None where they have no label.

    Raises:
        UserError: They are not pairs of a picture and a number.
    """
    probes = probe(dataset)
    for item in probes.values():
        if isinstance(item, tuple) and len(item) == 2 and item[1] is None:
            return None
        pair = isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], (str, Image.Image))
        if not pair or not isinstance(item[1], (int, np.integer, torch.Tensor)) or np.ndim(item[1]):
            kinds = ", ".join(type(part).__name__ for part in item) if isinstance(item, tuple) else type(item).__name__
            raise UserError(
                f"data.name={name} gives ({kinds}) instead of a picture and its class: it is no data set for "
                "classification, or is one with other data.options={...}"
            )
    labels = public_labels(dataset, probes)
    if labels is not None and not any(file_of(picture) for picture, _ in probes.values()):
        return pd.DataFrame({"number": labels, "file": "", "problem": None})
    log.info("%s: listing %d items one by one", name, len(dataset))
    rows: list[tuple[int, str, str | None]] = []
    for row in range(len(dataset)):
        try:
            picture, label = dataset[row]
            rows.append((int(label), file_of(picture), None))
        except Exception as error:  # torchvision's and Pillow's, of any kind
            rows.append((-1, "", f"cannot be read ({error})"))
    return pd.DataFrame(rows, columns=["number", "file", "problem"])


def public_labels(dataset: Any, probes: dict[int, Any]) -> np.ndarray | None:
    """int64 (N,), where the data set has such a table, and it agrees with the items."""
    for key in ("targets", "labels"):
        table = getattr(dataset, key, None)
        if isinstance(table, (list, np.ndarray, torch.Tensor)) and len(table) == len(dataset):
            labels = np.asarray(table)
            if labels.ndim == 1 and all(labels[row] == int(label) for row, (_, label) in probes.items()):
                return labels.astype(np.int64)
    return None


def public_pixels(dataset: Any) -> np.ndarray | None:
    """uint8 (N, H, W), (N, H, W, C) or (N, C, H, W), where the data set has such a table, and it agrees with the items."""
    table = getattr(dataset, "data", None)
    if not isinstance(table, (np.ndarray, torch.Tensor)) or len(table) != len(dataset):
        return None
    pixels = np.asarray(table)
    order = (1, 2, 0) if channels_first(pixels.shape) else range(pixels.ndim - 1)
    agrees = pixels.dtype == np.uint8 and all(
        np.array_equal(np.asarray(picture), pixels[row].transpose(order)) for row, (picture, _) in probe(dataset).items()
    )
    return pixels if agrees else None


def class_names(dataset: Any, options: dict[str, Any]) -> list[str] | None:
    """The names of the classes, by number."""
    if options.get("target_types") == "binary-category":  # OxfordIIITPet's cats and dogs
        return list(dataset.bin_classes)
    numbers = getattr(dataset, "class_to_idx", None)
    found = sorted(numbers, key=lambda name: numbers[name]) if isinstance(numbers, dict) else None
    for key in ("categories", "classes"):
        found = table if isinstance(table := getattr(dataset, key, None), (list, tuple)) else found
    if found is None:
        return None
    names = [", ".join(name) if isinstance(name, (tuple, list)) else str(name) for name in found]  # ImageNet: synonyms
    # ImageNet has two cranes, a bird and a machine
    return [name if names.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(names)]
