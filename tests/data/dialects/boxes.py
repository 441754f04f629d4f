"""Boxes."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from tests import generate

Spot = tuple[int, int, int, int]
SIZE = (80, 60)


def photos(root: Path, folders: Sequence[str] = ("",)) -> list[tuple[str, str, Spot]]:
    """White pictures with a coloured spot each, below `root`; their paths, labels, and x1, y1, x2, y2 of the spots."""
    rows: list[tuple[str, str, Spot]] = []
    for number in range(6):
        color, folder = ("blue", "red")[number % 2], folders[number // 2 % len(folders)]
        spot = (5 + 7 * number, 8, 37 + 7 * number, 44)
        image = generate.picture("white", SIZE, seed=number)
        image.paste(generate.picture(color, (32, 36), seed=number), spot)
        path = f"{folder}/{number}.png".lstrip("/")
        generate.save(image, root / path)
        rows.append((path, color, spot))
    return rows


def table(header: str, cells: Callable[[str, str, Spot], Sequence[object]]) -> Callable[[Path], list[str]]:
    def make(root: Path) -> list[str]:
        rows = photos(root)
        lines = [header, *(",".join(map(str, cells(*row))) for row in rows)]
        root.joinpath("boxes.csv").write_text("\n".join(lines))
        return [label for _, label, _ in rows]

    return make


def parts_of(spot: Spot, whole: float) -> list[float]:
    x1, y1, x2, y2 = spot
    return [whole * x1 / SIZE[0], whole * y1 / SIZE[1], whole * x2 / SIZE[0], whole * y2 / SIZE[1]]


def sides(corners: Sequence[float], middle: bool = False) -> list[float]:
    x1, y1, x2, y2 = corners
    start = [(x1 + x2) / 2, (y1 + y2) / 2] if middle else [x1, y1]
    return [*start, x2 - x1, y2 - y1]


def open_images(path: str, label: str, spot: Spot) -> list[object]:
    x1, y1, x2, y2 = parts_of(spot, 1)
    return [path.removesuffix(".png"), "xclick", label, 1, x1, x2, y1, y2]


def automl(path: str, label: str, spot: Spot) -> list[object]:
    x1, y1, x2, y2 = parts_of(spot, 1)
    return ["TRAIN", path, label, x1, y1, "", "", x2, y2, "", ""]


def coco(root: Path, rows: Sequence[tuple[str, str, Spot]], name: str, boxes: bool = True) -> list[str]:
    labels = [label for _, label, _ in rows]
    images = [{"id": str(number), "file_name": path} for number, (path, _, _) in enumerate(rows)]
    notes: list[dict[str, object]] = [{"image_id": row, "category_id": row % 2} for row in range(len(rows))]
    if boxes:
        notes = [{**note, "bbox": sides(spot)} for note, (_, _, spot) in zip(notes, rows, strict=True)]
    categories = [{"id": 0, "name": "blue"}, {"id": 1, "name": "red"}]
    root.joinpath(name).write_text(json.dumps({"images": images, "annotations": notes, "categories": categories}))
    return labels


def coco_classes(root: Path) -> list[str]:
    rows = [(f"{number}.png", color, (0, 0, 1, 1)) for number, color in enumerate(("blue", "red") * 3)]
    for path, color, _ in rows:
        generate.save(generate.picture(color), root / "images" / path)
    return coco(root, rows, "labels.json", boxes=False)


def roboflow_coco(root: Path) -> list[str]:
    parts = [root / part for part in ("train", "valid", "test")]
    return [label for part in parts for label in coco(part, photos(part), "_annotations.coco.json")]


def voc(root: Path, rows: Sequence[tuple[str, str, Spot]], scale: int = 1) -> list[str]:
    for path, label, spot in rows:
        x1, y1, x2, y2 = (scale * edge for edge in spot)
        xml = generate.voc_xml([(label, (x1 + 1, y1 + 1, x2, y2))], (scale * SIZE[0], scale * SIZE[1]))
        file = (root / path).with_suffix(".xml")
        file.parent.mkdir(exist_ok=True)
        file.write_text(xml)
    return [label for _, label, _ in rows]


MAKERS: dict[str, Callable[[Path], list[str]]] = {
    "TensorFlow's object detection, Roboflow": table(
        "filename,width,height,class,xmin,ymin,xmax,ymax", lambda path, label, spot: [path, *SIZE, label, *spot]
    ),
    "Open Images": table("ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax", open_images),
    "Google AutoML, with a first line": table("set,path,label,x1,y1,,,x2,y2,,", automl),
    "YOLO's numbers in a table": table(
        "path,label,cx,cy,w,h", lambda path, label, spot: [path, label, *sides(parts_of(spot, 1), middle=True)]
    ),
    "Label Studio's percent in a table": table(
        "image,label,x,y,width,height", lambda path, label, spot: [path, label, *sides(parts_of(spot, 100))]
    ),
    "VIA, as COCO": lambda root: coco(root, photos(root), "via.json"),
    "COCO of Roboflow": roboflow_coco,
    "COCO of classes: FiftyOne, CVAT, Label Studio": coco_classes,
    "PASCAL VOC of Roboflow": lambda root: voc(root, photos(root, ("train", "valid", "test"))),
    "PASCAL VOC of larger images": lambda root: voc(root / "annotations", photos(root / "images"), scale=4),
}
