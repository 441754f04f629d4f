"""Files in folders."""

from collections.abc import Callable
from pathlib import Path

MAKERS: dict[str, Callable[[Path], list[str]]] = {}
