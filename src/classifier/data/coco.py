"""Images with COCO's instances in JSON: one sample per annotated box.

Source: T.-Y. Lin et al., Microsoft COCO: Common Objects in Context, ECCV 2014 (the format; no data here).
"""

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from classifier.data.datamodule import ClassificationDataModule
from classifier.data.image_folder import require_folder
from classifier.data.samples import (
    OBJECTS,
    SPLITS,
    choose_objects,
    inside,
    mark_unusable,
    none_exists,
    require_margin,
    sub_folder,
    usable,
    with_covering_boxes,
    with_margin,
)
from classifier.errors import UserError, did_you_mean, require_choice

log = logging.getLogger(__name__)

LISTS = ("images", "annotations", "categories")


class CocoDataModule(ClassificationDataModule):
    """The boxes that COCO files list, of images below `root`. Classes are the names of the categories that occur.

    COCO's boxes are x, y, width, height, 0-based and with fractions; they are widened to whole pixels.

    Args:
        annotations: A file, or part (train, val, test) -> its file; relative to `root`, or any path.
        images: Folder below `root` that file names begin in, or part -> its folder.
        objects: Which boxes of an image become samples: `all`, the `largest` or the `first`.
        margin: Added on each side, as a fraction of the box's width and height.
        crowd: `skip` or `keep` boxes around many objects at once (`iscrowd`).
    """

    def __init__(
        self,
        root: str | Path,
        *,
        annotations: str | Mapping[str, str],
        images: str | Mapping[str, str] = "images",
        objects: str = "all",
        margin: float = 0.0,
        crowd: str = "skip",
        **settings: Any,
    ) -> None:
        super().__init__(root, **settings)
        require_choice("data.objects", objects, OBJECTS)
        require_choice("data.crowd", crowd, ("skip", "keep"))
        require_margin(margin)
        self.objects = objects
        self.margin = margin
        self.crowd = crowd
        self.files = {"": annotations} if isinstance(annotations, str) else dict(annotations)
        folders = dict.fromkeys(self.files, images) if isinstance(images, str) else dict(images)
        for part in (part for part in [*self.files, *folders] if part):
            if part not in SPLITS:
                raise UserError(f"data.annotations and data.images name a part {part!r}: {did_you_mean(part, SPLITS)}")
        if not self.files or self.files.keys() != folders.keys():
            raise UserError(
                f"data.images={images} and data.annotations={annotations} must name the same parts: use "
                "data.annotations={train:FILE,val:FILE} and one folder, or data.images={train:FOLDER,val:FOLDER}"
            )
        self.folders = {part: sub_folder("images", folder) for part, folder in folders.items()}

    def list_samples(self) -> pd.DataFrame:
        """List the boxes; those that cannot be used are problems.

        Raises:
            UserError: A file is missing or malformed, or no image exists.
        """
        require_folder(self.root)
        tables = [self._part(part, file) for part, file in self.files.items()]
        table = mark_unusable(pd.concat(tables, ignore_index=True), self.root)
        if table.empty:
            raise UserError(f"{', '.join(self.files.values())} has no annotation: use another data.annotations=...")
        if none_exists(table):
            raise UserError(
                f"none of the images exists, {self.root / table['path'][0]} first: name their folder below {self.root} "
                "with data.images=..."
            )
        return table

    def _part(self, part: str, name: str) -> pd.DataFrame:
        file = next((path for path in (self.root / name, Path(name)) if path.is_file()), None)
        if file is None:
            raise UserError(f"{self.root / name} does not exist: name the COCO file with data.annotations=...")
        content = _content(file)
        paths = self._paths(_entries(file, content, "images"), self.folders[part])
        names = {
            _value(entry, "id", place): str(_value(entry, "name", place))
            for place, entry in _entries(file, content, "categories")
        }
        rows: list[tuple[Any, ...]] = []
        for place, entry in _entries(file, content, "annotations"):
            path = paths.get(_value(entry, "image_id", place), file.name)
            if not entry.get("iscrowd") or self.crowd == "keep":
                try:
                    rows.append((path, place, None, *_read_object(entry, paths, names)))
                except ValueError as error:
                    rows.append((path, place, str(error), "", *[np.nan] * 4))
        table = pd.DataFrame(rows, columns=["path", "place", "problem", "label", "x", "y", "width", "height"])
        boxes = np.column_stack([table.pop(side).to_numpy(float) for side in ("x", "y", "width", "height")])
        table = table.astype("str")
        places = table.pop("place")
        table = with_covering_boxes(table, np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]]))
        table["problem"] = places + ": " + table["problem"]
        if unlabelled := len(set(paths.values()) - set(table["path"][usable(table)])):
            log.warning("%s: %d images have no box that can be used, and are left out", file, unlabelled)
        table = with_margin(choose_objects(table, self.objects), self.margin)
        return table.assign(split=part) if part else table

    def _paths(self, entries: Iterator[tuple[str, dict[str, Any]]], folder: str) -> dict[Any, str]:
        """Number of an image -> its path."""
        found: dict[Any, str] = {}
        places = []
        for place, entry in entries:
            number, name = _value(entry, "id", place), _value(entry, "file_name", place)
            if number in found:
                raise UserError(f"{place} has the id {number!r} of another image: renumber the images")
            found[number] = str(name)
            places.append(place)
        clean = inside(pd.Series(list(found.values()), dtype="str"), folder, self.root)
        for row in np.flatnonzero(clean.isna())[:1]:
            name = list(found.values())[row]
            raise UserError(f"{places[row]}: {name!r} is not below the data folder: write it relative to data.images=...")
        return dict(zip(found, clean, strict=True))


def _read_object(entry: dict[str, Any], paths: dict[Any, str], names: dict[Any, str]) -> tuple[str, Any, Any, Any, Any]:
    """Category and box (x, y, width, height) of an annotation.

    Raises:
        ValueError: It cannot be used.
    """
    if entry["image_id"] not in paths:
        raise ValueError(f"the image_id {entry['image_id']!r} is no image of the file")
    for key in ("category_id", "bbox"):
        if key not in entry:
            raise ValueError(f"no {key}")
    category, box = entry["category_id"], entry["bbox"]
    if not isinstance(category, (str, int)) or category not in names:
        raise ValueError(f"the category_id {category!r} is no category of the file")
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(side, (int, float)) for side in box):
        raise ValueError(f"the bbox {box} is not of four numbers")
    return names[category], box[0], box[1], box[2], box[3]


def _content(file: Path) -> dict[str, Any]:
    try:
        content: Any = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:  # ValueError: malformed, or not in Unicode
        raise UserError(f"cannot read {file} ({error}): name a COCO file with data.annotations=...") from error
    lacking = [key for key in LISTS if not isinstance(content, dict) or not isinstance(content.get(key), list)]
    if lacking:
        raise UserError(
            f"{file} has no list {' and '.join(map(repr, lacking))}: is it a file of COCO instances? Name another with "
            "data.annotations=..."
        )
    return dict(content)


def _entries(file: Path, content: dict[str, Any], key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where it is, the entry) of each entry of a list."""
    for number, entry in enumerate(content[key]):
        place = f"{key}[{number}] of {file.name}"
        if not isinstance(entry, dict):
            raise UserError(f"{place} is {entry!r}, not an object with keys: mend the file")
        yield place, entry


def _value(entry: dict[str, Any], key: str, place: str) -> Any:
    value = entry.get(key)
    if not isinstance(value, (str, int)):  # what an id or a name can be
        raise UserError(f"{place} has {f'no {key}' if value is None else f'the {key} {value!r}'}: mend the file")
    return value
