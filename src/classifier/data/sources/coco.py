"""Images with COCO's instances in JSON: one sample per annotated box.

Source: T.-Y. Lin et al., Microsoft COCO: Common Objects in Context, ECCV 2014 (the format; no data here).
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from classifier.data.picture import Box
from classifier.data.samples import SPLITS, UNASSIGNED, Problem, Samples
from classifier.data.sources.boxes import OBJECTS, choose, require_margin, with_margin
from classifier.data.sources.class_names import match_classes
from classifier.data.sources.coco_file import read_instances
from classifier.data.sources.folder import require_folder
from classifier.data.sources.listing import Listing, sub_folder
from classifier.errors import UserError, did_you_mean, require_choice

log = logging.getLogger(__name__)

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
