"""Images with one PASCAL VOC XML each: one sample per annotated box."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element, ParseError

import pandas as pd
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import parse

from classifier.data.datamodule import ClassificationDataModule
from classifier.data.image import Box
from classifier.data.image_folder import is_image, list_files, require_folder
from classifier.data.samples import (
    BOX,
    FAR,
    OBJECTS,
    SPLITS,
    choose_objects,
    list_paths,
    mark,
    require_margin,
    sub_folder,
    with_margin,
)
from classifier.errors import UserError, require_choice

log = logging.getLogger(__name__)

LISTS = ("train", "val", "trainval", "test")


class AnnotationCropDataModule(ClassificationDataModule):
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
        root: str | Path,
        *,
        images: str = "images",
        annotations: str = "annotations",
        image_sets: str | None = None,
        objects: str = "all",
        margin: float = 0.0,
        class_from: str = "name",
        difficult: str = "keep",
        truncated: str = "keep",
        **settings: Any,
    ) -> None:
        super().__init__(root, **settings)
        require_choice("data.objects", objects, OBJECTS)
        require_choice("data.class_from", class_from, ("name", "folder"))
        require_choice("data.difficult", difficult, ("keep", "skip"))
        require_choice("data.truncated", truncated, ("keep", "skip"))
        require_margin(margin)
        self.images = sub_folder("images", images)
        self.annotations = sub_folder("annotations", annotations)
        self.image_sets = None if image_sets is None else self.root / sub_folder("image_sets", image_sets)
        self.objects = objects
        self.margin = margin
        self.class_from = class_from
        self.difficult = difficult
        self.truncated = truncated

    def list_samples(self) -> pd.DataFrame:
        """List the boxes; an annotation that cannot be used is a problem.

        Raises:
            UserError: A folder or list is missing or holds no annotation.
        """
        require_folder(self.root)
        for key, folder in (("images", self.images), ("annotations", self.annotations)):
            if not (self.root / folder).is_dir():
                raise UserError(f"{self.root / folder} does not exist: name the folder with data.{key}=...")
        parts = None if self.image_sets is None else read_image_sets(self.image_sets)
        images = _by_stem(self.images, filter(is_image, list_files(self.root, self.images)))
        files = list_files(self.root, self.annotations)
        annotations = _by_stem(self.annotations, (path for path in files if Path(path).suffix.lower() in ("", ".xml")))
        if not annotations:
            raise UserError(f"{self.root / self.annotations} holds no annotation: use data.annotations=...")
        rows: list[tuple[Any, ...]] = []
        for stem in sorted(annotations.keys() if parts is None else annotations.keys() & parts.keys()):
            found = images.get(stem, [])
            part = None if parts is None else parts[stem]
            try:
                rows += [(found[0], name, *box, part, None) for name, box in self._objects(annotations[stem], found)]
            except (ValueError, OSError) as error:
                rows.append((annotations[stem][0], "", 0, 0, 0, 0, part, str(error)))
        for stem in sorted(set() if parts is None else parts.keys() - annotations.keys()):
            reason = f"is listed in {self.image_sets}, but has no annotation in {self.root / self.annotations}"
            rows.append((stem, "", 0, 0, 0, 0, None, reason))
        left_out = len(images.keys() - annotations.keys()) if parts is None else len(annotations.keys() - parts.keys())
        if left_out:
            what = "images have no annotation" if parts is None else "annotations are in no list"
            log.warning("%s: %d %s, and are left out", self.root, left_out, what)
        return self._table(rows)

    def _objects(self, annotations: list[str], images: list[str]) -> list[tuple[str, Box]]:
        """Class and box of the objects of one image.

        Raises:
            ValueError: It has no image or several, or its annotation cannot be used.
        """
        if not images:
            raise ValueError(f"no image of this name in {self.root / self.images}")
        for files in (images, annotations):
            if len(files) > 1:
                both = " and ".join(files[:2])
                raise ValueError(f"{both} have the same name, so that it is unclear what belongs together: rename one")
        skipped = {mark for mark in ("difficult", "truncated") if getattr(self, mark) == "skip"}
        found = [item for item in read_annotation(self.root / annotations[0]) if not item.marks & skipped]
        if self.class_from == "folder":
            return [(Path(images[0]).parent.name, item.box) for item in found]
        if not all(item.name for item in found):
            raise ValueError("object without a <name>: use data.class_from=folder")
        return [(item.name, item.box) for item in found]

    def _table(self, rows: list[tuple[Any, ...]]) -> pd.DataFrame:
        table = pd.DataFrame(rows, columns=["path", "label", *BOX, "split", "problem"])
        reasons = table.pop("problem").astype("str")
        table = list_paths(table.pop("path"), table.pop("label"), **table)
        table = table.astype({"split": "str", **dict.fromkeys(BOX, "int32")})
        return with_margin(choose_objects(mark(table, reasons.notna(), reasons), self.objects), self.margin)


class VocObject(NamedTuple):
    """An annotated object: name, box, and which of `difficult` and `truncated` it is marked as."""

    name: str
    box: Box
    marks: set[str]


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
    objects = [] if root is None else [_read_object(element) for element in root.iter("object")]
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
    marks = {mark for mark in ("difficult", "truncated") if (element.findtext(mark) or "").strip() == "1"}
    return VocObject(name, (x1 - 1, y1 - 1, x2, y2), marks)


def read_image_sets(folder: Path) -> dict[str, str]:
    """Name of an image, without its suffix -> its part.

    What trainval.txt lists and val.txt does not is for training. The lists of single classes, such as
    aeroplane_train.txt, are not looked at.

    Raises:
        UserError: There is no list, it cannot be read, or an image is in two parts.
    """
    lists = {name: _read_list(folder / f"{name}.txt") for name in LISTS}
    if not any(lists.values()):
        raise UserError(
            f"{folder} has none of {', '.join(f'{name}.txt' for name in LISTS)} with names in it: "
            "name the folder with data.image_sets=..., or use data.image_sets=null"
        )
    known = {*lists["train"], *lists["val"]}
    lists["train"] += [name for name in lists["trainval"] if name not in known]
    parts: dict[str, str] = {}
    for split in SPLITS:
        for name in lists[split]:
            if (other := parts.setdefault(name, split)) != split:
                raise UserError(f"{folder} lists {name} for {other} and for {split}: take it out of one of the lists")
    return parts


def _read_list(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines() if path.is_file() else []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the list {path} ({error}): mend it, or use data.image_sets=null") from error
    return [name for line in lines if (name := line.strip())]


def _by_stem(folder: str, paths: Iterable[str]) -> dict[str, list[str]]:
    """Path below `folder` without its suffix -> the paths that have it."""
    found: dict[str, list[str]] = {}
    for path in paths:
        found.setdefault(Path(path).relative_to(folder).with_suffix("").as_posix(), []).append(path)
    return found
