"""A look at the data: what the files hold, what evaluation sees of them, and what training makes of them."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image, ImageDraw

from classifier.data import ClassificationDataModule
from classifier.data.dataset import ImageDataset
from classifier.data.decode import decode
from classifier.data.picture import Box, Picture
from classifier.data.upright import everything, upright_box, upright_size
from classifier.errors import UserError
from classifier.files import require_outside, whole_file
from classifier.parallel import tracked
from classifier.tools.data import open_data
from classifier.tools.keys import whole
from classifier.tools.sheet import Row, draw_sheet, shown_size

log = logging.getLogger(__name__)

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
