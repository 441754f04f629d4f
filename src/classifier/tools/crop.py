"""Boxes cut out of their images, or whole images made smaller, as class folders of files that load fast."""

import csv
import logging
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from omegaconf import DictConfig
from PIL import Image

from classifier.data import ClassificationDataModule
from classifier.data.decode import decode
from classifier.data.samples import Samples
from classifier.data.upright import everything, upright_size
from classifier.errors import UserError
from classifier.files import whole_file
from classifier.parallel import parallel_map, tracked, worker_count
from classifier.tools.data import open_data
from classifier.tools.folders import LIST, Entry, how_to_read, plan, require_only, source_name, write_list
from classifier.tools.keys import choice, flag, whole
from classifier.tools.output import require_folder_apart

log = logging.getLogger(__name__)

FORMATS = ("jpg", "png")

MadeFrom = dict[str, Callable[[int], str]]
"""Column of split.csv -> row of the Samples table -> its cell."""


def crop(config: DictConfig) -> Path:
    """Write every sample of every part, and split.csv; the output folder.

    A file is there whole or not at all, and split.csv tells what it was made from and how. So a second call after a
    kill writes the missing ones alone, and one with other settings is refused.

    Args:
        config: As configs/crop.yaml composes it.

    Raises:
        UserError: Wrong input; files that were made in another way, where `overwrite` is false.
    """
    output, suffix = Path(config.output), f".{choice(config, 'format', FORMATS)}"
    size = None if config.size is None else whole(config, "size", 1)
    quality = whole(config, "quality", 1, 100)
    by_split, overwrite = flag(config, "by_split"), flag(config, "overwrite")
    datamodule = open_data(config)
    samples = datamodule.samples
    require_folder_apart(output, datamodule.source.root)
    stems = _stems(samples)
    entries = plan(samples, datamodule.split, lambda row: (stems[row], suffix), by_split)
    reading = datamodule.preprocessing
    how = f"short side {size}, quality {quality}, {reading.interpolation}, {reading.channels} channels"
    made_from: MadeFrom = {"source_box": partial(_box_text, samples), "how": lambda row: how}
    if output.exists():
        require_only(output, entries)
        _require_same(output, samples, entries, made_from, overwrite)
    write_list(output, samples, entries, made_from)  # before the files, so that none is ever there unlisted
    todo = [entry for entry in entries if not (output / entry.path).exists()]
    written = parallel_map(
        lambda entry: _write(output / entry.path, datamodule, entry.row, size, quality),
        todo,
        max(1, worker_count(datamodule.num_workers)),
    )
    for _ in tracked(written, "cropping", len(todo)):
        pass
    log.info("%s: %d written, %d were there", output, len(todo), len(entries) - len(todo))
    hint = how_to_read(output, samples, datamodule.split)
    log.info("read it with %s", hint if by_split else f"data=folder data.root={output} data.split_file={output / LIST}")
    return output


def _stems(samples: Samples) -> list[str]:
    """The name of each row's image, with the number of the box in it."""
    stems = [source_name(samples, row).stem for row in range(len(samples))]
    if samples.boxes is None:
        return stems
    seen: Counter[int] = Counter()
    numbered = []
    for stem, image in zip(stems, samples.image_ids().tolist(), strict=True):
        seen[image] += 1
        numbered.append(f"{stem}_{seen[image]}")
    return numbered


def _box_text(samples: Samples, row: int) -> str:
    return " ".join(map(str, samples.box(row) or ()))


def _require_same(
    output: Path,
    samples: Samples,
    entries: list[Entry],
    made_from: MadeFrom,
    overwrite: bool,
) -> None:
    """Refuse files that other settings made; with `overwrite`, remove all that are to be written."""
    there = [entry for entry in entries if (output / entry.path).exists()]
    if overwrite:
        for entry in there:  # first of all, so that what a kill leaves can be completed too
            (output / entry.path).unlink()
        return
    listed: dict[str, list[str]] = {}
    if (output / LIST).is_file():
        with (output / LIST).open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            listed = {line[0]: line[3:] for line in csv.reader(file) if line}
    changed = [
        (entry.path, cells)
        for entry in there
        if (cells := [samples.relative_path(entry.row), *(cell(entry.row) for cell in made_from.values())])
        != listed.get(entry.path)
    ]
    if changed:
        path, wanted = changed[0]
        raise UserError(
            f"output={output} holds {len(changed)} images that were made from something else or with other settings, "
            f"{path} first ({', '.join(listed.get(path, ['unlisted']))}; now {', '.join(wanted)}): "
            "use overwrite=true, or another output=..."
        )


def _write(target: Path, datamodule: ClassificationDataModule, row: int, size: int | None, quality: int) -> None:
    samples, reading = datamodule.samples, datamodule.preprocessing
    picture, box = samples.image(row), samples.box(row)
    width, height = upright_size(picture, box)
    scale = 1.0 if size is None else min(1.0, size / min(width, height))
    sides = (max(1, round(height * scale)), max(1, round(width * scale)))
    pixels = decode(picture, box, everything, sides, interpolation=reading.interpolation, channels=reading.channels)
    image = Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).numpy())
    with whole_file(target) as scratch:
        if target.suffix == ".jpg":
            image.save(scratch, "JPEG", quality=quality)
        else:
            image.save(scratch, "PNG")
