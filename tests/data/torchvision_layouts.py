"""Small data sets in the layouts in which torchvision's are published.

Each has the classes 0, 1, 2 in turn, of which pictures are blue, green, red, or 20, 100, 180 where they are grey.
"""

import bz2
import json
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


def qmnist(root: Path) -> None:
    for part, count in (("train", 18), ("test", 6)):
        idx(root / f"QMNIST/raw/qmnist-{part}-images-idx3-ubyte", grey(count))
        labels = np.stack([turns(count), *(np.full(count, 9),) * 7], axis=1)
        idx(root / f"QMNIST/raw/qmnist-{part}-labels-idx2-int", labels.astype(">i4"))


def usps(root: Path) -> None:
    for name, count in (("usps.bz2", 18), ("usps.t.bz2", 6)):
        values = grey(count, 16).reshape(count, -1) / 127.5 - 1
        lines = [
            f"{label + 1} " + " ".join(f"{place}:{value:.6f}" for place, value in enumerate(row, 1))
            for label, row in zip(turns(count), values, strict=True)
        ]
        write(root / name, bz2.compress("\n".join(lines).encode()))


def svhn(root: Path) -> None:
    root.mkdir(exist_ok=True)
    for part, count in (("train", 18), ("test", 6)):
        labels = np.where(turns(count) == 0, 10, turns(count))[:, None]
        savemat(root / f"{part}_32x32.mat", {"X": color(count).transpose(1, 2, 3, 0), "y": labels})


def stl10(root: Path) -> None:
    folder = root / "stl10_binary"
    for part, count in (("train", 18), ("test", 6), ("unlabeled", 3)):
        write(folder / f"{part}_X.bin", color(count, 96).transpose(0, 3, 2, 1).tobytes())
        write(folder / f"{part}_y.bin", (turns(count) + 1).astype(np.uint8).tobytes())
    write(folder / "class_names.txt", "\n".join(CLASSES))
    write(folder / "fold_indices.txt", "")


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


def flowers(root: Path) -> None:
    folder = root / "flowers-102"
    for row, label in enumerate(turns(24)):
        photo(folder / "jpg" / f"image_{row + 1:05d}.jpg", label)
    savemat(folder / "imagelabels.mat", {"labels": turns(24)[None] + 1})
    numbers = np.arange(1, 25)
    savemat(folder / "setid.mat", {"trnid": numbers[:12], "valid": numbers[12:18], "tstid": numbers[18:]})


def eurosat(root: Path) -> None:
    for row, label in enumerate(turns(24)):
        photo(root / "eurosat/2750" / CLASSES[label] / f"{row}.jpg", label)


def dtd(root: Path) -> None:
    for part, count in (("train", 12), ("val", 6), ("test", 6)):
        names = [f"{CLASSES[label]}/{part}_{row}.jpg" for row, label in enumerate(turns(count))]
        for name, label in zip(names, turns(count), strict=True):
            photo(root / "dtd/dtd/images" / name, label)
        write(root / f"dtd/dtd/labels/{part}1.txt", "\n".join(names))


def food(root: Path) -> None:
    for part, count in (("train", 18), ("test", 6)):
        listed: dict[str, list[str]] = {name: [] for name in CLASSES}
        for row, label in enumerate(turns(count)):
            name = f"{CLASSES[label]}/{part}{row}"
            photo(root / "food-101/images" / f"{name}.jpg", label)
            listed[CLASSES[label]].append(name)
        write(root / f"food-101/meta/{part}.json", json.dumps(listed))


def gtsrb(root: Path) -> None:
    folder = root / "gtsrb"
    lines = ["Filename;Width;ClassId"]
    for row, label in enumerate(turns(18)):
        photo(folder / "GTSRB/Training" / f"{label:05d}" / f"{row}.ppm", label)
    for row, label in enumerate(turns(6)):
        photo(folder / "GTSRB/Final_Test/Images" / f"{row:05d}.ppm", label)
        lines.append(f"{row:05d}.ppm;20;{label}")
    write(folder / "GT-final_test.csv", "\n".join(lines))


def caltech101(root: Path) -> None:
    folder = root / "caltech101/101_ObjectCategories"
    (folder / "BACKGROUND_Google").mkdir(parents=True)
    for row, label in enumerate(turns(24)):
        photo(folder / CLASSES[label] / f"image_{row // 3 + 1:04d}.jpg", label)


def caltech256(root: Path) -> None:
    for row, label in enumerate(turns(24)):
        name = f"{label + 1:03d}_{row // 3 + 1:04d}.jpg"
        photo(root / "caltech256/256_ObjectCategories" / CLASSES[label] / name, label)


def inaturalist(root: Path) -> None:
    for row, label in enumerate(turns(24)):
        photo(root / "2021_train" / f"{label:05d}_a_b_c_d_e_f_{CLASSES[label]}" / f"{row}.jpg", label)


def omniglot(root: Path) -> None:
    folder = root / "omniglot-py"
    write(folder / "images_background.zip", "")
    for row, label in enumerate(turns(24)):
        photo(folder / "images_background/letters" / CLASSES[label] / f"{row}.png", label)


def rendered(root: Path) -> None:
    for part, count in (("train", 12), ("valid", 6), ("test", 6)):
        for row, label in enumerate(turns(count) // 2):
            photo(root / "rendered-sst2" / part / ("negative", "positive")[label] / f"{row}.png", label)


def clevr(root: Path) -> None:
    """Objects are counted, and those of the test part are not told."""
    folder = root / "clevr/CLEVR_v1.0"
    for part, count in (("train", 12), ("val", 6), ("test", 6)):
        scenes = []
        for row, label in enumerate(turns(count)):
            photo(folder / "images" / part / f"{row:02d}.png", label)
            scenes.append({"image_filename": f"{row:02d}.png", "objects": [None] * int(label + 9)})
        write(folder / f"scenes/CLEVR_{part}_scenes.json", json.dumps({"scenes": scenes}))


def fer(root: Path) -> None:
    for part, count in (("train", 18), ("test", 6)):
        lines = [
            f"{label}," * (part == "train") + " ".join(map(str, pixels.ravel()))
            for label, pixels in zip(turns(count), grey(count, 48), strict=True)
        ]
        header = "emotion,pixels" if part == "train" else "pixels"
        write(root / f"fer2013/{part}.csv", "\n".join([header, *lines]))


def lfw(root: Path) -> None:
    folder = root / "lfw-py"
    for label, name in enumerate(CLASSES):
        for number in range(1, 9):
            photo(folder / "lfw_funneled" / name / f"{name}_{number:04d}.jpg", label)
    write(folder / "lfw-names.txt", "".join(f"{name}\t8\n" for name in CLASSES))
    write(folder / "people.txt", "2\n1\nred\t8\n2\ngreen\t8\nblue\t8\n")
    write(folder / "lfw-funneled.tgz", "")


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "CIFAR10": cifar10,
    "CLEVRClassification": clevr,
    "Caltech101": caltech101,
    "Caltech256": caltech256,
    "DTD": dtd,
    "EMNIST": emnist,
    "EuroSAT": eurosat,
    "FER2013": fer,
    "FashionMNIST": mnist,
    "Flowers102": flowers,
    "Food101": food,
    "GTSRB": gtsrb,
    "INaturalist": inaturalist,
    "LFWPeople": lfw,
    "Omniglot": omniglot,
    "OxfordIIITPet": pets,
    "QMNIST": qmnist,
    "RenderedSST2": rendered,
    "STL10": stl10,
    "SVHN": svhn,
    "USPS": usps,
}
