"""Names for folders and files that every file system takes."""

import re
import unicodedata
from collections.abc import Iterable

FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f]')
# Windows keeps these for devices
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)
LONGEST = 200  # bytes, of the 255 that most file systems take: numbers and suffixes are put behind it


def safe_name(name: str) -> str:
    """`name` with what some file system refuses replaced by `_`, never hidden, never empty."""
    name = FORBIDDEN.sub("_", name).strip()
    name = re.sub(r"\.$|^\.", "_", name)
    if RESERVED.match(name):
        name = f"_{name}"
    raw = name.encode("utf-8", "surrogateescape")
    if len(raw) > LONGEST:  # not through the middle of a character
        name = raw[:LONGEST].decode("utf-8", "ignore").strip()
    return name or "_"


def distinct(names: Iterable[tuple[str, str]]) -> list[str]:
    """stem + suffix of each; where that has come before, stem_2 + suffix, stem_3 + suffix, ...

    Names that differ in capitals or in the way of writing an accent are the same to some file systems, and so here.
    """
    pairs = list(names)
    given = {_key(stem + suffix) for stem, suffix in pairs}
    taken: set[str] = set()
    counts: dict[str, int] = {}
    result: list[str] = []
    for stem, suffix in pairs:
        name = stem + suffix
        first = _key(name)
        while _key(name) in taken or (first in counts and _key(name) in given):
            counts[first] = counts.get(first, 1) + 1
            name = f"{stem}_{counts[first]}{suffix}"
        taken.add(_key(name))
        result.append(name)
    return result


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
