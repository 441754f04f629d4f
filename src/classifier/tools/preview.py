"""A picture of some samples: what the files hold, what evaluation sees of them, and what training makes of them."""

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from omegaconf import DictConfig

from classifier.data import ClassificationDataModule
from classifier.data.image import decode, everything, upright_box, upright_size
from classifier.data.loader import ImageDataset, Images
from classifier.errors import require_choice, require_whole
from classifier.files import require_outside, whole_file
from classifier.parallel import tracked
from classifier.tools.data import open_data

log = logging.getLogger(__name__)

MOST = 500  # pictures of one figure, which then takes 8 s to draw
CELL = 1.6  # inches of a picture's side; other positions and sizes in the figure are in cells
DPI = 100
GAP, LABEL, HEAD, MARGIN = 0.05, 0.3, 0.25, 0.15
LETTERS = 12  # as many fit into a cell's width in any script


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
        width, height = upright_size(picture)
        scale = min(1.0, 320 / max(width, height))  # pixels of the longer side
        shown_box = None if box is None else [edge * scale for edge in upright_box(picture, box)]
        size = max(1, round(height * scale)), max(1, round(width * scale))
        read = datamodule.preprocessing
        tensors = [decode(picture, None, everything, size, value_range=read.value_range), read(picture, box)]
        tensors += [training[(epoch, position, 0)]["image"] for epoch in range(draws)]
        label, part, path = table.loc[row, ["label", "split", "path"]]
        pictures = [tensor.permute(1, 2, 0).squeeze(-1).numpy() for tensor in tensors]
        yield Sample(label or "no label", "in no part" if pd.isna(part) else part, path, pictures, shown_box)


def draw(headings: Sequence[str], samples: Iterable[Sample], count: int) -> Figure:
    """A figure of `count` samples, one below the other down the first block, and then down the next.

    Args:
        headings: Of the columns; as many as each sample has pictures.
    """
    block_width, row_height = len(headings) * (1 + GAP) - GAP, LABEL + 1 + GAP
    in_block = max(1, round(math.sqrt(count * (block_width + 2 * MARGIN) / row_height / 1.4)))  # a page in that shape
    width = math.ceil(count / in_block) * (block_width + 2 * MARGIN)
    height = HEAD + min(count, in_block) * row_height + MARGIN
    figure = Figure(figsize=(width * CELL, height * CELL), dpi=DPI)
    most = int(LETTERS * block_width)

    def write(x: float, y: float, text: str, **style: Any) -> None:
        line = " ".join(text.split())
        figure.text(x / width, 1 - y / height, line, parse_math=False, **{"fontsize": 8.5, "color": "gray", **style})

    for number, sample in enumerate(samples):
        block, place = divmod(number, in_block)
        left, top = block * (block_width + 2 * MARGIN) + MARGIN, HEAD + place * row_height
        title = sample.title if len(sample.title) <= most - LETTERS else f"{sample.title[: most - LETTERS]}…"
        write(left, top + 0.13, title, weight="bold", fontsize=10, color="black")
        write(left + block_width, top + 0.13, sample.part, ha="right")
        write(left, top + 0.25, sample.path if len(sample.path) <= most else f"…{sample.path[-most:]}", fontsize=7.5)
        for column, pixels in enumerate(sample.pictures):
            x = left + column * (1 + GAP)
            if place == 0:
                write(x + 0.5, HEAD - 0.08, headings[column], ha="center")
            axes = figure.add_axes((x / width, 1 - (top + LABEL + 1) / height, 1 / width, 1 / height))
            _show(axes, pixels, sample.box if column == 0 else None)
    return figure


def _show(axes: Axes, pixels: np.ndarray, box: Sequence[float] | None) -> None:
    """Fill a cell with a picture, and draw the box on it."""
    height, width = pixels.shape[:2]
    side = max(height, width)
    axes.imshow(pixels, "gray", vmin=0, vmax=255, aspect="auto", extent=(0, width, height, 0))
    axes.set(xlim=((width - side) / 2, (width + side) / 2), ylim=((height + side) / 2, (height - side) / 2))
    axes.set(xticks=[], yticks=[], facecolor="whitesmoke")
    axes.spines[:].set_visible(False)
    if box is not None:
        x1, y1, x2, y2 = np.clip(box, 0, [width, height] * 2)
        outline = Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, color="crimson", linewidth=2, clip_on=False)
        axes.add_patch(outline)
