"""Small data sets in the layouts in which torchvision's are published.

Each has the classes 0, 1, 2 in turn, of which pictures are blue, green, red, or 20, 100, 180 where they are grey.
"""

import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.io import savemat

from tests.generate import CLASSES, COLORS, save
from tests.generate import picture as colored

GREYS = (20, 100, 180)


def turns(count: int) -> np.ndarray:
    return np.arange(count) % 3


def grey(count: int, side: int = 28) -> np.ndarray:
    """uint8 (count, side, side)"""
    return np.broadcast_to(np.array(GREYS, np.uint8)[turns(count)][:, None, None], (count, side, side))


def color(count: int, side: int = 32) -> np.ndarray:
    """uint8 (count, side, side, 3)"""
    shades = np.array([COLORS[name] for name in CLASSES], np.uint8)
    return np.broadcast_to(shades[turns(count)][:, None, None], (count, side, side, 3))


def photo(path: Path, label: int) -> None:
    save(colored(CLASSES[label], (20, 16), seed=label), path)


def write(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def idx(path: Path, array: np.ndarray) -> None:
    kind = {"u": 8, "i": 12}[array.dtype.kind]
    write(path, struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape) + array.tobytes())


def mnist(
    root: Path, name: str = "FashionMNIST", prefix: str = "{}", parts: tuple[str, str] = ("train", "t10k")
) -> None:
    for part, count in zip(parts, (18, 6), strict=True):
        stem = root / name / "raw" / prefix.format(part)
        idx(Path(f"{stem}-images-idx3-ubyte"), grey(count))
        idx(Path(f"{stem}-labels-idx1-ubyte"), turns(count).astype(np.uint8))


def emnist(root: Path) -> None:
    mnist(root, "EMNIST", "emnist-digits-{}", ("train", "test"))


def svhn(root: Path) -> None:
    root.mkdir(exist_ok=True)
    for part, count in (("train", 18), ("test", 6)):
        labels = np.where(turns(count) == 0, 10, turns(count))[:, None]
        savemat(root / f"{part}_32x32.mat", {"X": color(count).transpose(1, 2, 3, 0), "y": labels})


def cifar10(root: Path) -> None:
    folder = root / "cifar-10-batches-py"
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        pixels = color(6).transpose(0, 3, 1, 2).reshape(6, -1)
        write(folder / name, pickle.dumps({"data": pixels, "labels": turns(6).tolist()}))
    write(folder / "batches.meta", pickle.dumps({"label_names": list(CLASSES)}))


def pets(root: Path) -> None:
    folder = root / "oxford-iiit-pet"
    for part, first in (("trainval", 0), ("test", 18)):
        lines = []
        for row, label in enumerate(turns(18 if part == "trainval" else 6)):
            name = f"{CLASSES[label]}_{first + row}"
            photo(folder / "images" / f"{name}.jpg", label)
            lines.append(f"{name} {label + 1} {1 + label // 2} 1")
        write(folder / "annotations" / f"{part}.txt", "\n".join(lines))


def eurosat(root: Path) -> None:
    for row, label in enumerate(turns(24)):
        photo(root / "eurosat/2750" / CLASSES[label] / f"{row}.jpg", label)


def dtd(root: Path) -> None:
    for part, count in (("train", 12), ("val", 6), ("test", 6)):
        names = [f"{CLASSES[label]}/{part}_{row}.jpg" for row, label in enumerate(turns(count))]
        for name, label in zip(names, turns(count), strict=True):
            photo(root / "dtd/dtd/images" / name, label)
        write(root / f"dtd/dtd/labels/{part}1.txt", "\n".join(names))


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "CIFAR10": cifar10,
    "DTD": dtd,
    "EMNIST": emnist,
    "EuroSAT": eurosat,
    "FashionMNIST": mnist,
    "OxfordIIITPet": pets,
    "SVHN": svhn,
}
