"""Images in class folders, the layout of torchvision's ImageFolder."""

import logging
import os
import re
from collections import Counter
from contextlib import suppress
from itertools import chain
from pathlib import Path

import pandas as pd

from classifier.data.class_names import look
from classifier.data.datamodule import ClassificationDataModule
from classifier.data.labels import MULTI
from classifier.data.listing import EXTENSIONS, is_image, kept, leads_up, list_files, require_folder, scan, subfolders
from classifier.data.samples import PART_WORDS, SPLITS, list_paths, mark, readable, require_known
from classifier.errors import UserError, as_typed

log = logging.getLogger(__name__)

# how a word in the name of a part's folder begins: training_set, seg_test, Trainingsdaten, entrenamiento
HINTS = {
    "train": "train|entra[iî]n|entren|trein|addestr|обуч|训练|訓練|学習|학습|훈련",
    "val": r"val(?:set|data)?(?![^\W\d_])|vali|dev(?:set)?(?![^\W\d_])|验证|驗證|検証|검증",
    "test": "test|prueb|prova|测试|測試|テスト|테스트|시험",
}
ANNOTATIONS = {"annotations", "bboxes", "labels", "xml", "xmls"}
# what may lie here instead of class folders, by its extension -> what reads it
OTHER_KINDS = {
    ".xml": "data=annotation_crop data.root={root} data.images={images} data.annotations={folder}",
    ".json": "data=coco data.root={root} data.images={images} data.annotations={file}",
    **dict.fromkeys((".csv", ".tsv", ".parquet"), "data=table data.root={root} data.table={file}"),
    ".txt": "data=coco or data=annotation_crop, for which boxes in .txt have to be exported as COCO JSON or VOC XML",
}


