"""A contact sheet: rows of pictures under a label each, side by side in as many blocks as make a handy shape."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw

from classifier.tools.lettering import fitted, letters

CELL = 160  # pixels of the square that a picture is shown in
GAP = 8
BLOCK_GAP = 32
HEAD = 30  # height of the column headings
LABEL = 44  # height of a row's two lines of text
SHAPE = 1.3  # width / height to aim for
WHITE, CELL_COLOR, BLACK, GREY = (255, 255, 255), (238, 238, 238), (20, 20, 20), (110, 110, 110)


class Row(NamedTuple):
    """One sample: its pictures, each at most `CELL` pixels wide and high, and its lines of text."""

    title: str
    note: str
    path: str
    pictures: Sequence[Image.Image]


def shown_size(width: int, height: int) -> tuple[int, int]:
    """Width and height at which a picture fits a cell: small ones grow by a whole number, to square pixels."""
    longest = max(width, height)
    if longest <= CELL:
        factor = CELL // longest
        return width * factor, height * factor
    scale = CELL / longest
    return max(1, round(width * scale)), max(1, round(height * scale))


def draw_sheet(headings: Sequence[str], rows: Iterable[Row], count: int) -> Image.Image:
    """Draw `count` rows, one after the other down the first block and then down the next.

    Args:
        headings: Of the columns; as many as each row has pictures.
    """
    block_width = len(headings) * (CELL + GAP) - GAP
    row_height = LABEL + CELL + GAP
    blocks = min(range(1, count + 1), key=lambda number: _misshape(number, count, block_width, row_height))
    in_block = -(-count // blocks)
    blocks = -(-count // in_block)
    width = blocks * (block_width + BLOCK_GAP)
    sheet = Image.new("RGB", (width, HEAD + in_block * row_height + BLOCK_GAP), WHITE)
    draw = ImageDraw.Draw(sheet)
    for block in range(blocks):
        left = BLOCK_GAP // 2 + block * (block_width + BLOCK_GAP)
        for column, heading in enumerate(headings):
            text, font = letters(heading, 13)
            middle = left + column * (CELL + GAP) + CELL / 2
            draw.text((middle, HEAD / 2 + 6), fitted(text, font, CELL), GREY, font, anchor="mm")
    for number, row in enumerate(rows):
        block, place = divmod(number, in_block)
        _draw_row(
            sheet, row, BLOCK_GAP // 2 + block * (block_width + BLOCK_GAP), HEAD + place * row_height, block_width
        )
    return sheet


def _misshape(blocks: int, count: int, block_width: int, row_height: int) -> float:
    shape = blocks * (block_width + BLOCK_GAP) / (HEAD + -(-count // blocks) * row_height)
    return max(shape / SHAPE, SHAPE / shape)


def _draw_row(sheet: Image.Image, row: Row, left: int, top: int, width: int) -> None:
    draw = ImageDraw.Draw(sheet)
    note, font = letters(row.note, 13)
    note_width = font.getlength(note)
    draw.text((left + width, top + 20), note, GREY, font, anchor="rs")
    title, font = letters(row.title, 15, bold=True)
    draw.text((left, top + 20), fitted(title, font, width - note_width - GAP), BLACK, font, anchor="ls")
    path, font = letters(row.path, 12)
    draw.text((left, top + 37), fitted(path, font, width, keep_end=True), GREY, font, anchor="ls")
    for column, picture in enumerate(row.pictures):
        x, y = left + column * (CELL + GAP), top + LABEL
        draw.rectangle((x, y, x + CELL - 1, y + CELL - 1), fill=CELL_COLOR)
        sheet.paste(picture, (x + (CELL - picture.width) // 2, y + (CELL - picture.height) // 2))
