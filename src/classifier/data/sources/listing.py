"""Paths that a table or an annotation file names: inside of the data folder, and there or not."""

import os
import posixpath
from pathlib import Path

from classifier.errors import UserError


def inside(path: str, folder: str = "", root: Path | None = None) -> str:
    """`path` below `folder`, relative to the data folder, with forward slashes and without `.` and `..`.

    Decided by the text alone: a link inside of the data folder may lead elsewhere, as its owner wished.

    Args:
        root: The data folder: a path may then be absolute, where it lies below.

    Raises:
        ValueError: It is absolute, or leads out of the data folder.
    """
    clean = path.replace("\\", "/")
    # elsewhere than on Windows a file may be called `a:b`
    drive = clean[1:2] == ":" and (clean[2:3] == "/" or os.name == "nt")
    if clean.startswith("/") or drive:
        tops = [] if root is None else [f"{top.as_posix()}/" for top in (root.absolute(), root.resolve())]
        if not (above := [top for top in tops if clean.startswith(top)]):
            raise ValueError(f"{path!r} is an absolute path" + (" elsewhere" if root else ""))
        clean = clean.removeprefix(above[0])
    elif folder:
        clean = f"{folder}/{clean}"
    if "//" in clean or "/." in clean or clean.startswith("."):
        clean = posixpath.normpath(clean)
        if clean == ".." or clean.startswith("../"):
            raise ValueError(f"{path!r} leads out of the data folder")
    return clean


def sub_folder(key: str, value: str) -> str:
    """The folder below the data folder that the setting data.`key` names, cleaned by `inside`.

    Raises:
        UserError: It leads elsewhere.
    """
    try:
        return inside(value) if value else ""
    except ValueError as error:
        raise UserError(f"data.{key}={value} must be a folder below data.root ({error})") from error


class Listing:
    """Which files exist below `root`, by one listing of each folder that is asked for instead of a look at each file.

    (A million looks over a network take minutes.)
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._names: dict[str, frozenset[str]] = {}

    def __contains__(self, path: str) -> bool:
        folder, _, name = path.rpartition("/")
        if folder not in self._names:
            try:
                with os.scandir(self.root / folder) as entries:
                    self._names[folder] = frozenset(entry.name for entry in entries)
            except (OSError, ValueError):  # ValueError: a zero byte in the name
                self._names[folder] = frozenset()
        return name in self._names[folder]