class ImageFolderDataModule(ClassificationDataModule):
    """root/<class>/**/*.jpg; or root/{train,val,test}/<class>/**, where val and test may be absent.

    A part's folder may have any of the names in `PART_WORDS`, such as Training or valid, or one with such a word in it
    (`HINTS`), where several folders agree in their class folders. Classes are in text order, as in torchvision. Which
    class a validation or test folder belongs to is decided by its name alone, in any Unicode form: one that training
    lacks is an error, a missing one a warning. A file that several links lead to is one sample.
    """

    def list_samples(self) -> pd.DataFrame:
        """List the files.

        Raises:
            UserError: No root, no class folders, a class folder without images, a class that training lacks, parts
                without training images, two folders for one part, folders that may be parts, another layout.
        """
        require_folder(self.root)
        if self.task == MULTI:
            raise UserError(f"task={MULTI}: a class folder is one label: use data=table, or task=single_label")
        parts = self._part_folders() or {"": ""}
        top = self.root / parts.get("train", "")
        classes = [*dict.fromkeys(self.given_classes or map(readable, subfolders(top)))]
        if not classes:
            advice = _other_kind(self.root) or "put images into <class>/, or use another data.root=..."
            raise UserError(f"{top} has no class folders: {advice}")
        known = {look(label): label for label in classes} | {label: label for label in classes}
        tables, left_out, links, respelled = [], Counter[str](), list[str](), list[str]()
        for part, folder in parts.items():
            places: dict[str, list[str]] = {}
            for name in subfolders(self.root / folder):
                label = str(known.get(readable(name), known.get(look(readable(name)), readable(name))))
                places.setdefault(label, []).append(f"{folder}/{name}".lstrip("/"))
                respelled += places[label][-1:] * (label != readable(name))
            require_known(places, classes, f"{self.root / folder} has the class folder")
            for label in classes:
                found = [list_files(self.root, place, left_out, links) for place in places.get(label, [])]
                files = list(chain(*found))
                images = [path for path in files if is_image(path)]
                left_out.update(Path(path).suffix.lower() or Path(path).name for path in files if not is_image(path))
                place = self.root / next(iter(places.get(label, [])), f"{folder}/{label}")
                if label not in places:
                    log.warning("%s does not exist: this part has no image of the class %r", place, label)
                elif not images:
                    kinds = ", ".join(EXTENSIONS)
                    raise UserError(f"{place} holds no image ({kinds}): add some, or remove the folder")
                labels = pd.Categorical([label] * len(images), categories=classes)
                tables.append(list_paths(images, labels, split=part or None))
        if respelled:
            what = "class folders are those of the same name in another Unicode form"
            log.warning("%s: %d %s, as %s", self.root, len(respelled), what, readable(respelled[0]))
        table = pd.concat(tables, ignore_index=True).astype({"split": "str"})
        if links:
            table = self._each_once(table, left_out)
        tops = {"", *(place.partition("/")[0] for place in parts.values())}
        entries = [entry for place in sorted({*tops, *parts.values()}) for entry in scan(self.root / place)]
        left_out.update(f"the link {entry.name}" for entry in entries if leads_up(entry))
        left_out.update(kind for entry in entries if (kind := kept(entry.name)))
        loose = [entry.name for entry in entries if is_image(entry.name)]
        beside = [] if "" in parts else [name for name in subfolders(self.root) if name not in tops]
        counts = [f"{name} {count}" for name, count in left_out.most_common()]
        if told := [readable(name) for name in (*counts, *loose, *beside)]:
            log.warning("%s: left out are %s", self.root, ", ".join(told[:10]) + ", ..." * (len(told) > 10))
        return table

    def _each_once(self, table: pd.DataFrame, left_out: Counter[str]) -> pd.DataFrame:
        """`table` with one row for each real file, however many links lead to it; one of two meanings is a problem."""

        def identity(path: str) -> str:
            with suppress(OSError):  # a link that leads nowhere is looked at later
                status = os.stat(f"{self.root}/{path}")  # noqa: PTH116 - as fast as can be
                return f"{status.st_dev} {status.st_ino}"
            return path

        files = table["path"].map(identity)
        shared = table[files.duplicated(keep=False)]
        meanings = shared["label"].astype("str") + "/" + shared["split"].fillna("")
        differing = meanings.groupby(files).transform("nunique") > 1
        names = shared["path"].groupby(files)
        problem = "links make one file of " + names.transform("first") + " and " + names.transform("last")
        table = mark(table, differing.reindex(table.index, fill_value=False), problem.reindex(table.index))
        again = shared.index[~differing & files[shared.index].duplicated()]
        left_out.update({"files that links lead to again": len(again)} if len(again) else {})
        return table.drop(index=again).reset_index(drop=True)

    def _part_folders(self) -> dict[str, str]:
        """Part -> the folder of its class folders, where the root is divided into parts, else nothing.

        Raises:
            UserError: See `list_samples`.
        """
        given, tops = self.given_classes or (), subfolders(self.root)
        parts = {name: part for name in tops if (part := _part_of(name))}
        inner = {name: below for name in parts if (below := self._inner(name))[1]}
        named = {name: name.lower() in PART_WORDS for name in tops}
        found: dict[str, str] = {}
        for name in sorted(inner, key=lambda name: (not named[name], SPLITS.index(parts[name]))):
            other = found.setdefault(parts[name], name)
            several = named[name] or len({parts[name] for name in inner}) > 1
            if other != name and named[other] == named[name] and several:
                both = f"{self.root / other} and {self.root / name}"
                raise UserError(f"{both} are both for {parts[name]}: move all images into one of them")
        folders = {part: inner[name][0] for part, name in found.items()}
        train = found.get("train", "")
        if given:  # of which new test data may have no training images, and one may be called "train"
            apart = not {*tops} & {*given} or (named.get(train, False) and not {*found.values()} <= {*given})
            return folders if apart else {}
        self._refuse_boxes([*tops, *(f"{place}/{name}" for place, names in inner.values() for name in names)])
        others = [name for name in tops if name not in parts]
        if len(found) > 1 and train:
            if all(named[name] or inner[name][1] & inner[train][1] for name in found.values()):
                if guessed := [f"{name} is {part}" for part, name in found.items() if not named[name]]:
                    log.info("%s: by its name, %s", self.root, ", ".join(guessed))
                return folders
        elif train and (not others if not named[train] else not self._alike([train, *others])):
            return folders
        if shared := self._alike(tops):
            what = f"{', '.join(tops[:5])} in {self.root} hold folders of the same names ({', '.join(shared[:5])})"
            # years and series; and of parts that are beside train/, the words tell more
            if not all(re.fullmatch(r"[\d_-]{3,}", name) for name in shared) and not (train and len(others) > 1):
                ways = f"rename {tops[0]} ... to train, val and test, or if these are the classes, type"
                raise UserError(f"{what}: {ways} '+data.classes={as_typed(tops)}'")
            log.warning("%s: those are taken as the classes", what)
        elif tops and len(parts) == len(tops) and (any(named.values()) or len({*parts.values()}) > 1):
            what = f"{self.root} is divided into {', '.join(parts)}, but has no training images in class folders"
            advice = _other_kind(self.root) or f"put them into {self.root}/train/<class>/, or use another data.root=..."
            raise UserError(f"{what}: {advice}")
        elif len(tops) == 1:
            place, advice = self.root / tops[0], _other_kind(self.root)
            while len(names := subfolders(place)) == 1:
                place /= names[0]
            if advice or len(names) > 1:
                what = f"{self.root} holds one folder, {readable(tops[0])}, and so no classes"
                raise UserError(f"{what}: use {advice or f'data.root={readable(str(place))}'}")
        return {}

    def _inner(self, top: str) -> tuple[str, set[str]]:
        """The folder of the class folders below a part's, such as seg_train/seg_train, and their names."""
        place, names = top, subfolders(self.root / top)
        below = subfolders(self.root / top / names[0]) if len(names) == 1 else []
        if len(below) > 1 and names[0] not in (self.given_classes or ()):
            place, names = f"{top}/{names[0]}", below
        return place, {look(readable(name)) for name in names}

    def _alike(self, tops: list[str]) -> list[str]:
        """The names of folders, two at least and half of all, that each of the folders holds, which hold no images."""
        if len(tops) < 2 or any(is_image(entry.name) for top in tops for entry in scan(self.root / top)):
            return []
        names = [self._inner(top)[1] for top in tops]
        shared = set.intersection(*names)
        return sorted(shared) if len(shared) > 1 and 2 * len(shared) >= max(map(len, names)) else []

    def _refuse_boxes(self, places: list[str]) -> None:
        """Refuse boxes, known by a folder of annotations among the folders `places`."""
        for name in places:
            if name.rpartition("/")[2].lower() in ANNOTATIONS and not any(map(is_image, list_files(self.root, name))):
                raise UserError(f"{self.root / name} holds no image: use {_other_kind(self.root) or 'data.root=...'}")


def _part_of(name: str) -> str | None:
    """The part that the name of a folder speaks of, if it speaks of one."""
    words = [part for part, hint in HINTS.items() if re.search(rf"(?<![^\W\d_])(?:{hint})", look(name.lower()))]
    return PART_WORDS.get(name.lower(), words[0] if len(words) == 1 else None)


def _other_kind(root: Path) -> str:
    """The overrides for what a folder holds instead of class folders, by its files; nothing where they do not tell."""
    files: dict[str, str] = {}
    for path in list_files(root):
        files.setdefault("image" if is_image(path) else Path(path).suffix.lower(), path)
    images = files.get("image", "").rpartition("/")[0].partition("/")[0]
    for suffix, overrides in OTHER_KINDS.items():
        if (file := files.get(suffix)) and (suffix != ".txt" or "/" in file):
            folder = file.rpartition("/")[0].partition("/")[0]
            images, folder = ("", "") if images == folder and suffix != ".json" else (images, folder)  # side by side
            return overrides.format(root=root, images=images or ".", folder=folder or ".", file=file)
    return ""
