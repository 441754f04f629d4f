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

from classifier.data import samples
from classifier.data.arrays import MappedImages, channels_first, keep_array
from classifier.data.datamodule import ClassificationDataModule
from classifier.data.image import Picture
from classifier.errors import UserError, did_you_mean
from classifier.files import locked

log = logging.getLogger(__name__)

SPLIT_VALUES = {"train": ("train", "trainval", "train-standard"), "val": ("val", "valid"), "test": ("test",)}
WHOLE = ("LFWPeople",)  # the people of its parts differ
PROBES = 24  # items that a table is compared with


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
        self.dataset_name = name
        self.kind = kind
        self.known = parameters(kind)
        self.download = download
        self.options = dict(options or {})
        self._parts: dict[str, Any] = {}  # name of a part -> its data set
        self._mapped: MappedImages | None = None

    def prepare_data(self) -> None:
        """Download what is missing, where that is wished; a second process waits for the first."""
        if not self.download or self._parts:
            return
        if "download" not in self.known:
            raise UserError(f"torchvision has no download of {self.dataset_name}: use data.download=false")
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
        found = {part: list_items(data, self.dataset_name) for part, data in self._parts.items()}
        for part in [part for part, items in found.items() if items is None]:
            log.warning("%s has no labels for %s, which is left out", self.dataset_name, part or "its images")
            del found[part], self._parts[part]
        if not found:
            raise UserError(f"data.name={self.dataset_name} has no labels: choose another data set")
        table = pd.concat(found, names=["split", "row"]).reset_index()
        numbers = table.pop("row").astype("str").str.zfill(5)
        table["path"] = table["split"].mask(table["split"] == "", "all") + "/" + numbers
        table["label"] = name_classes(table, next(iter(self._parts.values())), self.options)
        table = table.drop(columns=["number", *(["split"] if len(self._parts) == 1 else [])])
        files = table.pop("file")
        paths = samples.inside(files, root=self.root)
        if (files != "").all() and paths.notna().all():
            # not in the order of the disk, in which some are listed: a split follows the order
            parts = np.repeat(range(len(self._parts)), [len(data) for data in self._parts.values()])
            return table.assign(path=paths).iloc[np.lexsort([paths.to_numpy(), parts])].reset_index(drop=True)
        arrays = {part: public_pixels(data) for part, data in self._parts.items()}
        kept = [
            keep_array(array, f"{self.dataset_name}-{part or 'all'}", self.cache_dir)
            for part, array in arrays.items()
            if array is not None
        ]
        if len(kept) == len(arrays):
            self._mapped, self._parts = MappedImages(kept, [(0, 255)] * len(kept)), {}
        return table.assign(item=np.arange(len(table)))

    def read_images(self, items: np.ndarray) -> Sequence[Picture]:
        """What the data set gives, or uint8 (H, W) or (H, W, C) out of its array."""
        if self._mapped is not None:
            return [self._mapped[item] for item in items]
        chain: ConcatDataset[Any] = ConcatDataset(self._parts.values())
        pictures = [chain[int(item)][0] for item in items]
        return [Path(picture) if isinstance(picture, str) else picture for picture in pictures]

    def _open(self, download: bool = False) -> dict[str, Any]:
        """Each part that the data set has; "" where it has no parts, or the options choose one."""
        common = {"root": str(self.root), "download": download, "loader": as_path}
        common = {key: value for key, value in common.items() if key in self.known} | self.options
        ways: dict[str, list[dict[str, Any]]] = {"": [{}]}
        if "train" in self.known and "train" not in self.options:
            ways = {"train": [{"train": True}], "test": [{"train": False}]}
        elif "split" in self.known and "split" not in self.options and self.dataset_name not in WHOLE:
            ways = {part: [{"split": value} for value in values] for part, values in SPLIT_VALUES.items()}
        opened: dict[str, Any] = {}
        for part, arguments in ((part, arguments) for part, choices in ways.items() for arguments in choices):
            if part not in opened:
                try:
                    opened[part] = self.kind(**common, **arguments)
                except Exception as error:  # each has its own kinds for what is missing or damaged
                    if not (part and isinstance(error, ValueError) and "for argument split" in str(error)):
                        raise self._unusable(part, error) from error
        if not opened:
            raise UserError(f"data.name={self.dataset_name} has no part that is known here: choose it by data.options")
        return opened

    def _unusable(self, part: str, error: Exception) -> UserError:
        reason = " ".join(str(error).partition("You can use download=True")[0].split()) or type(error).__name__
        what = f"{'download' if self.download else 'open'} {self.dataset_name} {part} in {self.root}"
        remedy = "data.download=true, " if "download" in self.known and not self.download else ""
        page = f"https://docs.pytorch.org/vision/stable/generated/torchvision.datasets.{self.dataset_name}.html"
        ways = f"{remedy}other data.options={{...}}, or put its files below data.root as {page} says"
        return UserError(f"cannot {what} ({reason}): use {ways}")


