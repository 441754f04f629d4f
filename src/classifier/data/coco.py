"""Images with COCO's instances in JSON: one sample per annotated box.

Source: T.-Y. Lin et al., Microsoft COCO: Common Objects in Context, ECCV 2014 (the format; no data here).
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from classifier.data.image import Box
from classifier.data.image_folder import require_folder
from classifier.data.samples import (
    OBJECTS,
    SPLITS,
    UNASSIGNED,
    BoxedObject,
    Listing,
    Problem,
    Samples,
    choose,
    covering,
    inside,
    match_classes,
    require_margin,
    sub_folder,
    with_margin,
)
from classifier.errors import UserError, did_you_mean, require_choice

log = logging.getLogger(__name__)


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


CROWD = ("skip", "keep")


class _Row(NamedTuple):
    path: str
    name: str
    box: Box
    split: int


class CocoSource:
    """The boxes that COCO files list, of images below `root`. Classes are the names of the categories that occur.

    Args:
        annotations: A file, or part (train, val, test) -> its file; relative to `root`, or any path.
        images: Folder below `root` that file names begin in, or part -> its folder.
        objects: Which boxes of an image become samples: `all`, the `largest` or the `first`.
        margin: Added on each side, as a fraction of the box's width and height.
        crowd: `skip` or `keep` boxes around many objects at once (`iscrowd`).
    """

    def __init__(
        self,
        root: Path,
        *,
        annotations: str | Mapping[str, str],
        images: str | Mapping[str, str] = "images",
        objects: str = "all",
        margin: float = 0.0,
        crowd: str = "skip",
    ) -> None:
        require_choice("data.objects", objects, OBJECTS)
        require_choice("data.crowd", crowd, CROWD)
        require_margin(margin)
        self.root = root
        self.objects = objects
        self.margin = margin
        self.crowd = crowd
        files = {"": annotations} if isinstance(annotations, str) else dict(annotations)
        folders = dict.fromkeys(files, images) if isinstance(images, str) else dict(images)
        for part in (part for part in [*files, *folders] if part):
            if part not in SPLITS:
                raise UserError(f"data.annotations and data.images name a part {part!r}: {did_you_mean(part, SPLITS)}")
        if not files or files.keys() != folders.keys():
            raise UserError(
                f"data.images={images} and data.annotations={annotations} must name the same parts: use "
                "data.annotations={train:FILE,val:FILE} and one folder, or data.images={train:FOLDER,val:FOLDER}"
            )
        self.files = files
        self.folders = {part: sub_folder("images", folder) for part, folder in folders.items()}

    def prepare(self) -> None:
        """Nothing to make: the files are the user's."""

    def read(self, classes: Sequence[str] | None = None) -> tuple[Samples, list[Problem]]:
        """List the boxes; what cannot be used comes back as problems.

        Raises:
            UserError: A file is missing or malformed, an image is in two parts, none exists, or a class is not among
                the given `classes` or those of the training part.
        """
        require_folder(self.root)
        rows: list[_Row] = []
        problems: list[Problem] = []
        for part, file in self.files.items():
            rows += self._part(part, self._found(file), problems)
        rows = self._existing(self._in_one_part(rows), problems)
        if not rows and not problems:
            raise UserError(f"{', '.join(self.files.values())} has no annotation: name another data.annotations=...")
        splits = np.array([row.split for row in rows], dtype=np.int8)
        what = f"{', '.join(self.files.values())} has the category"
        classes, labels = match_classes([row.name for row in rows], splits, classes, what)
        paths, boxes = [row.path for row in rows], [row.box for row in rows]
        return Samples.build(self.root, classes, paths, labels, boxes=boxes, splits=splits), problems

    def _found(self, file: str) -> Path:
        for path in (self.root / file, Path(file)):
            if path.is_file():
                return path
        raise UserError(f"{self.root / file} does not exist: name the COCO file with data.annotations=...")

    def _part(self, part: str, file: Path, problems: list[Problem]) -> list[_Row]:
        split = SPLITS.index(part) if part else UNASSIGNED
        images = read_instances(file, self.folders[part], self.root, problems, with_crowd=self.crowd == "keep")
        if unlabelled := sum(not objects for objects in images.values()):
            log.warning("%s: %d images have no box that can be used, and are left out", file, unlabelled)
        return [
            _Row(path, item.name, with_margin(item.box, self.margin), split)
            for path, objects in images.items()
            for item in choose(objects, self.objects)
        ]

    def _in_one_part(self, rows: list[_Row]) -> list[_Row]:
        parts: dict[str, int] = {}
        for row in rows:
            if parts.setdefault(row.path, row.split) != row.split:
                raise UserError(
                    f"{row.path} is in {SPLITS[parts[row.path]]} and in {SPLITS[row.split]}: take it out of one of "
                    "data.annotations, or name a folder for each part with data.images={train:FOLDER,val:FOLDER}"
                )
        return rows

    def _existing(self, rows: list[_Row], problems: list[Problem]) -> list[_Row]:
        files = Listing(self.root)
        existing = [row for row in rows if row.path in files]
        if rows and not existing:
            raise UserError(
                f"none of the images exists, {self.root / rows[0].path} first: name their folder below {self.root} "
                "with data.images=..."
            )
        missing = dict.fromkeys(row.path for row in rows if row.path not in files)
        problems += [Problem(path, "no such file") for path in missing]
        return existing
