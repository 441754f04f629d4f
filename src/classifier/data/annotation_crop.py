"""Images with one PASCAL VOC XML each: one sample per annotated box."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from unicodedata import normalize
from xml.etree.ElementTree import ParseError

import numpy as np
import pandas as pd
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import parse

from classifier.data import samples
from classifier.data.boxes import SIZE, BoxReading
from classifier.data.datamodule import ClassificationDataModule
from classifier.data.image import require_file
from classifier.data.listing import is_image, list_files, require_folder, sub_folder
from classifier.errors import UserError, require_choice

log = logging.getLogger(__name__)

MOST_BYTES = 2_000_000  # of an annotation


class AnnotationCropDataModule(ClassificationDataModule):
    """root/<images>/** with root/<annotations>/**, one XML (or extension-less) file of the same relative name each.

    Boxes are cut at the image's edge later, when the image's true size is read.

    Args:
        images, annotations: Folders below `root`.
        image_sets: Folder below `root` with train.txt, val.txt, trainval.txt, test.txt, which list the images of each
            part; None where all annotations are meant. Parts are then folders that are called train, valid, test, if
            all of them are.
        class_from: The class is the object's `name`, or the `folder` that the image lies in.
        difficult, truncated: `keep` or `skip` objects that are marked so.
        box_unit, objects, margin, negatives, scale_boxes: See `BoxReading`.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        images: str = "images",
        annotations: str = "annotations",
        image_sets: str | None = None,
        class_from: str = "name",
        difficult: str = "keep",
        truncated: str = "keep",
        box_unit: str = "pixel",
        objects: str = "all",
        margin: float = 0.0,
        negatives: str | None = None,
        scale_boxes: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__(root, **settings)
        self.boxes = BoxReading("xyxy", box_unit, objects, margin, negatives, scale_boxes)
        self.margin = margin
        require_choice("data.class_from", class_from, ("name", "folder"))
        marks = {"difficult": difficult, "truncated": truncated}
        for mark, choice in marks.items():
            require_choice(f"data.{mark}", choice, ("keep", "skip"))
        folders = {"images": images, "annotations": annotations}
        self.folders = {key: sub_folder(key, folder) for key, folder in folders.items()}
        self.image_sets = image_sets and self.root / sub_folder("image_sets", image_sets)
        self.class_from = class_from
        self.skipped_marks = [mark for mark, choice in marks.items() if choice == "skip"]

    def list_samples(self) -> pd.DataFrame:
        """List the boxes; an annotation that cannot be used is a problem.

        Raises:
            UserError: A folder or list is missing or holds no annotation.
        """
        require_folder(self.root)
        images, annotations = self._by_stem("images"), self._by_stem("annotations")
        parts = read_image_sets(self.image_sets) if self.image_sets else folder_parts(annotations)
        rows: list[tuple[Any, ...]] = []
        for stem, part in sorted(parts.items()):
            found, notes = images.get(stem, []), annotations.get(stem, [])
            try:
                if len(found) != 1 or len(notes) != 1:
                    raise ValueError(f"it needs one image and one annotation of its name, and has {[*found, *notes]}")
                size, objects = read_annotation(self.root / notes[0], self.skipped_marks)
                if self.class_from == "folder":
                    objects = [(Path(found[0]).parent.name, box) for _, box in objects]
                if not all(name for name, box in objects if any(box)):
                    raise ValueError("object without a <name>: use data.class_from=folder")
                rows += [(found[0], name, box, part, None, *size) for name, box in objects]
            except (ValueError, OSError, RecursionError) as error:
                rows.append((notes[0] if notes else stem, "", [0] * 4, part, str(error), 0, 0))
        for key, stems in (("images", images), ("annotations", annotations)):
            if left_out := len(stems.keys() - parts.keys()):
                log.warning("%s: %d %s are not listed, and are left out", self.root / self.folders[key], left_out, key)
        table = pd.DataFrame(rows, columns=["path", "label", "box", "split", "problem", *SIZE])
        numbers = np.array(table.pop("box").tolist(), float).reshape(-1, 4)
        if self.boxes.box_unit == "pixel":
            numbers[(numbers != 0).any(axis=1), :2] -= 1
        table = table.astype({"split": "str", "problem": "str"})
        table = samples.list_paths(table.pop("path"), table.pop("label"), **table)
        return self.boxes.read(table.assign(**dict(zip(samples.BOX, numbers.T, strict=True)))).reset_index(drop=True)

    def _by_stem(self, key: str) -> dict[str, list[str]]:
        """Path below the folder data.`key`, without its suffix -> the files that have it."""
        folder, found = self.folders[key], dict[str, list[str]]()
        # beside the images, a file without a suffix is a read-me or a licence
        suffixes = (".xml",) if self.folders["images"] == self.folders["annotations"] else ("", ".xml")
        for path in list_files(self.root, folder):
            if is_image(path) if key == "images" else Path(path).suffix.lower() in suffixes:
                stem = Path(path).relative_to(folder).with_suffix("").as_posix()
                found.setdefault(normalize("NFC", stem), []).append(path)  # a Mac writes the other form
        if not found:
            raise UserError(f"{self.root / folder} has no {key}: name their folder below data.root with data.{key}=...")
        return found


def read_annotation(path: Path, skipped_marks: Sequence[str] = ()) -> tuple[list[float], list[tuple[str, list[float]]]]:
    """Size of the image, and name and box of each object of one VOC file, without those marked as `skipped_marks`.

    Boxes are xmin, ymin, xmax, ymax as they stand there: 1-based and inclusive, where they are pixels. An image
    without objects has one without a name at 0, 0, 0, 0. What is not given, or is no number, is nan.

    Raises:
        ValueError: A file that is too large, malformed XML, entities or a DTD with them (refused unread), no objects.
        RecursionError: It nests too deep.
    """
    if (length := require_file(path)) > MOST_BYTES:
        raise ValueError(f"{length / 1e6:.0f} MB are no annotation of an image ({MOST_BYTES / 1e6:.0f} at most)")
    try:
        root: Any = parse(path).getroot()
    except (ParseError, LookupError) as error:  # LookupError: an encoding that Python does not know
        raise ValueError(f"malformed XML ({error})") from error
    except DefusedXmlException as error:
        raise ValueError(f"XML with entity definitions is refused ({type(error).__name__})") from error
    objects = root.findall(".//object")
    if not objects and root.tag != "annotation":
        raise ValueError("no <annotation>, and no <object> with a <bndbox>")
    found = []
    for element in objects:
        numbers = [_number(element.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")]
        # other values than 0 and 1 occur, as `Unspecified` in VOC 2007
        if not any((element.findtext(mark) or "").strip() == "1" for mark in skipped_marks):
            found.append(((element.findtext("name") or "").strip(), numbers))
    return [_number(root.findtext(f"size/{side}")) for side in SIZE], found if objects else [("", [0] * 4)]


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return np.nan


def folder_parts(stems: Iterable[str]) -> dict[str, str | None]:
    """Name of an image, without its suffix -> its part, where the first folder of each is called as a part is."""
    parts = {stem: samples.PART_WORDS.get(stem.partition("/")[0].lower()) for stem in stems}
    return parts if all("/" in stem and part for stem, part in parts.items()) else dict.fromkeys(parts)


def read_image_sets(folder: Path) -> dict[str, str | None]:
    """Name of an image, without its suffix -> its part.

    What trainval.txt lists and val.txt does not is for training. The lists of single classes, such as
    aeroplane_train.txt, are not looked at.

    Raises:
        UserError: There is no list, it cannot be read, or an image is in two parts.
    """
    lists: dict[str, list[str]] = {}
    for name in ("train", "val", "test", "trainval"):
        try:
            require_file(folder / f"{name}.txt")
            lines = normalize("NFC", (folder / f"{name}.txt").read_text("utf-8-sig")).splitlines()
            lists[name] = [line.strip() for line in lines if line.strip()]
        except FileNotFoundError:
            lists[name] = []
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {folder}/{name}.txt ({error}): use data.image_sets=null") from error
    known = {*lists["train"], *lists["val"]}
    lists["train"] += [name for name in lists["trainval"] if name not in known]
    parts: dict[str, str | None] = {}
    for split in samples.SPLITS:
        for name in lists[split]:
            if (other := parts.setdefault(name, split)) != split:
                raise UserError(f"{folder} lists {name} for {other} and for {split}: take it out of one of them")
    if not parts:
        raise UserError(f"{folder} lists no image in {', '.join(lists)} (.txt): use data.image_sets=null, or another")
    return parts
