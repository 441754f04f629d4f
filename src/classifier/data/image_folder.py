"""Images in class folders, the layout of torchvision's ImageFolder."""

import logging
from collections import Counter
from pathlib import Path

import pandas as pd

from classifier.data.datamodule import ClassificationDataModule
from classifier.data.labels import MULTI
from classifier.data.listing import EXTENSIONS, is_image, list_files, require_folder, scan, subfolders
from classifier.data.samples import PART_WORDS, SPLITS, list_paths, readable, require_known
from classifier.errors import UserError

log = logging.getLogger(__name__)


class ImageFolderDataModule(ClassificationDataModule):
    """root/<class>/**/*.jpg; or root/{train,val,test}/<class>/**, where val and test may be absent.

    A part's folder may have any of the names in `PART_WORDS`, such as Training or valid. Classes are in text order, as
    in torchvision. Which class a validation or test folder belongs to is decided by its name alone: one that training
    lacks is an error, a missing one a warning.
    """

    def list_samples(self) -> pd.DataFrame:
        """List the files.

        Raises:
            UserError: No root, no class folders, a class folder without images, a class that training lacks, parts
                without training images, two folders for one part.
        """
        require_folder(self.root)
        if self.task == MULTI:
            raise UserError(f"task={MULTI}: a class folder is one label: use data=table, or task=single_label")
        parts = self._part_folders() or {"": ""}
        top = self.root / parts.get("train", "")
        classes = [*(self.given_classes or map(readable, subfolders(top)))]
        if not classes:
            raise UserError(f"{top} has no class folders: put images into <class>/, or use another data.root=...")
        tables, other = [], Counter[str]()
        for part, folder in parts.items():
            names = {readable(name): name for name in subfolders(self.root / folder)}
            require_known(names, classes, f"{self.root / folder} has the class folder")
            for label in classes:
                place = f"{folder}/{names.get(label, label)}".lstrip("/")
                files = list(list_files(self.root, place)) if label in names else []
                images = [path for path in files if is_image(path)]
                other.update(Path(path).suffix.lower() or Path(path).name for path in files if not is_image(path))
                if label not in names:
                    log.warning("%s does not exist: this part has no image of the class %r", self.root / place, label)
                elif not images:
                    kinds = ", ".join(EXTENSIONS)
                    raise UserError(f"{self.root / place} holds no image ({kinds}): add some, or remove the folder")
                labels = pd.Categorical([label] * len(images), categories=classes)
                tables.append(list_paths(images, labels, split=part or None))
        tops = {"", *parts.values()}
        loose = [entry.name for top in sorted(tops) for entry in scan(self.root / top) if is_image(entry.name)]
        beside = [] if "" in parts else [name for name in subfolders(self.root) if name not in tops]
        if left_out := [f"{name} {count}" for name, count in other.items()] + [*loose, *beside]:
            log.warning("%s: left out are %s", self.root, ", ".join(left_out[:10]) + ", ..." * (len(left_out) > 10))
        return pd.concat(tables, ignore_index=True).astype({"split": "str"})

    def _part_folders(self) -> dict[str, str]:
        """Part -> its folder where the root is divided into parts, else nothing."""
        folders = subfolders(self.root)
        named = {name: PART_WORDS[name.lower()] for name in folders if name.lower() in PART_WORDS}
        # a class may be called "train": it then holds images, not folders
        with_classes = [name for name in named if subfolders(self.root / name)]
        found: dict[str, str] = {}
        for name in sorted(with_classes, key=lambda name: SPLITS.index(named[name])):
            if (other := found.setdefault(named[name], name)) != name:
                both = f"{self.root / other} and {self.root / name}"
                raise UserError(f"{both} are both for {named[name]}: move all images into one of them")
        # new test data may come without training data
        if "train" in found or (self.given_classes and not set(folders) & set(self.given_classes)):
            return found
        if self.given_classes is None and folders and len(named) == len(folders):
            what = f"{self.root} is divided into {', '.join(named)}, but has no training images in class folders"
            raise UserError(f"{what}: put them into {self.root}/train/<class>/, or use another data.root=...")
        return {}
