"""Images with one PASCAL VOC XML each: one sample per annotated box."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import parse

from classifier.data.image import Box
from classifier.data.image_folder import image_files, require_folder
from classifier.data.samples import (
    FAR,
    OBJECTS,
    SPLITS,
    UNASSIGNED,
    BoxedObject,
    Problem,
    Samples,
    choose,
    match_classes,
    require_margin,
    sub_folder,
    with_margin,
)
from classifier.errors import UserError, require_choice

log = logging.getLogger(__name__)


class VocObject(NamedTuple):
    """An object with its marks: `difficult` to recognise, or `truncated` by the edge of the image."""

    boxed: BoxedObject
    difficult: bool
    truncated: bool


def read_annotation(path: Path) -> list[VocObject]:
    """The objects of one VOC file, boxes 0-based and half-open: (xmin - 1, ymin - 1, xmax, ymax).

    Raises:
        ValueError: Malformed XML, entities or a DTD with them (refused unread), no object, a box that is missing,
            not numeric or empty.
    """
    try:
        root = parse(path).getroot()
    except (ParseError, LookupError) as error:  # LookupError: an encoding that Python does not know
        raise ValueError(f"malformed XML ({error})") from error
    except DefusedXmlException as error:
        raise ValueError(f"XML with entity definitions is refused ({type(error).__name__})") from error
    assert root is not None
    objects = [_read_object(element) for element in root.iter("object")]
    if not objects:
        raise ValueError("no <object> with a <bndbox>")
    return objects


def _read_object(element: Element) -> VocObject:
    name = (element.findtext("name") or "").strip()
    corners: list[int] = []
    for tag in ("xmin", "ymin", "xmax", "ymax"):
        text = element.findtext(f"bndbox/{tag}")
        if text is None:
            raise ValueError(f"object {name!r} lacks <{tag}> in its <bndbox>")
        try:
            corners.append(max(-FAR, min(FAR, round(float(text)))))
        except (ValueError, OverflowError) as error:
            raise ValueError(f"object {name!r} has <{tag}>{text}</{tag}>, which is not a number") from error
    x1, y1, x2, y2 = corners
    if x2 < x1 or y2 < y1:
        raise ValueError(f"object {name!r} has an empty box: x {x1} to {x2}, y {y1} to {y2}")
    # other values occur, as `Unspecified` in VOC 2007
    difficult, truncated = ((element.findtext(mark) or "").strip() == "1" for mark in ("difficult", "truncated"))
    return VocObject(BoxedObject(name, (x1 - 1, y1 - 1, x2, y2)), difficult, truncated)


LISTS = ("train", "val", "trainval", "test")


def read_image_sets(folder: Path) -> dict[str, int]:
    """Name of an image, without its suffix -> its part, as a position in `SPLITS`.

    What trainval.txt lists and val.txt does not is for training. The lists of single classes, such as
    aeroplane_train.txt, are not looked at.

    Raises:
        UserError: There is no list, it cannot be read, or an image is in two parts.
    """
    lists = {name: _names(folder / f"{name}.txt") for name in LISTS if (folder / f"{name}.txt").is_file()}
    if not any(lists.values()):
        raise UserError(
            f"{folder} has none of {', '.join(f'{name}.txt' for name in LISTS)} with names in it: "
            "name the folder with data.image_sets=..., or use data.image_sets=null"
        )
    trainval = lists.pop("trainval", [])
    known = set(lists.get("train", [])) | set(lists.get("val", []))
    lists["train"] = lists.get("train", []) + [name for name in trainval if name not in known]
    parts: dict[str, int] = {}
    for number, split in enumerate(SPLITS):
        for name in lists.get(split, []):
            other = parts.setdefault(name, number)
            if other != number:
                raise UserError(
                    f"{folder} lists {name} for {SPLITS[other]} and for {split}: take it out of one of the lists"
                )
    return parts


def _names(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the list {path} ({error}): mend it, or use data.image_sets=null") from error
    return [name for line in lines if (name := line.strip())]


CLASS_FROM = ("name", "folder")
MARKED = ("keep", "skip")


class _Row(NamedTuple):
    path: str
    name: str
    box: Box
    split: int


class VocSource:
    """root/<images>/** with root/<annotations>/**, one XML (or extension-less) file of the same relative name each.

    Boxes are cut at the image's edge later, when the image's true size is read.

    Args:
        images, annotations: Folders below `root`.
        image_sets: Folder below `root` with train.txt, val.txt, trainval.txt, test.txt, which list the images of each
            part; None where all annotations are meant, and no part is prescribed.
        objects: Which boxes of an image become samples: `all`, the `largest` or the `first`.
        margin: Added on each side, as a fraction of the box's width and height.
        class_from: The class is the object's `name`, or the `folder` that the image lies in.
        difficult, truncated: `keep` or `skip` objects that are marked so.
    """

    def __init__(
        self,
        root: Path,
        *,
        images: str = "images",
        annotations: str = "annotations",
        image_sets: str | None = None,
        objects: str = "all",
        margin: float = 0.0,
        class_from: str = "name",
        difficult: str = "keep",
        truncated: str = "keep",
    ) -> None:
        require_choice("data.objects", objects, OBJECTS)
        require_choice("data.class_from", class_from, CLASS_FROM)
        require_choice("data.difficult", difficult, MARKED)
        require_choice("data.truncated", truncated, MARKED)
        require_margin(margin)
        self.root = root
        self.images = root / sub_folder("images", images)
        self.annotations = root / sub_folder("annotations", annotations)
        self.image_sets = None if image_sets is None else root / sub_folder("image_sets", image_sets)
        self.objects = objects
        self.margin = margin
        self.class_from = class_from
        self.difficult = difficult
        self.truncated = truncated

    def prepare(self) -> None:
        """Nothing to make: the files are the user's."""

    def read(self, classes: Sequence[str] | None = None) -> tuple[Samples, list[Problem]]:
        """List the boxes; what cannot be used comes back as problems.

        Raises:
            UserError: A folder or list is missing or holds no annotation, or a class is not among the given `classes`.
        """
        require_folder(self.root)
        for folder, key in ((self.images, "images"), (self.annotations, "annotations")):
            if not folder.is_dir():
                raise UserError(f"{folder} does not exist: name the folder below {self.root} with data.{key}=...")
        parts = None if self.image_sets is None else read_image_sets(self.image_sets)
        images = _by_stem(self.images, list(image_files(self.images)))
        annotations = _by_stem(self.annotations, _annotation_files(self.annotations))
        if not annotations:
            raise UserError(f"{self.annotations} holds no annotation: name the folder with data.annotations=...")
        rows: list[_Row] = []
        problems: list[Problem] = []
        for stem, files in annotations.items():
            if parts is not None and stem not in parts:
                continue
            try:
                split = UNASSIGNED if parts is None else parts[stem]
                rows += self._rows(stem, files, images.get(stem, []), split)
            except (ValueError, OSError) as error:
                problems.append(Problem(files[0].relative_to(self.root).as_posix(), str(error)))
        if parts is not None:
            problems += [
                Problem(stem, f"is listed in {self.image_sets}, but has no annotation in {self.annotations}")
                for stem in parts
                if stem not in annotations
            ]
        self._count_left_out(images, annotations, parts)
        return self._table(rows, classes), problems

    def _rows(self, stem: str, annotations: list[Path], images: list[Path], split: int) -> list[_Row]:
        """The samples of one image.

        Raises:
            ValueError: It has no image or several, or its annotation cannot be used.
        """
        if not images:
            raise ValueError(f"no image {self.images / stem}.* for this annotation")
        for files in (images, annotations):
            if len(files) > 1:
                both = " and ".join(path.relative_to(self.root).as_posix() for path in files[:2])
                raise ValueError(f"{both} have the same name, so that it is unclear what belongs together: rename one")
        (image,) = images
        found = [
            item.boxed
            for item in read_annotation(annotations[0])
            if not (item.difficult and self.difficult == "skip") and not (item.truncated and self.truncated == "skip")
        ]
        path = image.relative_to(self.root).as_posix()
        rows = [self._row(path, image, item, split) for item in choose(found, self.objects)]
        if not all(row.name for row in rows):
            raise ValueError("object without a <name>: use data.class_from=folder")
        return rows

    def _row(self, path: str, image: Path, item: BoxedObject, split: int) -> _Row:
        name = item.name if self.class_from == "name" else image.parent.name
        return _Row(path, name, with_margin(item.box, self.margin), split)

    def _count_left_out(
        self, images: dict[str, list[Path]], annotations: dict[str, list[Path]], parts: dict[str, int] | None
    ) -> None:
        if parts is not None:
            if unlisted := sum(stem not in parts for stem in annotations):
                log.info("%s: %d annotations are in no list, and left out", self.image_sets, unlisted)
        elif unlabelled := sum(stem not in annotations for stem in images):
            log.warning("%s: %d images have no annotation and are left out", self.images, unlabelled)

    def _table(self, rows: list[_Row], classes: Sequence[str] | None) -> Samples:
        splits = np.array([row.split for row in rows], dtype=np.int8)
        what = f"{self.annotations} has objects of the class"
        classes, labels = match_classes([row.name for row in rows], splits, classes, what, order=_text_order)
        paths, boxes = [row.path for row in rows], [row.box for row in rows]
        return Samples.build(self.root, classes, paths, labels, boxes=boxes, splits=splits)


def _text_order(names: Iterable[str]) -> list[str]:
    return sorted(set(names))


def _by_stem(folder: Path, files: list[Path]) -> dict[str, list[Path]]:
    """Relative path without its suffix -> the files that have it."""
    found: dict[str, list[Path]] = {}
    for path in files:
        found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
    return found


def _annotation_files(folder: Path) -> list[Path]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return sorted(path for path in files if path.suffix.lower() in ("", ".xml"))
