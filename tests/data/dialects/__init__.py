"""Makers of small data sets in the dialects that docs/data.md lists, by the first cell of a row.

A maker writes into the folder it is given, and returns the label of each sample that is to be found there. A label of
`generate.COLORS` also says what colour the sample has to be.
"""

from collections.abc import Callable
from pathlib import Path

from tests.data.dialects import boxes, folders, labels, tables

MAKERS: dict[str, Callable[[Path], list[str]]] = {
    **tables.MAKERS, **boxes.MAKERS, **folders.MAKERS, **labels.MAKERS
}  # fmt: skip
