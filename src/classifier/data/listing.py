"""The files below a data folder, and the paths that a list of them gives."""

import logging
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

import pandas as pd

from classifier.data.class_names import look
from classifier.data.samples import mark, readable, usable
from classifier.errors import UserError

log = logging.getLogger(__name__)

# of phones, cameras and drawing programs: images that nothing here decodes
FOREIGN = (".heic", ".heif", ".hif", ".jxl", ".psd", ".svg", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf",
           ".raf", ".rw2", ".pef", ".srw")  # fmt: skip
EXTENSIONS = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif")
NOWHERE = "\0"  # no folder, and no file, is called so
# what file systems, network drives and programs keep beside images, often smaller copies of them
KEPT = re.compile(
    r"\.|(@(eadir|__thumb|recycle|recently-snapshot|sharebin|tmp)|[#~]snapshot|#recycle|\$recycle\.bin|__macosx|found\.000"
    r"|lost\+found|system volume information|network trash folder|temporary items|(eh)?thumbs\.db|desktop\.ini)$", re.I
)  # fmt: skip


def require_folder(root: Path) -> None:
    """Raise a UserError unless the data folder exists."""
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise UserError(f"the data folder {root} {what}: name yours with data.root=path/to/images")


def list_files(
    root: Path, folder: str = "", left_out: Counter[str] | None = None, links: list[str] | None = None
) -> Iterator[str]:
    """The files below `root`/`folder`, relative to `root` with forward slashes, in text order; none that is hidden.

    Links are followed, but to no folder that they lie in, and to none a second time.

    Args:
        left_out: Counts by name what is `kept`, and such links.
        links: Gets the other links.
    """
    left_out, links = Counter() if left_out is None else left_out, [] if links is None else links
    if (root / folder).resolve() != root.resolve() / folder:
        links.append(folder)
    entered: set[Path] = set()
    todo = ["" if folder == "." else folder]
    while todo:
        place = todo.pop()
        prefix, names, folders = f"{place}/".lstrip("/"), list[str](), list[str]()
        for entry in scan(root / place):
            path = prefix + entry.name
            if KEPT.match(entry.name):
                left_out[kept(entry.name)] += 1
            elif not entry.is_symlink():
                (folders if entry.is_dir() else names).append(path)
            elif (below := is_folder(entry)) and (leads_up(entry) or (root / path).resolve() in entered):
                left_out[f"the link {readable(path)}"] += 1
            else:
                (folders if below else names).append(path)
                links.append(path)
                entered.update([(root / path).resolve()] if below else [])
        yield from sorted(names)
        todo += sorted(folders, reverse=True)


def kept(name: str) -> str:
    """What to count a file or folder as that is hidden or as `KEPT`, no class and no sample; else nothing."""
    return "" if not KEPT.match(name) else "._*" if name.startswith("._") else name


def leads_up(entry: os.DirEntry[str]) -> bool:
    """Whether it is a link to a folder that it lies in."""
    return entry.is_symlink() and Path(entry.path).parent.resolve().is_relative_to(Path(entry.path).resolve())


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder, or a link to one."""
    return Path(entry.path).is_dir() if entry.is_symlink() else entry.is_dir()  # of a link to itself, `Path` says no


def is_image(path: str) -> bool:
    """Whether its name ends as one of an image does."""
    return path.lower().endswith(EXTENSIONS) and not path.rpartition("/")[2].startswith(".")


def subfolders(folder: Path) -> list[str]:
    """The names of the folders in a folder that may be classes or parts."""
    entries = (entry for entry in scan(folder) if not kept(entry.name) and is_folder(entry))
    return sorted(entry.name for entry in entries if not leads_up(entry))


def scan(folder: Path) -> Iterator[os.DirEntry[str]]:
    """What is in a folder.

    Raises:
        UserError: It cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except FileNotFoundError:  # of that, the callers say more
        return
    except OSError as error:
        what = f"cannot read the folder {readable(str(folder))} ({error.strerror})"
        raise UserError(f"{what}: use `chmod u+rx`, or another data.root=...") from error