def parameters(kind: type) -> set[str]:
    """The arguments of a constructor, with those that it hands on to its base classes."""
    found: set[str] = set()
    for base in (base for base in kind.__mro__ if "__init__" in vars(base)):
        own = inspect.signature(vars(base)["__init__"]).parameters.values()
        found |= {item.name for item in own}
        if not any(item.kind == item.VAR_KEYWORD for item in own):
            break
    return found


def as_path(path: str | Path) -> str:
    """A `loader` of torchvision's data sets: an item then tells its file, which is not decoded."""
    return samples.readable(str(path))


def list_items(dataset: Any, name: str) -> pd.DataFrame | None:
    """The items of a data set: number of the class, file ("" for pixels) and problem; None where they have no label.

    Raises:
        UserError: They are not pairs of a picture and a number.
    """
    rows: list[tuple[int, str, str | None]] = []
    for row in range(len(dataset)):
        try:
            item = dataset[row]
        except Exception as error:  # torchvision's and Pillow's, of any kind
            rows.append((-1, "", f"cannot be read ({error})"))
            continue
        picture, label = item if isinstance(item, tuple) and len(item) == 2 else (item, "")
        if label is None:
            return None
        numbered = isinstance(label, (int, np.integer, torch.Tensor)) and np.ndim(label) == 0
        if not numbered or not isinstance(picture, (str, Image.Image)):
            kinds = f"{type(picture).__name__} and {type(label).__name__}"
            raise UserError(
                f"data.name={name} gives {kinds}, not a picture and a class: use other data.options={{...}}"
            )
        # Pillow knows the file of a picture that is not decoded yet
        file = picture if isinstance(picture, str) else str(getattr(picture, "filename", ""))
        rows.append((int(label), file, None))
    return pd.DataFrame(rows, columns=["number", "file", "problem"]).astype({"file": "str", "problem": "str"})


def public_pixels(dataset: Any) -> np.ndarray | None:
    """uint8 (N, H, W), (N, H, W, C) or (N, C, H, W), where `data` is such an array and agrees with the items."""
    table = getattr(dataset, "data", None)
    pixels = np.asarray(table) if isinstance(table, (np.ndarray, torch.Tensor)) else np.zeros(0)
    if len(pixels) != len(dataset) or pixels.dtype != np.uint8:
        return None
    order = (1, 2, 0) if channels_first(pixels.shape) else range(pixels.ndim - 1)
    rows = np.linspace(0, len(pixels) - 1, PROBES, dtype=int).tolist()
    agrees = all(np.array_equal(np.asarray(dataset[row][0]), pixels[row].transpose(order)) for row in rows)
    return pixels if agrees else None


def name_classes(items: pd.DataFrame, dataset: Any, options: Mapping[str, Any]) -> pd.Series:
    """The class names of `items`, by the public tables of a data set, by folders, or by their numbers."""
    numbers, to_index = items["number"], getattr(dataset, "class_to_idx", {})
    names = getattr(dataset, "classes", getattr(dataset, "categories", sorted(to_index, key=to_index.__getitem__)))
    if options.get("target_types") == "binary-category":  # OxfordIIITPet's cats and dogs
        names = dataset.bin_classes
    if numbers[items["problem"].isna()].min() >= 0 and numbers.max() < len(names):
        names = [", ".join(name) if isinstance(name, tuple) else str(name) for name in names]  # ImageNet: synonyms
        # ImageNet has two cranes, a bird and a machine
        names = [name if names.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(names)]
        return pd.Series(pd.Categorical.from_codes(numbers.to_numpy(), dtype=pd.CategoricalDtype(names)))
    folders = items["file"].map(os.path.dirname)
    pairs = pd.DataFrame({"number": numbers, "folder": folders}).drop_duplicates()
    # a data set may number its classes in the order of the disk
    if (items["file"] != "").all() and pairs["number"].is_unique and pairs["folder"].is_unique and len(pairs) > 1:
        top = os.path.commonpath(list(pairs["folder"]))
        return folders.map(lambda folder: os.path.relpath(folder, top))
    return numbers.astype("str")
