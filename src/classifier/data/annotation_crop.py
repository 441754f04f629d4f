"""Images with one PASCAL VOC XML each: one sample per annotated box."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError

import numpy as np
import pandas as pd
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import parse

from classifier.data import boxes, samples
from classifier.data.datamodule import ClassificationDataModule
from classifier.data.listing import is_image, list_files, require_folder, sub_folder
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
        boxes.require_crops(objects, margin)
        require_choice("data.class_from", class_from, ("name", "folder"))
        marks = {"difficult": difficult, "truncated": truncated}
        for mark, choice in marks.items():
            require_choice(f"data.{mark}", choice, ("keep", "skip"))
        folders = {"images": images, "annotations": annotations}
        self.folders = {key: sub_folder(key, folder) for key, folder in folders.items()}
        self.image_sets = image_sets and self.root / sub_folder("image_sets", image_sets)
        self.objects = objects
        self.margin = margin
        self.class_from = class_from
        self.skipped_marks = [mark for mark, choice in marks.items() if choice == "skip"]

    def list_samples(self) -> pd.DataFrame:
        """List the boxes; an annotation that cannot be used is a problem.

        Raises:
            UserError: A folder or list is missing or holds no annotation.
        """
        require_folder(self.root)
        images, annotations = self._by_stem("images"), self._by_stem("annotations")
        parts = read_image_sets(self.image_sets) if self.image_sets else dict.fromkeys(annotations)
        rows: list[tuple[Any, ...]] = []
        for stem, part in sorted(parts.items()):
            found, notes = images.get(stem, []), annotations.get(stem, [])
            try:
                if len(found) != 1 or len(notes) != 1:
                    raise ValueError(f"it needs one image and one annotation, and has {[*found, *notes]}")
                objects = read_annotation(self.root / notes[0], self.skipped_marks)
                if self.class_from == "folder":
                    objects = [(Path(found[0]).parent.name, box) for _, box in objects]
                if not all(name for name, _ in objects):
                    raise ValueError("object without a <name>: use data.class_from=folder")
                rows += [(found[0], name, box, part, None) for name, box in objects]
            except (ValueError, OSError) as error:
                rows.append((notes[0] if notes else stem, "", [0] * 4, part, str(error)))
        for key, stems in (("images", images), ("annotations", annotations)):
            if left_out := len(stems.keys() - parts.keys()):
                log.warning("%s: %d %s are not listed, and are left out", self.root / self.folders[key], left_out, key)
        table = pd.DataFrame(rows, columns=["path", "label", "box", "split", "problem"])
        sides = np.array(table.pop("box").tolist(), float).reshape(-1, 4)
        table = table.astype({"split": "str", "problem": "str"})
        table = samples.list_paths(table.pop("path"), table.pop("label"), **table)
        return boxes.crops(boxes.with_covering_boxes(table, sides), self.objects, self.margin)

    def _by_stem(self, key: str) -> dict[str, list[str]]:
        """Path below the folder data.`key`, without its suffix -> the files that have it."""
        folder, found = self.folders[key], dict[str, list[str]]()
        for path in list_files(self.root, folder):
            if is_image(path) if key == "images" else Path(path).suffix.lower() in ("", ".xml"):
                found.setdefault(Path(path).relative_to(folder).with_suffix("").as_posix(), []).append(path)
        if not found:
            raise UserError(f"{self.root / folder} has no {key}: name their folder below data.root with data.{key}=...")
        return found


def read_annotation(path: Path, skipped_marks: Sequence[str] = ()) -> list[tuple[str, list[int]]]:
    """Name and box of the objects of one VOC file, without those marked as one of `skipped_marks`.

    Boxes are 0-based and half-open: (xmin - 1, ymin - 1, xmax, ymax).

    Raises:
        ValueError: Malformed XML, entities or a DTD with them (refused unread), no object, a box that is missing,
            not numeric or empty.
    """
    try:
        objects = parse(path).findall(".//object")
    except (ParseError, LookupError) as error:  # LookupError: an encoding that Python does not know
        raise ValueError(f"malformed XML ({error})") from error
    except DefusedXmlException as error:
        raise ValueError(f"XML with entity definitions is refused ({type(error).__name__})") from error
    if not objects:
        raise ValueError("no <object> with a <bndbox>")
    found = []
    for element in objects:
        texts = [element.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
        try:
            x1, y1, x2, y2 = (round(float(text or "")) for text in texts)
        except (ValueError, OverflowError) as error:
            raise ValueError(f"the <bndbox> {texts} is not of four numbers") from error
        if x2 < x1 or y2 < y1:
            raise ValueError(f"empty box: x {x1} to {x2}, y {y1} to {y2}")
        # other values than 0 and 1 occur, as `Unspecified` in VOC 2007
        if not any((element.findtext(mark) or "").strip() == "1" for mark in skipped_marks):
            found.append(((element.findtext("name") or "").strip(), [x1 - 1, y1 - 1, x2, y2]))
    return found


def read_image_sets(folder: Path) -> dict[str, str]:
    """Name of an image, without its suffix -> its part.

    What trainval.txt lists and val.txt does not is for training. The lists of single classes, such as
    aeroplane_train.txt, are not looked at.

    Raises:
        UserError: There is no list, it cannot be read, or an image is in two parts.
    """
    lists: dict[str, list[str]] = {}
    for name in ("train", "val", "test", "trainval"):
        try:
            lines = (folder / f"{name}.txt").read_text("utf-8-sig").splitlines()
            lists[name] = [line.strip() for line in lines if line.strip()]
        except FileNotFoundError:
            lists[name] = []
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {folder}/{name}.txt ({error}): use data.image_sets=null") from error
    known = {*lists["train"], *lists["val"]}
    lists["train"] += [name for name in lists["trainval"] if name not in known]
    parts: dict[str, str] = {}
    for split in samples.SPLITS:
        for name in lists[split]:
            if (other := parts.setdefault(name, split)) != split:
                raise UserError(f"{folder} lists {name} for {other} and for {split}: take it out of one of them")
    if not parts:
        raise UserError(f"{folder} lists no image in {', '.join(lists)} (.txt): use data.image_sets=null, or another")
    return parts