def inside(paths: pd.Series, folder: str = "", root: Path | None = None) -> pd.Series:
    """`paths` below `folder`, relative to the data folder, with forward slashes and without `.` and `..`.

    NA where one leads out of the data folder, or is an address such as https://... Decided by the text alone: a link
    inside of the data folder may lead elsewhere, as its owner wished.

    Args:
        root: The data folder: a path may then be absolute, where it lies below.
    """
    if not paths.str.contains(r"\\|//|/\.|^[./]|^.:|/$").any():  # as nearly always
        return f"{folder}/" + paths if folder else paths
    clean = paths.str.replace("\\", "/", regex=False)
    # elsewhere than on Windows a file may be called `a:b`
    absolute = clean.str.contains("^/|^.:" if os.name == "nt" else "^/|^.:/|^[A-Za-z0-9+.-]+://")
    if folder:
        clean = clean.mask(~absolute, f"{folder}/" + clean)
    for top in set() if root is None else {root.absolute().as_posix(), root.resolve().as_posix()}:
        clean = clean.str.removeprefix(f"{top.rstrip('/')}/")
    outside = absolute & clean.str.contains("^/|^.:|://")
    odd = clean.str.contains(r"//|/\.|^\.|/$")
    if odd.any():
        clean = clean.mask(odd, clean[odd].map(posixpath.normpath))
    return clean.mask(outside | clean.str.contains(r"^\.\.(?:/|$)"))


def sub_folder(key: str, value: str) -> str:
    """The folder below the data folder that the setting data.`key` names, cleaned by `inside`.

    Raises:
        UserError: It leads elsewhere.
    """
    (clean,) = inside(pd.Series([value], dtype="str")) if value else [""]
    if pd.isna(clean):
        raise UserError(f"data.{key}={value} must be a folder below data.root")
    return str(clean)


def mark_unusable(table: pd.DataFrame, root: Path, source: object, ways: str) -> pd.DataFrame:
    """Note a problem of images that are in two parts, and of files that do not exist.

    Each folder is listed once, instead of a look at each file: a million looks over a network take minutes.

    Args:
        source: The file that lists the images, for the message.
        ways: The settings that choose others.

    Raises:
        UserError: No file exists.
    """
    if "split" in table:
        pairs = table.loc[usable(table), ["path", "split"]].drop_duplicates()
        double = pairs["path"][pairs["path"].duplicated()]
        table = mark(table, table["path"].isin(double), "it is in more than one part")
    rows = usable(table)
    there: list[str] = []
    folders = table["path"].str.replace("/?[^/]*$", "", regex=True)
    for folder in folders[rows].unique():
        with suppress(OSError, ValueError), os.scandir(root / folder) as entries:  # ValueError: a zero byte in the name
            prefix = f"{folder}/" if folder else ""
            there += [prefix + entry.name for entry in entries]
    missing = rows & ~table["path"].astype(object).isin(there).to_numpy()
    others = {*table["path"][~missing]} if missing.any() else set()
    if found := _spelled_otherwise(table["path"][missing], folders[missing], others, root):
        shown = "%d files of %s differ on the disk in capitals or the form of Unicode, such as %a: %a"
        log.warning(shown, len(found), source, *(*found.items(),)[0])
        table = table.assign(path=table["path"].map(found).fillna(table["path"]))
        missing &= ~table["path"].isin(found.values()).to_numpy()
    if table.empty or (missing.any() and (missing == rows).all()):
        first = "".join(f", {root / path} first" for path in table["path"][missing][:1])
        raise UserError(f"none of the {missing.sum()} images of {source} exists{first}: use other {ways}")
    return mark(table, missing, "no such file, or no right to read its folder")


def _spelled_otherwise(paths: pd.Series, folders: pd.Series, others: set[str], root: Path) -> dict[str, str]:
    """Path -> the file below `root` that differs in capitals or the form of Unicode, where that is one alone.

    Args:
        folders: Those of `paths`.
        others: Files that other paths lead to.
    """

    @cache
    def entries(folder: str) -> dict[str, str]:
        same: dict[str, str] = {}
        with suppress(OSError, ValueError), os.scandir(root / folder) as listing:
            for entry in listing:
                place, key = f"{folder}/{entry.name}".lstrip("/"), look(entry.name).casefold()
                if place not in others:
                    same[key] = NOWHERE if key in same else place
        return same

    places: dict[str, str] = {}
    for folder in folders.unique():
        place = ""
        for name in filter(None, folder.split("/")):
            place = entries(place).get(look(name).casefold(), NOWHERE)
        if entries(place):  # else, as nearly always, there is nothing to be found
            places[folder] = place
    found: dict[str, str] = {}
    rows = folders.isin(places)
    for path, folder in zip(paths[rows], folders[rows], strict=True):
        if path not in found:  # no file is that of two paths
            found[path] = entries(places[folder]).pop(look(path.rpartition("/")[2]).casefold(), NOWHERE)
    return {path: file for path, file in found.items() if file != NOWHERE}
