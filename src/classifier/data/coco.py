"""Images with COCO's instances in JSON: one sample per annotated box.

Source: T.-Y. Lin et al., Microsoft COCO: Common Objects in Context, ECCV 2014 (the format; no data here).
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from classifier.data import labels, samples
from classifier.data.boxes import SIZE, BoxReading
from classifier.data.datamodule import ClassificationDataModule
from classifier.data.image import require_file
from classifier.data.listing import inside, mark_unusable, require_folder, sub_folder
from classifier.data.samples import BOX
from classifier.errors import UserError, require_choice

MOST_BYTES = 1_200_000_000  # of a file, which takes some five times as much memory


class CocoDataModule(ClassificationDataModule):
    """The boxes that COCO files list, of images below `root`. Classes are the names of the categories that occur.

    COCO's boxes are x, y, width, height, 0-based and with fractions; they are widened to whole pixels. Where no
    annotation has a box, samples are whole images.

    With `task=multi_label`, the images themselves: the labels of one are the categories of its annotations, those of
    `iscrowd` among them, and an image without an annotation has none.

    Args:
        annotations: A file, or part (train, val, test) -> its file; relative to `root`, or any path.
        images: Folder below `root` that file names begin in, or part -> its folder.
        crowd: `skip` or `keep` boxes around many objects at once (`iscrowd`).
        box_format, box_unit, objects, margin, negatives, scale_boxes: See `BoxReading`.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        annotations: str | Mapping[str, str],
        images: str | Mapping[str, str] = "images",
        crowd: str = "skip",
        box_format: str = "xywh",
        box_unit: str = "pixel",
        objects: str = "all",
        margin: float = 0.0,
        negatives: str | None = None,
        scale_boxes: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__(root, **settings)
        self.boxes = BoxReading(box_format, box_unit, objects, margin, negatives, scale_boxes)
        self.margin = margin
        require_choice("data.crowd", crowd, ("skip", "keep"))
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
        places = table.pop("place")
        if self.task == labels.MULTI:
            table = labels.one_name_each(table.drop(columns=[*BOX, *SIZE]))
        else:
            table = self._whole(table) if (table[BOX] == 0).all(axis=None) else self.boxes.read(table)
        if "problem" in table:
            table["problem"] = places + table["problem"]
        files = ", ".join(self.files.values())
        return mark_unusable(table.reset_index(drop=True), self.root, files, "data.annotations=... or data.images=...")

    def _whole(self, table: pd.DataFrame) -> pd.DataFrame:
        """A row for each image, as of a classification export."""
        table = table.drop(columns=[*BOX, *SIZE])
        table = self.boxes.with_negatives(table, samples.usable(table) & (table["label"] == "").to_numpy())
        table = table[~(samples.usable(table) & table.duplicated())]
        several = table["path"].isin(table["path"][table.groupby("path")["label"].transform("nunique") > 1])
        return samples.mark(table, several, "it has more than one category: use task=multi_label")

    def _part(self, part: str, name: str) -> pd.DataFrame:
        file = next((path for path in (self.root / name, Path(name)) if path.exists()), self.root / name)
        try:
            if require_file(file) > MOST_BYTES:
                raise ValueError(f"it has over {MOST_BYTES / 1e9:g} GB: divide it, as by parts")
            content = json.loads(file.read_bytes())
            images = _entries(content, "images", ("id", "file_name"), SIZE)
            names = _entries(content, "categories", ("id", "name"))
            table = _entries(content, "annotations", (), ("image_id", "category_id", "bbox", "iscrowd"))
            images["id"], names["id"] = _ids(images["id"]), _ids(names["id"])
            text = table[["image_id", "category_id"]].astype("str").fillna("null").apply(_ids)
            for number, twice in names[names["id"].duplicated(keep=False)].groupby("id")["name"]:
                raise ValueError(f"the category id {number} is given to {' and '.join(map(repr, twice))}")
        except (OSError, ValueError, RecursionError) as error:  # ValueError: malformed, or not in Unicode
            raise UserError(f"cannot use {file} ({error}): mend it, or use another data.annotations=...") from error
        sizes = [_numbers(size, 2) for size in images[SIZE].to_numpy().tolist()]
        images[SIZE] = np.array(sizes, float).reshape(-1, 2)
        images["path"] = inside(images["file_name"], self.folders[part], self.root)
        for row in images.index[images["path"].isna() | images["id"].duplicated()][:1]:
            number, path = images.loc[row, ["id", "file_name"]]
            where = f"is not below data.root={self.root}, or whose id {number} is another's"
            raise UserError(f"images[{row}] of {file} is {path!r}, which {where}: use another data.images=...")
        idle = images[~images["id"].isin(text["image_id"])]
        if self.crowd == "skip" and self.task == labels.SINGLE:
            table = table[~table["iscrowd"].astype("str").str.lower().isin(["1", "1.0", "true"])]
        text, by_id = text.loc[table.index], images.set_index("id")
        paths = text["image_id"].map(by_id["path"])
        named = text["category_id"].map(names.set_index("id")["name"])
        rows = pd.DataFrame({"path": paths.fillna(file.name), "label": named.fillna("")}, dtype="str")
        rows = samples.mark(rows, paths.isna(), "no image has the image_id " + text["image_id"])
        rows = samples.mark(rows, named.isna(), "no category has the category_id " + text["category_id"])
        rows = samples.mark(rows, named.str.strip() == "", "no name has the category_id " + text["category_id"])
        rows["place"] = "annotations[" + table.index.astype("str") + f"] of {file.name}: "
        rows[BOX] = np.array([_numbers(box or [0] * 4, 4) for box in table["bbox"]], float).reshape(-1, 4)
        rows[SIZE] = by_id[SIZE].reindex(text["image_id"]).to_numpy()
        idle = idle[["path", *SIZE]].assign(label="", place="", **dict.fromkeys(BOX, 0.0))
        rows = pd.concat([rows, idle], ignore_index=True)
        return rows.assign(split=part) if part else rows


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


def _ids(numbers: pd.Series) -> pd.Series:
    """Ids as text: 1.0, as tools that pass them through a table write, is 1."""
    return numbers.str.replace(r"^(-?\d+)\.0$", r"\1", regex=True) if numbers.str.endswith(".0").any() else numbers


def _numbers(values: Any, count: int) -> list[float]:
    """So many floats; nan where these are not so many numbers."""
    if isinstance(values, list) and len(values) == count:
        with suppress(OverflowError, TypeError, ValueError):  # an integer of hundreds of digits, null, a word
            return [float(value) for value in values]
    return [np.nan] * count
