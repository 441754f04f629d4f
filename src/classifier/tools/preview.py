"""A picture of some samples: what the files hold, what evaluation sees of them, and what training makes of them."""

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from omegaconf import DictConfig

from classifier.data import ClassificationDataModule
from classifier.data.image import Box, Picture, decode, everything, upright_box, upright_size
from classifier.data.loader import ImageDataset, Images
from classifier.errors import require_choice, require_whole
from classifier.files import require_outside, whole_file
from classifier.parallel import tracked
from classifier.tools.data import open_data

log = logging.getLogger(__name__)

MOST = 1000  # pictures of one figure, which then takes 8 s and a gigabyte to draw
CELL = 1.6  # inches; positions and sizes in the figure are in cells
DPI = 100
GAP, LABEL, HEAD, MARGIN = 0.05, 0.3, 0.25, 0.15
SHAPE = 1.4  # width / height to aim for
PIXELS = 320  # longest side that an original is read with
# The first comes with matplotlib: Latin, Greek, Cyrillic, Arabic and more. Of the others, those that are installed
FONTS = ("DejaVu Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "PingFang SC", "Hiragino Sans",
         "Microsoft YaHei", "Malgun Gothic", "Arial Unicode MS", "Noto Sans Devanagari", "Nirmala UI")  # fmt: skip


