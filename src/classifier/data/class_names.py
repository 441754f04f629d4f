"""Names of classes that nobody means: spellings of one name, empty cells, several labels in a cell, measurements."""

import logging
import re
import unicodedata
from collections.abc import Callable, Hashable, Iterable
from decimal import Decimal

import pandas as pd

from classifier.errors import UserError

log = logging.getLogger(__name__)

NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?(e[+-]?[0-9]{1,4})?")
EMPTY = ("nan", "NaN", "NAN", "<NA>", "NaT", "#N/A")  # what programs, and none but they, write for an empty cell


def look(name: str) -> str:
    """A name without what nobody sees: the form of Unicode, zero-width characters, which blanks and how many."""
    if not name.isascii():
        name = "".join(letter for letter in name if unicodedata.category(letter) != "Cf")
        name = unicodedata.normalize("NFC", name)
    return " ".join(name.split())


def reading(name: str) -> Hashable:
    """What names have in common that a reader takes for one: `Cat` and `cat`, `1` and `1.0`, `a_b` and `a b`."""
    if NUMBER.fullmatch(name):
        return Decimal(name)
    return look(unicodedata.normalize("NFKC", name).casefold().replace("_", " "))


def check_names(counts: pd.Series) -> None:
    """Refuse class names that look the same, and warn of those that may be one, or stand for an empty cell.

    Args:
        counts: Name -> its images, int (K,).

    Raises:
        UserError: Two names look the same.
    """
    for first, second, *_ in _together(counts.index, look):
        found = f"the classes {first!a} ({counts[first]} images) and {second!a} ({counts[second]})"
        raise UserError(f"{found} look the same: give them one name, or use another data.root=...")
    twins = [
        " and ".join(f"{name!r} ({counts[name]} images)" for name in names)
        for names in _together(counts.index, reading)
    ]
    if twins:
        log.warning(
            "%d classes may be spellings of another one: %s: rename those that are", len(twins), "; ".join(twins[:3])
        )
    words = {*map(str.lower, EMPTY), "none", "null", "na", "n/a", "nil"}
    for name in counts.index:
        if name.lower() in words:
            log.warning("%r is a class of %d images: rename it where it stands for no label", name, counts[name])


def _together(names: Iterable[str], key: Callable[[str], Hashable]) -> list[list[str]]:
    """Those that have a `key` in common."""
    groups: dict[Hashable, list[str]] = {}
    for name in names:
        groups.setdefault(key(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def require_labels(labels: pd.Series, column: str) -> None:
    """Refuse a column of a table that holds no names of classes, by what is in it.

    Args:
        labels: Text (N,).
        column: Its name.

    Raises:
        UserError: It holds lists, or several labels in a cell, or numbers of which nearly each row has its own.
    """
    names = labels.unique().tolist()
    ways = "or another data.label_column=..., or data.any_label=true if each text is a class"
    several = "use task=multi_label data.label_separator="
    for name in names:
        if name[:1] + name[-1:] in ("[]", "{}"):
            what = f"the column {column!r} holds lists, such as {name}: put | between several labels and"
            raise UserError(f'{what} {several}"|", {ways}')
    if 2 * len(names) > len(labels) >= 20 and all(map(NUMBER.fullmatch, names)):
        what = f"the column {column!r} holds {len(names)} different numbers for {len(labels)} images"
        raise UserError(f"{what}, a measurement rather than classes: use {ways}")
    for separator in ("|", ";", ",", " "):
        if example := _of_several(names, separator):
            what = f"the column {column!r} seems to hold several labels in a cell, such as {example!r}"
            raise UserError(f'{what}: {several}"{separator}", {ways}')


def _of_several(names: list[str], separator: str) -> str | None:
    """A name made of others, where the names are; None where they only have words in common, as kinds of one thing do.

    Of several labels, more than one can be left out, and what remains is found elsewhere: `water road clear` beside
    `water road` and `road clear`. Beside `tiger cat` there is `tiger`, but not `cat`.
    """
    if not any(separator in name for name in names):
        return None
    parts = {name: frozenset(part.strip() for part in name.split(separator)) - {""} for name in names}
    known = {*parts.values()}
    several = [name for name, found in parts.items() if len(found) > 1]
    made = [name for name in several if sum(parts[name] - {part} in known for part in parts[name]) > 1]
    if len(made) * 10 > len(several):
        return made[0]
    each = [part for found in parts.values() for part in found]
    most = {"|": 1, ";": 1, ",": 0.5 * all(", " not in name for name in several)}.get(separator, 0)
    return several[0] if several and len({*each}) < most * len(each) else None
