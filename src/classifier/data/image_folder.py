"""Images in class folders, the layout of torchvision's ImageFolder."""

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from classifier.data.samples import PART_WORDS, SPLITS, UNASSIGNED, Problem, Samples, labels_of
from classifier.errors import UserError

log = logging.getLogger(__name__)


EXTENSIONS = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif")


class FolderSource:
    """root/<class>/**/*.jpg; or root/{train,val,test}/<class>/**, where val and test may be absent.

    A part's folder may have any of the names in `PART_WORDS`, such as Training or valid.
    Classes are in text order, as in torchvision. Which class a validation or test folder belongs to is decided by
    its name alone: one that training lacks is an error, a missing one a warning.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def prepare(self) -> None:
        """Nothing to make: the folder is the user's."""

    def read(self, classes: Sequence[str] | None = None) -> tuple[Samples, list[Problem]]:
        """List the files.

        Args:
            classes: The class names of a trained model, in its order; by default the training folders' names.

        Raises:
            UserError: No root, no class folders, a class folder without images, a class that `classes` lacks, parts
                without training images, two folders for one part.
        """
        require_folder(self.root)
        folders = _split_folders(self.root, classes) or {"": self.root}
        if classes is None:
            classes = self._class_names(folders.get("train", self.root))
        paths: list[str] = []
        labels: list[int] = []
        splits: list[int] = []
        other = Counter[str]()
        for split, folder in folders.items():
            names = [entry.name for entry in _subfolders(folder)]
            labels_of(names, classes, f"{folder} has the class folder")
            for label, name in enumerate(classes):
                files = list(_files(folder / name))
                other.update(path.suffix.lower() or path.name for path in files if not _is_image(path.name))
                found = [path.relative_to(self.root).as_posix() for path in files if _is_image(path.name)]
                if not found:
                    self._report_empty(folder / name, split)
                paths += found
                labels += [label] * len(found)
                splits += [SPLITS.index(split) if split else UNASSIGNED] * len(found)
        self._report_left_out(folders, other)
        return Samples.build(self.root, classes, paths, labels, splits=splits), []

    def _class_names(self, folder: Path) -> list[str]:
        names = [entry.name for entry in _subfolders(folder)]
        if not names:
            count = sum(1 for _ in image_files(folder))
            raise UserError(
                f"{folder} has no class folders ({count} images lie directly in it): "
                f"put the images of each class into {folder}/<class>/, or name another folder with data.root=..."
            )
        return names

    def _report_empty(self, folder: Path, split: str) -> None:
        if folder.is_dir():
            raise UserError(
                f"the class folder {folder} holds no image ({', '.join(EXTENSIONS)}): add some, or remove the folder"
            )
        log.warning("%s: no folder for the class %r, so it goes without images", folder.parent, folder.name)

    def _report_left_out(self, folders: dict[str, Path], other: Counter[str]) -> None:
        """One line on what lies in the data folder and is not used."""
        left_out = []
        if other:
            kinds = ", ".join(f"{suffix} {count}" for suffix, count in other.most_common(5))
            left_out.append(f"{other.total()} files of kinds that are not read ({kinds})")
        # at the top of a root without parts, they are classes
        beside = [] if "" in folders else [entry.name for entry in _subfolders(self.root)]
        if beside := [name for name in beside if self.root / name not in folders.values()]:
            left_out.append(f"folders beside those of the parts, {', '.join(beside[:5])}")
        tops = {self.root, *folders.values()}
        if loose := sum(_is_image(entry.name) for folder in tops for entry in os.scandir(folder)):
            left_out.append(f"{loose} images outside of class folders")
        if left_out:
            log.warning("%s: left out are %s", self.root, "; ".join(left_out))


def require_folder(root: Path) -> None:
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise UserError(f"the data folder {root} {what}: name yours with data.root=path/to/images")


def _subfolders(folder: Path) -> list[os.DirEntry[str]]:
    entries = [entry for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")]
    return sorted(entries, key=lambda entry: entry.name)


def _split_folders(root: Path, classes: Sequence[str] | None) -> dict[str, Path]:
    """Split -> its folder where the root is laid out by split, else nothing."""
    folders = {entry.name: Path(entry.path) for entry in _subfolders(root)}
    named = {name: PART_WORDS[name.lower()] for name in folders if name.lower() in PART_WORDS}
    # a class may be called "train": it then holds images, not folders
    with_classes = [name for name in named if _subfolders(folders[name])]
    found: dict[str, Path] = {}
    for name in sorted(with_classes, key=lambda name: SPLITS.index(named[name])):
        if (other := found.setdefault(named[name], folders[name])) != folders[name]:
            raise UserError(f"{other} and {folders[name]} are both for {named[name]}: move all images into one of them")
    # new test data may come without training data
    if "train" in found or (classes is not None and not set(folders) & set(classes)):
        return found
    if classes is None and folders and len(named) == len(folders):
        raise UserError(
            f"{root} is divided into {', '.join(named)}, but has no training images in class folders: put them into "
            f"{root}/train/<class>/, or name another folder with data.root=..."
        )
    return {}


def image_files(folder: Path) -> Iterator[Path]:
    """The images below `folder`, in text order; hidden files and folders are passed over."""
    return (path for path in _files(folder) if _is_image(path.name))


def _files(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, name) for name in sorted(files) if not name.startswith("."))


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")
