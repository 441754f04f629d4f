"""Text on a picture: any script that a font of this machine has, cut to fit."""

import unicodedata
from bisect import bisect_right
from functools import cache, lru_cache
from pathlib import Path

import matplotlib
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from PIL import ImageFont

ELLIPSIS = "…"
# comes with matplotlib: Latin, Greek, Cyrillic, Arabic and more
FONTS = Path(matplotlib.get_data_path(), "fonts", "ttf")


def letters(text: str, size: int, *, bold: bool = False) -> tuple[str, ImageFont.FreeTypeFont]:
    """`text` as it can be drawn, and the font to draw it with, `size` pixels high.

    Where no font has a character, its number stands for it (\\u72ac) instead of an empty square.
    """
    # a name may hold line ends, and bytes that are no UTF-8
    text = " ".join(unicodedata.normalize("NFC", text).split())
    text = text.encode("utf-8", "backslashreplace").decode()
    path = FONTS / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")
    wanted = {character for character in text if not _invisible(character)}
    if not wanted <= _characters(path):
        path = max((path, *_system_fonts()), key=lambda font: len(wanted & _characters(font)))
    there = _characters(path)
    shown = "".join(
        character if character in there else "" if _invisible(character) else _number(character) for character in text
    )
    return shown, ImageFont.truetype(path, size)


def fitted(text: str, font: ImageFont.FreeTypeFont, width: float, *, keep_end: bool = False) -> str:
    """`text`, or as much of it as fits `width` pixels, with an ellipsis in the place of its end (or its beginning)."""
    if font.getlength(text) <= width:
        return text

    def cut(length: int) -> str:
        return ELLIPSIS + text[len(text) - length :].lstrip() if keep_end else text[:length].rstrip() + ELLIPSIS

    fitting = bisect_right(range(1, len(text)), width, key=lambda length: font.getlength(cut(length)))
    return cut(fitting)


def _invisible(character: str) -> bool:
    """Joiners and variation selectors, which a font need not have."""
    return unicodedata.category(character) == "Cf" or "\ufe00" <= character <= "\ufe0f"


def _number(character: str) -> str:
    return character.encode("ascii", "backslashreplace").decode()


@lru_cache
def _system_fonts() -> list[Path]:
    return sorted(Path(path) for path in font_manager.findSystemFonts())


@cache
def _characters(font: Path) -> frozenset[str]:
    """The characters that a font has; none where it is of no use at any size."""
    try:
        ImageFont.truetype(font, 12)  # bitmap fonts, as of emoji, refuse
        return frozenset(map(chr, FT2Font(str(font)).get_charmap()))
    except (OSError, RuntimeError):
        return frozenset()
