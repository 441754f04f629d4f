"""The data sets that come with torchvision, by name."""

import inspect
import os
from collections.abc import Mapping, Sequence
from numbers import Integral
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
from classifier.data.listing import inside
from classifier.errors import UserError, did_you_mean
from classifier.files import locked

PARTS = {"train": "train", "trainval": "train", "val": "val", "valid": "val", "test": "test"}  # values of `split`


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
        self.kind: Any = getattr(datasets, name, None)
        if not (inspect.isclass(self.kind) and issubclass(self.kind, datasets.VisionDataset)):
            raise UserError(f"data.name={name} is no data set of torchvision: {did_you_mean(name, datasets.__all__)}")
        self.dataset_name = name
        self.download = download
        self.options = dict(options or {})
        self._parts: dict[str, Any] = {}  # name of a part -> its data set
        self._mapped: MappedImages | None = None

    def prepare_data(self) -> None:
        """Download what is missing, where that is wished; a second process waits for the first."""
        read_only = self.root.is_dir() and not os.access(self.root, os.W_OK)
        if not self.download or read_only or self._parts or self._mapped:
            return
        # before the first look: what another process is unpacking looks complete to torchvision
        with locked(self.root / ".lock", "data.root"):
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
        items = {part: list_items(data, self.dataset_name) for part, data in self._parts.items()}
        table = pd.concat(items, names=["split", "row"]).reset_index()
        numbers, files = table.pop("number"), table.pop("file")
        table["path"] = table["split"].replace("", "all") + "/" + table.pop("row").astype("str").str.zfill(5)
        names = getattr(next(iter(self._parts.values())), "classes", ())
        if len(names) == numbers.max() + 1:  # else they are names of something else
            names = [name if isinstance(name, str) else ", ".join(name) for name in names]  # ImageNet has synonyms,
            # and two cranes, a bird and a machine
            names = [name if names.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(names)]
            table["label"] = pd.Categorical.from_codes(numbers.to_numpy(np.int64), categories=pd.Index(names))
        else:
            table["label"] = numbers.astype("str")
        places = table["split"].map([*items].index)
        table = table if len(items) > 1 else table.drop(columns="split")
        paths = inside(files, root=self.root)
        if (files != "").all() and paths.notna().all():
            # some are listed in the order of the disk, and a split follows the order
            return table.assign(path=paths).iloc[np.lexsort([paths, places])].reset_index(drop=True)
        arrays = {part: public_pixels(data) for part, data in self._parts.items()}
        found = {f"{self.dataset_name}-{part or 'all'}": array for part, array in arrays.items() if array is not None}
        if len(found) == len(arrays):
            kept = [keep_array(array, name, self.cache_dir) for name, array in found.items()]
            self._mapped, self._parts = MappedImages(kept), {}
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
        bases = self.kind.__mro__[: 2 if "kwargs" in inspect.signature(self.kind).parameters else 1]
        known = {name for base in bases for name in inspect.signature(base).parameters}
        common = {"root": str(self.root), "loader": as_path, **self.options, "download": download}
        common = {key: value for key, value in common.items() if key in {*known, *self.options}}
        ways: list[tuple[str, dict[str, Any]]] = [("", {})]
        if "train" in known and "train" not in self.options:
            ways = [("train", {"train": True}), ("test", {"train": False})]
        elif "split" in known and "split" not in self.options:
            ways = [(part, {"split": value}) for value, part in PARTS.items()]
        opened: dict[str, Any] = {}
        for part, arguments in ways:
            try:
                opened[part] = opened.get(part) or self.kind(**common, **arguments)
            except Exception as error:  # each has its own kinds for what is missing or damaged
                if part and isinstance(error, ValueError) and "for argument split" in str(error):
                    continue  # no such part
                what = f"cannot open {self.dataset_name} in data.root={self.root} ({' '.join(str(error).split())})"
                raise UserError(f"{what}: use data.download=true, or other data.options={{...}}") from error
        return opened


def as_path(path: str | Path) -> str:
    """A `loader` of torchvision's data sets: an item then tells its file, which is not decoded."""
    return samples.readable(str(path))


def list_items(dataset: Any, name: str) -> pd.DataFrame:
    """The items of a data set: number of the class, file ("" for pixels) and problem.

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
        if not (isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], (str, Image.Image))):
            raise UserError(f"data.name={name} gives no picture with a class: use other data.options={{...}}")
        if not isinstance(item[1], Integral):
            raise UserError(f"data.name={name} gives {type(item[1])} for a class: use other data.options={{...}}")
        rows.append((int(item[1]), item[0] if isinstance(item[0], str) else "", None))
    return pd.DataFrame(rows, columns=["number", "file", "problem"]).astype({"file": "str", "problem": "str"})


def public_pixels(dataset: Any) -> np.ndarray | None:
    """uint8 (N, H, W), (N, H, W, C) or (N, C, H, W), where `data` is such an array and agrees with the items."""
    pixels = getattr(dataset, "data", None)
    if not isinstance(pixels, (np.ndarray, torch.Tensor)) or len(pixels) != len(dataset):
        return None
    pixels = np.asarray(pixels)
    order = (1, 2, 0) if channels_first(pixels.shape) else range(pixels.ndim - 1)
    rows = np.linspace(0, len(pixels) - 1, 24, dtype=int).tolist()
    agrees = all(np.array_equal(np.asarray(dataset[row][0]), pixels[row].transpose(order)) for row in rows)
    return pixels if agrees and pixels.dtype == np.uint8 else None
