"""Files in folders."""

import unicodedata
from collections.abc import Callable
from pathlib import Path

from tests import generate


def pictures(root: Path, *folders: str, names: str = "{}.jpg") -> list[str]:
    """Three pictures in each folder, of the colour that its path speaks of; their labels."""
    labels = [next(color for color in generate.COLORS if color in folder) for folder in folders]
    for number in range(3 * len(folders)):
        path = root / folders[number // 3] / names.format(number)
        generate.save(generate.picture(labels[number // 3], seed=number), path)
    return [label for label in labels for _ in range(3)]


def parts(*names: str, root: Path) -> list[str]:
    return pictures(root, *(f"{name}/{color}" for name in names for color in ("blue", "red")))


def nested(root: Path) -> list[str]:
    pictures(root, "seg_pred/seg_pred/red")
    return parts("seg_train/seg_train", "seg_test/seg_test", root=root)


def class_train(root: Path) -> list[str]:
    for name, color in (("bus", "red"), ("plane", "blue"), ("train", "green")):
        pictures(root / name / "2019", f"../2020/{color}", color)
    return [name for name in ("bus", "plane", "train") for _ in range(6)]


def kept(root: Path) -> list[str]:
    labels = pictures(root, "blue", "red")
    pictures(root, *(f"{name}/blue" for name in ("__MACOSX", "$RECYCLE.BIN", "#recycle", "red/@eaDir", ".thumbnails")))
    for name in ("red/._0.jpg", "blue/Thumbs.db"):
        (root / name).write_bytes(b"\0\5\x16\7")
    return labels


def linked(root: Path) -> list[str]:
    labels = pictures(root, "blue", "red") + pictures(root.with_name("store"), "green")
    (root / "green").symlink_to(root.with_name("store") / "green")
    for name, target in (("red/everything", ".."), ("all", "."), ("blue/again", root.absolute() / "blue")):
        (root / name).symlink_to(target)
    return labels


def unicode_forms(root: Path) -> list[str]:
    for name, color in (("강아지", "red"), ("é", "blue")):
        pictures(root / "train" / name, color)
        pictures(root / "val" / unicodedata.normalize("NFD", name), color)
    return ["강아지"] * 6 + ["é"] * 6


MAKERS: dict[str, Callable[[Path], list[str]]] = {
    "parts by a word in their name": lambda root: parts("training_set", "validation_data", "test1", root=root),
    "parts in other languages": lambda root: parts("Trainingsdaten", "Testdaten", root=root),
    "a part's folder in one of its name": nested,
    "a class called train": class_train,
    "what systems and programs keep": kept,
    "links": linked,
    "names from a Mac": unicode_forms,
    "Roboflow's copies": lambda root: pictures(root, "blue", "red", names="{}_jpg.rf.0123456789abcdef.jpg"),
}
