"""Several labels an image."""

import json
from collections.abc import Callable
from pathlib import Path

from tests import generate

SETS = [["cat", "dog"], ["cat"], ["dog"], []] * 3
LABELS = ["|".join(names) for names in SETS]


def table(root: Path, *lines: str) -> list[str]:
    for number in range(len(SETS)):
        generate.save(generate.picture("white", seed=number), root / f"{number}.png")
    root.joinpath("labels.csv").write_text("\n".join(lines))
    return LABELS


def columns(root: Path) -> list[str]:
    cells = [f"{number}.png,{int('dog' in names)},{int('cat' in names)}" for number, names in enumerate(SETS)]
    return table(root, "path,dog,cat", *cells)


def blanks(root: Path) -> list[str]:
    return table(root, "path,label", *(f"{number}.png,{' '.join(names)}" for number, names in enumerate(SETS)))


def listed(root: Path) -> list[str]:
    cells = [json.dumps(names).replace('"', '""') for names in SETS]
    return table(root, "path,label", *(f'{number}.png,"{cell}"' for number, cell in enumerate(cells)))


def lines(root: Path) -> list[str]:
    pairs = [f"{number}.png,{name}" for number, names in enumerate(SETS) for name in reversed(names or [""])]
    return table(root, "path,label", *pairs)


def coco(root: Path) -> list[str]:
    table(root)
    images = [{"id": number, "file_name": f"{number}.png"} for number in range(len(SETS))]
    numbers = {"cat": 3, "dog": 1}
    annotations = [
        {"image_id": image, "category_id": numbers[name], "bbox": [0, 0, 9, 9], "iscrowd": image % 2}
        for image, names in enumerate(SETS)
        for name in names * 2
    ]
    content = {"images": images, "annotations": annotations}
    content["categories"] = [{"id": number, "name": name} for name, number in numbers.items()]
    root.joinpath("instances.json").write_text(json.dumps(content))
    return LABELS


MAKERS: dict[str, Callable[[Path], list[str]]] = {
    "a column for each class": columns,
    "names with blanks between them": blanks,
    "names in a JSON list, as Label Studio's": listed,
    "a line for each label": lines,
    "COCO's annotations": coco,
}
