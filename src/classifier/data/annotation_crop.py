"""Images with one PASCAL VOC XML each: one sample per annotated box."""

import logging
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element, ParseError

import pandas as pd
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import parse

from classifier.data import samples
from classifier.data.datamodule import ClassificationDataModule
from classifier.data.image import Box
from classifier.data.image_folder import is_image, list_files, require_folder
from classifier.errors import UserError, require_choice

log = logging.getLogger(__name__)


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
        require_choice("data.objects", objects, samples.OBJECTS)
        require_choice("data.class_from", class_from, ("name", "folder"))
        marks = {"difficult": difficult, "truncated": truncated}
        for mark, choice in marks.items():
            require_choice(f"data.{mark}", choice, ("keep", "skip"))
        samples.require_margin(margin)
        self.images = samples.sub_folder("images", images)
        self.annotations = samples.sub_folder("annotations", annotations)
        self.image_sets = image_sets and self.root / samples.sub_folder("image_sets", image_sets)
        self.objects = objects
        self.margin = margin
        self.class_from = class_from
        self.skipped_marks = {mark for mark, choice in marks.items() if choice == "skip"}

    def list_samples(self) -> pd.DataFrame:
        """List the boxes; an annotation that cannot be used is a problem.

        Raises:
            UserError: A folder or list is missing or holds no annotation.
        """
        require_folder(self.root)
        images = self._by_stem("images", self.images)
        annotations = self._by_stem("annotations", self.annotations)
        parts = read_image_sets(self.image_sets) if self.image_sets else dict.fromkeys(annotations)
        rows: list[tuple[Any, ...]] = []
        for stem, part in sorted(parts.items()):
            files, found = annotations.get(stem, []), images.get(stem, [])
            try:
                rows += [(found[0], name, *box, part, None) for name, box in self._objects(files, found)]
            except (ValueError, OSError) as error:
                rows.append((files[0] if files else stem, "", 0, 0, 0, 0, part, str(error)))
        for what, folder, stems in (("annotations", self.annotations, annotations), ("images", self.images, images)):
            if left_out := len(stems.keys() - parts.keys()):
                log.warning("%s: %d %s are not listed, and are left out", self.root / folder, left_out, what)
        table = pd.DataFrame(rows, columns=["path", "label", *samples.BOX, "split", "problem"])
        table = table.astype({"split": "str", "problem": "str", **dict.fromkeys(samples.BOX, "int32")})
        table = samples.list_paths(table.pop("path"), table.pop("label"), **table)
        return samples.with_margin(samples.choose_objects(table, self.objects), self.margin)

    def _by_stem(self, key: str, folder: str) -> dict[str, list[str]]:
        """Path below `folder` without its suffix -> the files of the setting data.`key` that have it."""
        found: dict[str, list[str]] = {}
        for path in list_files(self.root, folder):
            if is_image(path) if key == "images" else Path(path).suffix.lower() in ("", ".xml"):
                found.setdefault(Path(path).relative_to(folder).with_suffix("").as_posix(), []).append(path)
        if not found:
            raise UserError(f"{self.root / folder} has no {key}: name their folder below data.root with data.{key}=...")
        return found

    def _objects(self, annotations: list[str], images: list[str]) -> list[tuple[str, Box]]:
        """Class and box of the objects of one image.

        Raises:
            ValueError: It has no image or annotation, or several, or its annotation cannot be used.
        """
        for what, files, folder in (("image", images, self.images), ("annotation", annotations, self.annotations)):
            if len(files) != 1:
                found = f"several, {' and '.join(files[:2])}: rename one" if files else "none"
                raise ValueError(f"it needs one {what} of this name in {self.root / folder}, and has {found}")
        objects = [item for item in read_annotation(self.root / annotations[0]) if not item.marks & self.skipped_marks]
        if self.class_from == "folder":
            return [(Path(images[0]).parent.name, item.box) for item in objects]
        if not all(item.name for item in objects):
            raise ValueError("object without a <name>: use data.class_from=folder")
        return [(item.name, item.box) for item in objects]


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
    texts = [element.findtext(f"bndbox/{tag}") for tag in ("xmin", "ymin", "xmax", "ymax")]
    try:
        x1, y1, x2, y2 = (max(-samples.FAR, min(samples.FAR, round(float(text or "")))) for text in texts)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"object {name!r} has the <bndbox> {texts}, which is not of four numbers") from error
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
    lists: dict[str, list[str]] = {name: [] for name in ("train", "val", "trainval", "test")}
    for name, names in lists.items():
        if (file := folder / f"{name}.txt").is_file():
            try:
                names += [line.strip() for line in file.read_text("utf-8-sig").splitlines() if line.strip()]
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"cannot read {file} ({error}): mend it, or use data.image_sets=null") from error
    if not any(lists.values()):
        files = ", ".join(f"{name}.txt" for name in lists)
        raise UserError(
            f"{folder} lists no image in {files}: name the lists with data.image_sets=..., or use data.image_sets=null"
        )
    known = {*lists["train"], *lists["val"]}
    lists["train"] += [name for name in lists["trainval"] if name not in known]
    parts: dict[str, str] = {}
    for split in samples.SPLITS:
        for name in lists[split]:
            if (other := parts.setdefault(name, split)) != split:
                raise UserError(f"{folder} lists {name} for {other} and for {split}: take it out of one of them")
    return parts
