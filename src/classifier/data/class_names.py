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
# what programs, and none but they, write for an empty cell
EMPTY = ("nan", "NaN", "NAN", "<NA>", "NaT", "#N/A", "#REF!", "#VALUE!", "#NAME?", "#DIV/0!", "#NULL!", "#NUM!")
# a class may be called so
EMPTY_WORDS = {*map(str.lower, EMPTY), "none", "null", "na", "n/a", "nil", "?", "-", "-1", "unlabeled", "unlabelled"}
# small letters of Cyrillic and Greek that look as Latin ones do
LATIN = str.maketrans("авсеһнкморѕтхуіјαβεικορτυχ", "abcehhkmopstxyijabeikoptyx")


def look(name: str) -> str:
    """A name without what nobody sees: the form of Unicode, zero-width characters, which blanks and how many."""
    if not name.isascii():
        name = "".join(letter for letter in name if unicodedata.category(letter) != "Cf")
        name = unicodedata.normalize("NFC", name)
    return " ".join(name.split())


def reading(name: str) -> Hashable:
    """What names have in common that a reader takes for one: `Cat` and `cat`, `1` and `1.0`, `a_b` and `a-b`."""
    if NUMBER.fullmatch(name):
        return Decimal(name)
    plain = unicodedata.normalize("NFKC", name).casefold().translate(LATIN).replace("_", " ")
    return look(re.sub(r"(?<=\w)[-\u2010-\u2015](?=\w)", " ", plain))


def check_names(counts: pd.Series) -> None:
    """Refuse class names that look the same, and warn of those that may be one, or stand for an empty cell.

    Args:
        counts: Name -> its images, int (K,).

    Raises:
        UserError: Two names look the same.
    """
    for names in _together(counts.index, look):
        found = ", ".join(f"{name!a} ({counts[name]} images)" for name in names)
        raise UserError(f"the classes {found} look the same: give them one name, or use another data.root=...")
    if twins := _together(counts.index, reading):
        shown = "; ".join(str(counts[names].to_dict()).strip("{}") for names in twins[:3])
        log.warning("%d classes may be spellings of another one (with their images): %s", len(twins), shown)
    if empty := [name for name in counts.index if name.lower() in EMPTY_WORDS]:
        log.warning("these classes may stand for no label (with their images): %s", counts[empty].to_dict())


def _together(names: Iterable[str], key: Callable[[str], Hashable]) -> list[list[str]]:
    """Those that have a `key` in common."""
    groups = pd.Series([*names], dtype=object).groupby([*map(key, names)], sort=False).agg(list)
    return [group for group in groups if len(group) > 1]


def require_labels(labels: pd.Series, column: str, join: str = "") -> None:
    """Refuse a column of a table that holds no names of classes, by what is in it.

    Args:
        labels: Text (N,).
        column: Its name.
        join: What is between names, where a text may be several of them.

    Raises:
        UserError: It holds lists, or several labels in a cell, or texts of which nearly each row has its own.
    """
    names = labels.unique().tolist()
    names = [*dict.fromkeys(part for name in names for part in name.split(join))] if join else names
    ways = "use another data.label_column=..., or data.any_label=true if each text is a class"
    what = f"the column {column!r} seems to hold several labels in a cell, such as"
    lists = [name for name in names if name[:1] + name[-1:] in ("[]", "{}")]
    for name in lists[:1]:
        way = "task=multi_label data.label_separator=json (without task=... where each list is of one name)"
        raise UserError(f"{what} {name}: use {way}, or {ways}")
    for separator in ("|", ";", ",", "&", "/", "+", "#", " "):
        for name in _of_several(names, separator):
            several = f'with "{separator}" between them use task=multi_label data.label_separator="{separator}"'
            raise UserError(f"{what} {name}: {several}, or {ways}")
    if not join and 2 * len(names) > len(labels) >= 20:
        what = f"the column {column!r} holds {len(names)} different texts for {len(labels)} images, such as {names[0]}"
        raise UserError(f"{what}, an id or a measurement rather than classes: {ways}")


def _of_several(names: list[str], separator: str) -> list[str]:
    """Names made of others, where many are; none where they only have words in common, as kinds of one thing do.

    Of several labels, more than one can be left out, and what remains is found elsewhere: `water road clear` beside
    `water road` and `road clear`. Beside `tiger cat` there is `tiger`, but not `cat`.
    """
    if not any(separator in name for name in names):
        return []
    parts = {name: frozenset(part.strip() for part in name.split(separator)) - {""} for name in names}
    known = {*parts.values()}
    several = [name for name, found in parts.items() if len(found) > 1]
    made = [name for name in several if sum(parts[name] - {part} in known for part in parts[name]) > 1]
    if len(made) * 10 > len(several):
        return made
    each = [part for found in parts.values() for part in found]
    few = 2 * len({*each}) <= len(each) and all(", " not in name for name in several)  # unlike `Labrador, yellow`
    return several if separator in "|;" or (separator == "," and few) else []
