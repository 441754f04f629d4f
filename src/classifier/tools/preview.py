"""A look at the data: what the files hold, what evaluation sees of them, and what training makes of them."""

import logging
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from omegaconf import DictConfig
from PIL import Image, ImageDraw, ImageFont

from classifier.data import ClassificationDataModule
from classifier.data.image import Box, Picture, decode, everything, upright_box, upright_size
from classifier.data.loader import ImageDataset
from classifier.errors import UserError
from classifier.files import require_outside, whole_file
from classifier.parallel import tracked
from classifier.tools.data import open_data, whole

log = logging.getLogger(__name__)


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


FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
MOST = 5000  # pictures on one sheet, which then takes some 400 MB to draw
BOX_COLORS = ((255, 255, 255), (230, 0, 80))  # around one another: one of them shows on any picture


def preview(config: DictConfig) -> Path:
    """Draw a contact sheet of samples, and return its path.

    Args:
        config: As configs/preview.yaml composes it.

    Raises:
        UserError: Wrong input.
    """
    output = Path(config.output)
    if output.suffix.lower() not in FORMATS:
        raise UserError(f"output={output} must end in one of {', '.join(FORMATS)}")
    count, draws = whole(config, "count", 1), whole(config, "augmented", 0)
    if count * (2 + draws) > MOST:
        raise UserError(
            f"count={count} rows of {2 + draws} pictures are more than a sheet takes ({MOST}): "
            f"use count={max(1, MOST // (2 + draws))}"
        )
    datamodule = open_data(config)
    require_outside(output, datamodule.source.root)
    rows = choose(datamodule.samples.labels, datamodule.rows(config.split), count, config.seed)
    height, width = datamodule.preprocessing.image_size
    headings = ["original", f"evaluation {width}x{height}", *(f"training, epoch {n + 1}" for n in range(draws))]
    drawn = tracked(_draw(datamodule, rows, draws), "drawing", len(rows))
    sheet = draw_sheet(headings, drawn, len(rows))
    with whole_file(output) as scratch:
        sheet.save(scratch, FORMATS[output.suffix.lower()], quality=92)
    if draws and not config.augment.crop and not config.augment.transforms:
        log.info("training sees what evaluation sees, as nothing is augmented: look at augment=light")
    log.info("%s: %d samples of %s", output, len(rows), config.split)
    return output


def choose(labels: np.ndarray, rows: np.ndarray, count: int, seed: int) -> np.ndarray:
    """At most `count` of `rows`, at random: from every class one before any gives its second; sorted by class."""
    random = np.random.default_rng(seed)
    shuffled = random.permutation(rows)
    classes = random.permutation(labels.max() + 1)  # which come first, where there are more than `count`
    order = np.argsort(labels[shuffled], kind="stable")
    by_class = labels[shuffled][order]
    turn = np.empty(len(rows), dtype=np.int64)  # a row is its class's first, second, ...
    turn[order] = np.arange(len(rows)) - np.searchsorted(by_class, by_class)
    chosen = shuffled[np.lexsort((classes[labels[shuffled]], turn))[:count]]
    return chosen[np.lexsort((chosen, labels[chosen]))]


def _draw(datamodule: ClassificationDataModule, rows: np.ndarray, draws: int) -> Iterator[Row]:
    samples = datamodule.samples
    part_of = {row: part for part, members in datamodule.split.items() for row in members.tolist()}
    # what the first epochs of a training with this seed will see
    training = ImageDataset(samples, rows, datamodule.augmentation, datamodule.seed)
    for position, row in enumerate(rows.tolist()):
        picture, box = samples.image(row), samples.box(row)
        tensors = [datamodule.preprocessing(picture, box)]
        tensors += [training[(epoch, position, 0)]["image"] for epoch in range(draws)]
        yield Row(
            title=samples.classes[samples.labels[row]],
            note=part_of.get(row, "in no part"),
            path=samples.relative_path(row),
            pictures=[original(picture, box), *(_shown(tensor) for tensor in tensors)],
        )


def original(picture: Picture, box: Box | None) -> Image.Image:
    """The whole upright picture, as large as a cell, with its box drawn."""
    width, height = upright_size(picture)
    size = shown_size(width, height)
    # small ones are read as they are, and grow afterwards
    read = (min(width, size[0]), min(height, size[1]))
    pixels = decode(picture, None, everything, (read[1], read[0]), interpolation="lanczos")
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize(size, Image.Resampling.NEAREST)
    if box is not None:
        x1, y1, x2, y2 = upright_box(picture, box)
        factors = (size[0] / width, size[1] / height)
        _outline(image, [x1 * factors[0], y1 * factors[1], x2 * factors[0], y2 * factors[1]])
    return image


def _outline(image: Image.Image, box: Sequence[float]) -> None:
    """Two lines inside of each other, the outer one on the box's edge, or the picture's where that is nearer."""
    left, top = max(0, round(box[0])), max(0, round(box[1]))
    right, bottom = min(image.width, round(box[2])) - 1, min(image.height, round(box[3])) - 1
    draw = ImageDraw.Draw(image)
    for inset, color in enumerate(BOX_COLORS):
        edges = (left + inset, top + inset, right - inset, bottom - inset)
        if edges[0] <= edges[2] and edges[1] <= edges[3]:
            draw.rectangle(edges, outline=color)


def _shown(tensor: torch.Tensor) -> Image.Image:
    """uint8 (C, H, W) -> a picture as large as a cell."""
    image = Image.fromarray(tensor.permute(1, 2, 0).squeeze(-1).numpy()).convert("RGB")
    size = shown_size(*image.size)
    grows = size[0] >= image.width
    return image.resize(size, Image.Resampling.NEAREST if grows else Image.Resampling.LANCZOS)
