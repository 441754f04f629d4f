"""Images with COCO's instances in JSON: one sample per annotated box.

Source: T.-Y. Lin et al., Microsoft COCO: Common Objects in Context, ECCV 2014 (the format; no data here).
"""

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from classifier.data import boxes, labels, samples
from classifier.data.datamodule import ClassificationDataModule
from classifier.data.listing import inside, mark_unusable, require_folder, sub_folder
from classifier.errors import UserError, require_choice

log = logging.getLogger(__name__)


class CocoDataModule(ClassificationDataModule):
    """The boxes that COCO files list, of images below `root`. Classes are the names of the categories that occur.

    With `task=multi_label`, the images themselves: the labels of one are the categories of its annotations, those of
    `iscrowd` among them, and an image without an annotation has none.

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
        boxes.require_crops(objects, margin)
        require_choice("data.crowd", crowd, ("skip", "keep"))
        self.objects = objects
        self.margin = margin
        self.crowd = crowd
        self.files = {"": annotations} if isinstance(annotations, str) else dict(annotations)
        folders = dict.fromkeys(self.files, images) if isinstance(images, str) else dict(images)
        if not self.files or self.files.keys() != folders.keys() or {*self.files} - {"", *samples.SPLITS}:
            example = "data.annotations={train:FILE,val:FILE,test:FILE} and a folder, or data.images={train:FOLDER,...}"
            raise UserError(f"{annotations} and images in {images} must name the same parts: use {example}")
        self.folders = {part: sub_folder("images", folder) for part, folder in folders.items()}

    def list_samples(self) -> pd.DataFrame:
        """List the boxes; those that cannot be used are problems.

        Raises:
            UserError: A file is missing or malformed, or no image exists.
        """
        require_folder(self.root)
        table = pd.concat([self._part(part, file) for part, file in self.files.items()], ignore_index=True)
        files = ", ".join(self.files.values())
        return mark_unusable(table, self.root, files, "data.annotations=... or data.images=...")

    def _part(self, part: str, name: str) -> pd.DataFrame:
        file = next((path for path in (self.root / name, Path(name)) if path.is_file()), self.root / name)
        try:
            content = json.loads(file.read_bytes())
            images = _entries(content, "images", ("id", "file_name"))
            names = _entries(content, "categories", ("id", "name"))
            table = _entries(content, "annotations", (), ("image_id", "category_id", "bbox", "iscrowd"))
            text = table[["image_id", "category_id"]].astype("str").fillna("null")
            for number, twice in names[names["id"].duplicated(keep=False)].groupby("id")["name"]:
                raise ValueError(f"the category id {number} is given to {' and '.join(map(repr, twice))}")
        except (OSError, ValueError, RecursionError) as error:  # ValueError: malformed, or not in Unicode
            raise UserError(f"cannot use {file} ({error}): mend it, or use another data.annotations=...") from error
        images["path"] = inside(images["file_name"], self.folders[part], self.root)
        for row in images.index[images["path"].isna() | images["id"].duplicated()][:1]:
            number, path = images.loc[row, ["id", "file_name"]]
            where = f"is not below data.root={self.root}, or whose id {number} is another's"
            raise UserError(f"images[{row}] of {file} is {path!r}, which {where}: use another data.images=...")
        if self.crowd == "skip" and self.task == labels.SINGLE:
            table = table[~table["iscrowd"].fillna(False).astype(bool)]
        places = "annotations[" + table.index.astype("str").to_series(table.index) + f"] of {file.name}: "
        sides = np.array([_corners(box) for box in table["bbox"]], float).reshape(-1, 4)
        text = text.loc[table.index]
        paths = text["image_id"].map(dict(zip(images["id"], images["path"], strict=True)))
        named = text["category_id"].map(dict(zip(names["id"], names["name"], strict=True)))
        table = pd.DataFrame({"path": paths.fillna(file.name), "label": named.fillna("")}, dtype="str")
        table = samples.mark(table, paths.isna(), "no image has the image_id " + text["image_id"])
        table = samples.mark(table, named.isna(), "no category has the category_id " + text["category_id"])
        if self.task == labels.SINGLE:
            table = boxes.with_covering_boxes(table, sides)
        if "problem" in table:
            table["problem"] = places + table["problem"]
        if self.task == labels.MULTI:
            without = images.loc[~images["path"].isin(table["path"]), ["path"]].assign(label="")
            table = pd.concat([labels.one_name_each(table), without], ignore_index=True)
            return table.assign(split=part) if part else table
        if unlabelled := len(images) - table["path"][samples.usable(table)].nunique():
            log.warning("%s: %d images have no box that can be used, and are left out", file, unlabelled)
        table = boxes.crops(table, self.objects, self.margin)
        return table.assign(split=part) if part else table


def _entries(content: Any, key: str, required: Sequence[str], optional: Sequence[str] = ()) -> pd.DataFrame:
    """The values of some keys of each entry of a list, those of the `required` as text.

    Raises:
        ValueError: There is no such list, or an entry lacks a required key.
    """
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"no list {key!r} of objects: is it a file of COCO instances?")
    keys = [*required, *optional]
    table = pd.DataFrame([[entry.get(name) for name in keys] for entry in entries], columns=keys, dtype=object)
    for row, name in zip(*np.nonzero(table[[*required]].isna()), strict=True):
        raise ValueError(f"{key}[{row}] has no {keys[name]}")
    return table.astype(dict.fromkeys(required, "str"))


def _corners(box: Any) -> list[float]:
    """COCO's x, y, width, height as x1, y1, x2, y2; nan where it is not four numbers."""
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(side, (int, float)) for side in box):
        return [np.nan] * 4
    with suppress(OverflowError):  # an integer of hundreds of digits
        x, y, width, height = map(float, box)
        return [x, y, x + width, y + height]
    return [np.nan] * 4
