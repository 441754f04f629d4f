"""The parts of a data set of torchvision, and how each is opened."""

import inspect
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

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
