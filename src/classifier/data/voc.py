"""Images with one PASCAL VOC XML each: one sample per annotated box.

Source: M. Everingham et al., The PASCAL Visual Object Classes Challenge, IJCV 2010 (the format; no data here).
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import parse

from classifier.data.folder import image_files, require_folder
from classifier.data.samples import Problem, Samples
from classifier.errors import UserError, did_you_mean

log = logging.getLogger(__name__)

OBJECTS = ("all", "largest", "first")
CLASS_FROM = ("name", "folder")
FAR = 1 << 24  # pixels; keeps boxes, with any margin, in int32


class VocObject(NamedTuple):
    """An annotated object: its class name and its box, (x1, y1, x2, y2) in stored pixels, half-open."""

    name: str
    box: tuple[int, int, int, int]

    @property
    def area(self) -> int:
        return (self.box[2] - self.box[0]) * (self.box[3] - self.box[1])


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
    return VocObject(name, (x1 - 1, y1 - 1, x2, y2))


def with_margin(box: tuple[int, int, int, int], margin: float) -> tuple[int, int, int, int]:
    """`box` grown on each side by `margin` times its width or height; it may then leave the image."""
    x1, y1, x2, y2 = box
    dx, dy = round((x2 - x1) * margin), round((y2 - y1) * margin)
    return (x1 - dx, y1 - dy, x2 + dx, y2 + dy)


class VocSource:
    """root/<images>/** with root/<annotations>/**, one XML (or extension-less) file of the same relative name each.

    Boxes are cut at the image's edge later, when the image's true size is read.

    Args:
        images, annotations: Folders below `root`.
        objects: Which boxes of an image become samples: `all`, the `largest` or the `first`.
        margin: Added on each side, as a fraction of the box's width and height.
        class_from: The class is the object's `name`, or the `folder` that the image lies in.
    """

    def __init__(
        self,
        root: Path,
        *,
        images: str = "images",
        annotations: str = "annotations",
        objects: str = "all",
        margin: float = 0.0,
        class_from: str = "name",
    ) -> None:
        if objects not in OBJECTS:
            raise UserError(f"data.objects={objects} is unknown: {did_you_mean(objects, OBJECTS)}")
        if class_from not in CLASS_FROM:
            raise UserError(f"data.class_from={class_from} is unknown: {did_you_mean(class_from, CLASS_FROM)}")
        if margin < 0:
            raise UserError(f"data.margin={margin} must not be negative")
        self.root = root
        self.images = root / images
        self.annotations = root / annotations
        self.objects = objects
        self.margin = margin
        self.class_from = class_from

    def prepare(self) -> None:
        """Nothing to make: the files are the user's."""

    def read(self, classes: Sequence[str] | None = None) -> tuple[Samples, list[Problem]]:
        """List the boxes; what cannot be used comes back as problems.

        Raises:
            UserError: A folder is missing or holds no annotation, or a class is not among the given `classes`.
        """
        require_folder(self.root)
        for folder, key in ((self.images, "images"), (self.annotations, "annotations")):
            if not folder.is_dir():
                raise UserError(f"{folder} does not exist: name the folder below {self.root} with data.{key}=...")
        images = {path.relative_to(self.images).with_suffix("").as_posix(): path for path in image_files(self.images)}
        rows: list[tuple[str, str, tuple[int, int, int, int]]] = []
        problems: list[Problem] = []
        used: set[str] = set()
        for annotation in _annotation_files(self.annotations):
            stem = annotation.relative_to(self.annotations).with_suffix("").as_posix()
            image = images.get(stem)
            try:
                if image is None:
                    raise ValueError(f"no image {self.images / stem}.* for this annotation")
                used.add(stem)
                objects = self._chosen(read_annotation(annotation))
                names = [item.name if self.class_from == "name" else image.parent.name for item in objects]
                if not all(names):
                    raise ValueError("object without a <name>: use data.class_from=folder")
                path = image.relative_to(self.root).as_posix()
                boxes = [with_margin(item.box, self.margin) for item in objects]
                rows += [(path, name, box) for name, box in zip(names, boxes, strict=True)]
            except (ValueError, OSError) as error:
                problems.append(Problem(annotation.relative_to(self.root).as_posix(), str(error)))
        if not rows and not problems:
            raise UserError(f"{self.annotations} holds no annotation: name the folder with data.annotations=...")
        if unlabelled := len(images) - len(used):
            log.warning("%s: %d images have no annotation and are left out", self.images, unlabelled)
        return self._table(rows, classes), problems

    def _chosen(self, objects: list[VocObject]) -> list[VocObject]:
        if self.objects == "largest":
            return [max(objects, key=lambda item: item.area)]
        return objects[:1] if self.objects == "first" else objects

    def _table(self, rows: list[tuple[str, str, tuple[int, int, int, int]]], classes: Sequence[str] | None) -> Samples:
        names = sorted({name for _, name, _ in rows})
        classes = names if classes is None else classes
        if unknown := [name for name in names if name not in classes]:
            raise UserError(
                f"{self.annotations} has objects of the class {unknown[0]!r}, which training does not know: "
                "remove them, or name another folder with data.root=..."
            )
        labels = {name: label for label, name in enumerate(classes)}
        return Samples.build(
            self.root,
            classes,
            [path for path, _, _ in rows],
            [labels[name] for _, name, _ in rows],
            boxes=[box for _, _, box in rows],
        )


def _annotation_files(folder: Path) -> list[Path]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return sorted(path for path in files if path.suffix.lower() in ("", ".xml"))
