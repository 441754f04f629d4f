"""Paths that a table or an annotation file names: inside of the data folder, and there or not."""

import os
import posixpath
import re
from pathlib import Path


def inside(path: str) -> str:
    """`path`, relative to the data folder, with forward slashes and without `.` and `..`.

    Decided by the text alone: a link inside of the folder may lead elsewhere, as its owner wished.

    Raises:
        ValueError: It is absolute, or leads outside.
    """
    clean = path.replace("\\", "/")
    if clean.startswith("/") or re.match("[A-Za-z]:/", clean) or Path(clean).drive:
        raise ValueError(f"{path!r} is an absolute path")
    if "//" in clean or "/." in clean or clean.startswith("."):
        clean = posixpath.normpath(clean)
        if clean == ".." or clean.startswith("../"):
            raise ValueError(f"{path!r} leads outside of the data folder")
    return clean


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
