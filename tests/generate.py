"""Generated data sets: small pictures that a network can learn, in every layout that the data modules read."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat

COLORS = {"blue": (40, 60, 200), "green": (40, 180, 60), "red": (200, 50, 40), "white": (230, 230, 230)}
CLASSES = ("blue", "green", "red")


def picture(color: str, size: tuple[int, int] = (48, 40), seed: int = 0) -> Image.Image:
    """Noise around a colour; `size` is (width, height)."""
    noise = np.random.default_rng(seed).normal(0, 30, (size[1], size[0], 3))
    return Image.fromarray(np.clip(np.array(COLORS[color]) + noise, 0, 255).astype(np.uint8))


def save(image: Image.Image, path: Path, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)  # type: ignore[arg-type]
    return path


def image_folder(root: Path, classes: Sequence[str] = CLASSES, per_class: int = 20, seed: int = 0) -> Path:
    """root/<class>/<number>.jpg"""
    for number, name in enumerate(classes):
        for index in range(per_class):
            save(picture(name, seed=seed + 1000 * number + index), root / name / f"{index:03d}.jpg", quality=90)
    return root


def voc_xml(objects: Sequence[tuple[str, tuple[int, int, int, int]]], size: tuple[int, int], filename: str = "") -> str:
    """A PASCAL VOC annotation; boxes are (xmin, ymin, xmax, ymax), 1-based and inclusive."""
    parts = [
        f"<object><name>{name}</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for name, (x1, y1, x2, y2) in objects
    ]
    return (
        f"<annotation><filename>{filename}</filename><size><width>{size[0]}</width><height>{size[1]}</height>"
        f"<depth>3</depth></size>{''.join(parts)}</annotation>"
    )


def annotated(root: Path, classes: Sequence[str] = CLASSES, per_class: int = 20) -> Path:
    """root/images/<class>_<number>.jpg with root/annotations/*.xml: a coloured patch at a random place on white."""
    for number, name in enumerate(classes):
        for index in range(per_class):
            random = np.random.default_rng(1000 * number + index)
            x, y = (int(value) for value in random.integers(0, (50, 30)))
            image = picture("white", (80, 60), seed=index)
            image.paste(picture(name, (30, 30), seed=index), (x, y))
            stem = f"{name}_{index:03d}"
            save(image, root / "images" / f"{stem}.jpg", quality=95)
            xml = root / "annotations" / f"{stem}.xml"
            xml.parent.mkdir(parents=True, exist_ok=True)
            xml.write_text(voc_xml([(name, (x + 1, y + 1, x + 30, y + 30))], (80, 60), f"{stem}.jpg"))
    return root


def coco(root: Path, classes: Sequence[str] = CLASSES, per_class: int = 20) -> Path:
    """root/images/*.jpg with root/instances.json: a coloured patch at a random place on white."""
    images: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    for number, name in enumerate(classes):
        for index in range(per_class):
            x, y = np.random.default_rng(1000 * number + index).integers(0, (50, 30)).tolist()
            image = picture("white", (80, 60), seed=index)
            image.paste(picture(name, (30, 30), seed=index), (x, y))
            path = f"{len(images):03d}.jpg"
            save(image, root / "images" / path, quality=95)
            boxes.append({"id": 7 * len(images), "image_id": len(images), "category_id": 10 + number, "iscrowd": 0})
            boxes[-1]["bbox"] = [x + 0.25, y + 0.25, 29.5, 29.5]
            images.append({"id": len(images), "file_name": path, "width": 80, "height": 60})
    categories = [{"id": 10 + number, "name": name} for number, name in enumerate(classes)]
    content = {"images": images, "annotations": boxes, "categories": categories}
    (root / "instances.json").write_text(json.dumps(content))
    return root


def arrays(path: Path, per_class: int = 20, compressed: bool = False, **more: np.ndarray) -> Path:
    """An .npz file with X_train, Y_train, X_test, Y_test, of 16x16 pixels, and the names of classes."""
    content: dict[str, np.ndarray] = {"classes": np.array(CLASSES), **more}
    for part, count in (("train", per_class), ("test", per_class // 4)):
        size = len(CLASSES) * count
        labels = np.arange(size) % len(CLASSES)
        pixels = [np.array(picture(CLASSES[label], (16, 16), seed=row + len(part))) for row, label in enumerate(labels)]
        content |= {f"X_{part}": np.stack(pixels), f"Y_{part}": labels}
    path.parent.mkdir(parents=True, exist_ok=True)
    (np.savez_compressed if compressed else np.savez)(path, allow_pickle=True, **content)
    return path


def table(root: Path, classes: Sequence[str] = CLASSES, per_class: int = 20) -> Path:
    """root/images/<number>.jpg, listed with their colours in root/labels.csv."""
    lines = ["file_name,label"]
    for number, name in enumerate(classes):
        for index in range(per_class):
            path = f"{number}{index:03d}.jpg"
            save(picture(name, seed=1000 * number + index), root / "images" / path, quality=90)
            lines.append(f"{path},{name}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root


def tagged(root: Path, count: int = 60, seed: int = 0) -> dict[str, list[str]]:
    """root/images/<number>.png, white or with a stripe of each of some colours; path -> colours, in text order.

    Listed in root/labels.csv as `path,labels`, the colours joined by a bar.
    """
    random, found = np.random.default_rng(seed), {}
    for index in range(count):
        colors = [name for name in CLASSES if random.random() < 0.5]
        image = picture("white", (48, 48), seed=index)
        for place, name in enumerate(random.permutation(colors).tolist()):
            image.paste(picture(name, (48, 16), seed=index), (0, 16 * place))
        path = f"images/{index:03d}.png"
        save(image, root / path)
        found[path] = colors
    lines = [f"{path},{'|'.join(colors)}" for path, colors in found.items()]
    (root / "labels.csv").write_text("\n".join(["path,labels", *lines]) + "\n")
    return found


BREEDS = ("n02085620-Chihuahua", "n02085782-Japanese_spaniel", "n02105855-Shetland_sheepdog")


def stanford_dogs(root: Path, train: int = 8, test: int = 3, breeds: Sequence[str] = BREEDS) -> Path:
    """The official layout: extension-less XML, .mat lists, two dogs in each first image, an RGBA PNG named .jpg."""
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for breed, color in zip(breeds, COLORS, strict=False):
        for index in range(train + test):
            stem = f"{breed.split('-')[0]}_{index + 1}"
            image = picture("white", (120, 90), seed=index)
            image.paste(picture(color, (60, 50), seed=index), (20, 30))
            path = root / "Images" / breed / f"{stem}.jpg"
            if breed == breeds[-1] and index == 0:
                save(image.convert("RGBA"), path, format="PNG")
            else:
                save(image, path, quality=92)
            objects = [(breed.split("-")[1], (21, 31, 80, 80))]
            if index == 0:
                objects.append((breed.split("-")[1], (1, 1, 19, 19)))
            annotation = root / "Annotation" / breed / stem
            annotation.parent.mkdir(parents=True, exist_ok=True)
            annotation.write_text(voc_xml(objects, (120, 90), "%s"))
            lists["train" if index < train else "test"].append(f"{breed}/{stem}.jpg")
    for name, files in lists.items():
        column = np.empty((len(files), 1), dtype=object)
        column[:, 0] = files
        savemat(root / f"{name}_list.mat", {"file_list": column})
    return root


def copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target