def preview(config: DictConfig) -> Path:
    """Draw a figure of some samples, and return its path.

    Args:
        config: As configs/preview.yaml composes it.

    Raises:
        UserError: Wrong input.
    """
    output, draws = Path(config.output), config.augmented
    require_choice("output", output.suffix.lower(), [f".{form}" for form in FigureCanvasAgg.get_supported_filetypes()])
    require_whole("augmented", draws, 0, MOST - 2)
    require_whole("count", config.count, 1, MOST // (2 + draws))
    datamodule = open_data(config)
    require_outside(output, datamodule.root)
    rows = choose(datamodule.samples["label"].iloc[datamodule.rows(config.split)], config.count, config.seed)
    height, width = datamodule.preprocessing.image_size
    headings = ["original", f"evaluation {width}x{height}", *(f"training, epoch {n + 1}" for n in range(draws))]
    figure = draw(headings, tracked(_samples(datamodule, rows, draws), "drawing", len(rows)), len(rows))
    with whole_file(output) as scratch:
        figure.savefig(scratch, format=output.suffix[1:].lower(), dpi=DPI)
    if draws and not config.data.augment.crop and not config.data.augment.transforms:
        log.info("training sees what evaluation sees, as nothing is augmented: try augment=light")
    log.info("%s: %d samples of %s", output, len(rows), config.split)
    return output


def choose(labels: pd.Series, count: int, seed: int) -> np.ndarray:
    """At most `count` rows of `labels`, at random, sorted by class: no class gives its second before all gave one."""
    shuffled = labels.sample(frac=1, random_state=np.random.default_rng(seed))
    turn = shuffled.groupby(shuffled, observed=True).cumcount()
    chosen = turn.sort_values(kind="stable").index[:count]
    return labels.loc[np.sort(chosen)].sort_values(kind="stable").index.to_numpy()


class Sample(NamedTuple):
    """One row of the figure.

    Args:
        pictures: uint8 (H, W) or (H, W, 3).
        box: (x1, y1, x2, y2) in pixels of the first picture.
    """

    title: str
    part: str
    path: str
    pictures: Sequence[np.ndarray]
    box: Sequence[float] | None = None


def _samples(datamodule: ClassificationDataModule, rows: np.ndarray, draws: int) -> Iterator[Sample]:
    table = datamodule.samples
    # what the first epochs of a training with this seed will see
    images = Images.of(table, datamodule.root, datamodule.read_images)
    training = ImageDataset(images, rows, datamodule.augmentation, datamodule.seed)
    for position, row in enumerate(rows.tolist()):
        picture, box = datamodule.image(row), datamodule.box(row)
        original, shown_box = _original(picture, box)
        tensors = [datamodule.preprocessing(picture, box)]
        tensors += [training[(epoch, position, 0)]["image"] for epoch in range(draws)]
        pictures = [original, *(tensor.permute(1, 2, 0).squeeze(-1).numpy() for tensor in tensors)]
        label, part, path = table.loc[row, ["label", "split", "path"]]
        yield Sample(label, "in no part" if pd.isna(part) else part, path, pictures, shown_box)


def _original(picture: Picture, box: Box | None) -> tuple[np.ndarray, list[float] | None]:
    """The whole upright picture, made smaller, and where its box lies."""
    width, height = upright_size(picture)
    scale = min(1.0, PIXELS / max(width, height))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    shown_box = None if box is None else [edge * scale for edge in upright_box(picture, box)]
    return decode(picture, None, everything, size).permute(1, 2, 0).numpy(), shown_box


def draw(headings: Sequence[str], samples: Iterable[Sample], count: int) -> Figure:
    """A figure of `count` samples, one below the other down the first block, and then down the next.

    Args:
        headings: Of the columns; as many as each sample has pictures.
    """
    block_width, row_height = len(headings) * (1 + GAP) - GAP, LABEL + 1 + GAP
    in_block = max(1, round(math.sqrt(count * (block_width + 2 * MARGIN) / row_height / SHAPE)))
    lefts = np.arange(math.ceil(count / in_block)) * (block_width + 2 * MARGIN) + MARGIN
    width, height = lefts[-1] + block_width + MARGIN, HEAD + min(count, in_block) * row_height + MARGIN
    figure = Figure(figsize=(width * CELL, height * CELL), dpi=DPI)
    FigureCanvasAgg(figure)  # measures text
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    for left in lefts:
        for column, heading in enumerate(headings):
            _write(axes, left + column * (1 + GAP) + 0.5, HEAD - 0.08, heading, 1, ha="center", color="gray")
    for number, sample in enumerate(samples):
        block, place = divmod(number, in_block)
        left, top = lefts[block], HEAD + place * row_height
        _write(axes, left, top + 0.13, sample.title, block_width - 0.5, weight="bold", fontsize=10)
        _write(axes, left + block_width, top + 0.13, sample.part, 0.5, ha="right", color="gray")
        _write(axes, left, top + 0.25, sample.path, block_width, keep_end=True, color="gray", fontsize=7.5)
        for column, pixels in enumerate(sample.pictures):
            _show(axes, left + column * (1 + GAP), top + LABEL, pixels, sample.box if column == 0 else None)
    return figure


def _show(axes: Axes, left: float, top: float, pixels: np.ndarray, box: Sequence[float] | None) -> None:
    """Fill a cell with a picture, and draw the box on it."""
    axes.add_patch(Rectangle((left, top), 1, 1, color="whitesmoke", linewidth=0, zorder=-1))
    height, width = pixels.shape[:2]
    scale = 1 / max(height, width)
    left, top = left + (1 - width * scale) / 2, top + (1 - height * scale) / 2
    axes.imshow(pixels, "gray", vmin=0, vmax=255, extent=(left, left + width * scale, top + height * scale, top))
    if box is not None:
        x1, y1, x2, y2 = np.clip(box, 0, [width, height] * 2) * scale
        outline = Rectangle((left + x1, top + y1), x2 - x1, y2 - y1, fill=False, color="crimson", linewidth=1.5)
        outline.set_path_effects([withStroke(linewidth=3.5, foreground="white")])
        axes.add_patch(outline)


def _write(axes: Axes, x: float, y: float, text: str, width: float, *, keep_end: bool = False, **style: Any) -> None:
    """Write one line of text, cut to `width` cells."""
    shown, most = drawable(text), width * CELL * DPI
    artist = axes.text(x, y, shown, parse_math=False, **{"fontsize": 8.5, "fontfamily": list(_fonts()), **style})
    while (found := artist.get_window_extent().width) > most and shown:
        kept = int(len(shown) * most / found) - 1
        shown = shown[len(shown) - kept :] if keep_end else shown[:kept]
        artist.set_text(f"…{shown}" if keep_end else f"{shown}…")


def drawable(text: str) -> str:
    """`text` in one line, with characters that no font has as numbers, such as \\u72ac."""
    known = set().union(*_fonts().values())
    return "".join(
        character if ord(character) in known else character.encode("ascii", "backslashreplace").decode()
        for character in " ".join(text.split())
    )


@cache
def _fonts() -> dict[str, set[int]]:
    """The fonts that are installed, and the characters that they have."""
    found = [name for name in FONTS if name in font_manager.get_font_names()]
    return {name: set(font_manager.get_font(font_manager.findfont(name)).get_charmap()) for name in found}
