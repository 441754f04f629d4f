"""The lists of PASCAL VOC that say which image is in which part: ImageSets/Main/{train,val,trainval,test}.txt."""

from pathlib import Path

from classifier.data.samples import SPLITS
from classifier.errors import UserError

LISTS = ("train", "val", "trainval", "test")


def read_image_sets(folder: Path) -> dict[str, int]:
    """Name of an image, without its suffix -> its part, as a position in `SPLITS`.

    What trainval.txt lists and val.txt does not is for training. The lists of single classes, such as
    aeroplane_train.txt, are not looked at.

    Raises:
        UserError: There is no list, it cannot be read, or an image is in two parts.
    """
    lists = {name: _names(folder / f"{name}.txt") for name in LISTS if (folder / f"{name}.txt").is_file()}
    if not any(lists.values()):
        raise UserError(
            f"{folder} has none of {', '.join(f'{name}.txt' for name in LISTS)} with names in it: "
            "name the folder with data.image_sets=..., or use data.image_sets=null"
        )
    trainval = lists.pop("trainval", [])
    known = set(lists.get("train", [])) | set(lists.get("val", []))
    lists["train"] = lists.get("train", []) + [name for name in trainval if name not in known]
    parts: dict[str, int] = {}
    for number, split in enumerate(SPLITS):
        for name in lists.get(split, []):
            other = parts.setdefault(name, number)
            if other != number:
                raise UserError(
                    f"{folder} lists {name} for {SPLITS[other]} and for {split}: take it out of one of the lists"
                )
    return parts


def _names(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the list {path} ({error}): mend it, or use data.image_sets=null") from error
    return [name for line in lines if (name := line.strip())]
