"""A COCO JSON file -> the objects of each image."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from classifier.data.samples import Problem
from classifier.data.sources.boxes import BoxedObject, covering
from classifier.data.sources.listing import inside
from classifier.errors import UserError

LISTS = ("images", "annotations", "categories")


def read_instances(
    file: Path, folder: str, root: Path, problems: list[Problem], with_crowd: bool = False
) -> dict[str, list[BoxedObject]]:
    """Path of an image below the data folder -> its objects, in the order of the file.

    COCO's boxes are x, y, width, height, 0-based and with fractions; they are widened to whole pixels.

    Args:
        folder: Below `root`; what file names are relative to, where they are not absolute.
        root: The data folder.
        problems: Takes up the annotations that cannot be used.
        with_crowd: Take boxes around many objects (`iscrowd`) too.

    Raises:
        UserError: The file is no JSON, lacks a list, or has a malformed image or category.
    """
    content = _content(file)
    categories = {
        _value(entry, "id", place): str(_value(entry, "name", place))
        for place, entry in _entries(file, content, "categories")
    }
    paths: dict[Any, str] = {}
    for place, entry in _entries(file, content, "images"):
        number, name = _value(entry, "id", place), _value(entry, "file_name", place)
        if number in paths:
            raise UserError(f"{place} has the id {number!r} of another image: number the images anew")
        try:
            paths[number] = inside(str(name), folder, root)
        except ValueError as error:
            raise UserError(f"{place}: {error}: write file names relative to data.images={folder}") from error
    images: dict[str, list[BoxedObject]] = {path: [] for path in paths.values()}
    for place, entry in _entries(file, content, "annotations"):
        if entry.get("iscrowd") and not with_crowd:
            continue
        path = paths.get(_value(entry, "image_id", place))
        try:
            if path is None:
                raise ValueError(f"the image_id {entry['image_id']!r} is no image of the file")
            images[path].append(_object(entry, categories))
        except ValueError as error:
            problems.append(Problem(path or file.name, f"{place}: {error}"))
    return images


def _object(entry: dict[str, Any], categories: dict[Any, str]) -> BoxedObject:
    for key in ("category_id", "bbox"):
        if key not in entry:
            raise ValueError(f"no {key}")
    category = entry["category_id"]
    if not isinstance(category, (str, int)) or category not in categories:
        raise ValueError(f"the category_id {category!r} is no category of the file")
    try:
        x, y, width, height = map(float, entry["bbox"])
    except (TypeError, ValueError):
        raise ValueError(f"the bbox {entry['bbox']} is not of four numbers") from None
    return BoxedObject(categories[category], covering(x, y, x + width, y + height))


def _content(file: Path) -> dict[str, Any]:
    try:
        content: Any = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:  # ValueError: malformed, or not in Unicode
        raise UserError(f"cannot read {file} ({error}): name a COCO file with data.annotations=...") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} is a {type(content).__name__}, not an object with {', '.join(LISTS)}")
    if lacking := [key for key in LISTS if not isinstance(content.get(key), list)]:
        raise UserError(
            f"{file} has no list {' and '.join(map(repr, lacking))} but {', '.join(content) or 'nothing'}: is it a "
            "file of COCO instances? Name another with data.annotations=..."
        )
    return content


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
        raise UserError(f"{place} has {'no ' + key if value is None else f'the {key} {value!r}'}: mend the file")
    return value
