"""The split as folders, for tools that need them: output/{train,val,test}/<class>/<name>."""

import csv
import filecmp
import logging
import os
import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from omegaconf import DictConfig
from PIL import Image

from classifier.data import ClassificationDataModule
from classifier.data.image import decode, everything, upright_size
from classifier.data.image_folder import EXTENSIONS, image_files
from classifier.data.samples import SPLITS, Samples
from classifier.data.split import Split
from classifier.errors import UserError
from classifier.evaluation.predictions import write_table
from classifier.files import require_outside, whole_file
from classifier.parallel import parallel_map, tracked, worker_count
from classifier.tools.data import choice, flag, open_data, whole

log = logging.getLogger(__name__)


FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f]')
# Windows keeps these for devices
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)
LONGEST = 200  # bytes, of the 255 that most file systems take: numbers and suffixes are put behind it


def safe_name(name: str) -> str:
    """`name` with what some file system refuses replaced by `_`, never hidden, never empty."""
    name = FORBIDDEN.sub("_", name).strip()
    name = re.sub(r"\.$|^\.", "_", name)
    if RESERVED.match(name):
        name = f"_{name}"
    raw = name.encode("utf-8", "surrogateescape")
    if len(raw) > LONGEST:  # not through the middle of a character
        name = raw[:LONGEST].decode("utf-8", "ignore").strip()
    return name or "_"


def distinct(names: Iterable[tuple[str, str]]) -> list[str]:
    """stem + suffix of each; where that has come before, stem_2 + suffix, stem_3 + suffix, ...

    Names that differ in capitals or in the way of writing an accent are the same to some file systems, and so here.
    """
    pairs = list(names)
    given = {_key(stem + suffix) for stem, suffix in pairs}
    taken: set[str] = set()
    counts: dict[str, int] = {}
    result: list[str] = []
    for stem, suffix in pairs:
        name = stem + suffix
        first = _key(name)
        while _key(name) in taken or (first in counts and _key(name) in given):
            counts[first] = counts.get(first, 1) + 1
            name = f"{stem}_{counts[first]}{suffix}"
        taken.add(_key(name))
        result.append(name)
    return result


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def require_folder_apart(output: Path, root: Path) -> None:
    """Refuse an output folder that is a file, or that has the data in it or around it.

    Raises:
        UserError: It is; or the two contain one another.
    """
    require_outside(output, root)
    if root.resolve().is_relative_to(output.resolve()):
        raise UserError(f"output={output} contains the data folder {root}: name a folder of its own")
    if output.exists() and not output.is_dir():
        raise UserError(f"output={output} is a file and not a folder: name another place")


LIST = "split.csv"
COLUMNS = ("path", "label", "split", "source")


class Entry(NamedTuple):
    """A file to be written."""

    row: int  # in the Samples table
    path: str  # relative to the output folder, with forward slashes
    split: str


def plan(samples: Samples, split: Split, name: Callable[[int], tuple[str, str]], by_split: bool = True) -> list[Entry]:
    """A path for each sample: <part>/<class>/<name>, or <class>/<name>; of two equal names the second gets a number.

    The names are a function of the samples in the part and of their order alone.

    Args:
        name: Row -> stem and suffix of the file; made safe here.
    """
    folders = _class_folders(samples.classes)
    entries: list[Entry] = []
    members: dict[str, list[tuple[int, str]]] = {}
    for part in sorted(split, key=SPLITS.index):
        for row in split[part].tolist():
            folder = folders[samples.labels[row]]
            members.setdefault(f"{part}/{folder}" if by_split else folder, []).append((row, part))
    for folder, inside in members.items():
        stems = [name(row) for row, _ in inside]
        names = distinct((safe_name(stem), suffix) for stem, suffix in stems)
        entries += [Entry(row, f"{folder}/{file}", part) for (row, part), file in zip(inside, names, strict=True)]
    return entries


def _class_folders(classes: Sequence[str]) -> list[str]:
    folders = distinct((safe_name(name), "") for name in classes)
    changed = [f"{name!r} as {folder}" for name, folder in zip(classes, folders, strict=True) if name != folder]
    if changed:
        log.warning("class names that are no good folder names are written as others: %s", ", ".join(changed))
    return folders


def require_only(output: Path, entries: Sequence[Entry]) -> None:
    """Refuse an output folder with other images in it: of another split, they would be in two parts at once.

    Raises:
        UserError: It has some.
    """
    planned = {entry.path for entry in entries}
    found = (path.relative_to(output).as_posix() for path in image_files(output))
    if foreign := [path for path in found if path not in planned]:
        raise UserError(
            f"output={output} holds {len(foreign)} images that do not belong to this split, {foreign[0]} first: "
            "remove them, or name another folder"
        )


def source_name(samples: Samples, row: int) -> PurePosixPath:
    """The file's name, or what the store calls the image."""
    return PurePosixPath(PurePosixPath(samples.relative_path(row)).name)


def write_list(
    output: Path, samples: Samples, entries: Sequence[Entry], more: dict[str, Callable[[int], str]] | None = None
) -> None:
    """Write output/split.csv: what each file is, and came from. `data.split_file` takes it.

    Args:
        more: Further columns: name -> row -> cell.
    """
    more = more or {}
    rows = (
        (
            entry.path,
            samples.classes[samples.labels[entry.row]],
            entry.split,
            samples.relative_path(entry.row),
            *(cell(entry.row) for cell in more.values()),
        )
        for entry in entries
    )
    write_table(output / LIST, [*COLUMNS, *more], rows)


def how_to_read(output: Path, samples: Samples, split: Split) -> str:
    """The overrides by which training takes the folder with the same parts."""
    rows = {part: set(samples.labels[rows].tolist()) for part, rows in split.items()}
    strangers = set().union(*rows.values()) - rows.get("train", set())
    if strangers:
        log.warning(
            "%d classes have no training image, %r first: data=folder refuses the folder until they have one",
            len(strangers),
            samples.classes[min(strangers)],
        )
    # else a part would be cut from the training images
    return f"data=folder data.root={output}" + ("" if "val" in split else " data.val_fraction=0")


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
        lambda entry: _write_crop(output / entry.path, datamodule, entry.row, size, quality),
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


def _write_crop(target: Path, datamodule: ClassificationDataModule, row: int, size: int | None, quality: int) -> None:
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


MODES = ("symlink", "hardlink", "copy")


def split(config: DictConfig) -> Path:
    """Write every image of every part, and split.csv; the output folder.

    What is there already, and has the same content, is kept. So a second call completes the first.

    Args:
        config: As configs/split.yaml composes it.

    Raises:
        UserError: Wrong input; boxes, or images that are no files; a file with other content that would be replaced.
    """
    output, mode, overwrite = Path(config.output), choice(config, "mode", MODES), flag(config, "overwrite")
    datamodule = open_data(config)
    samples = datamodule.samples
    require_folder_apart(output, datamodule.source.root)
    _require_files(samples)
    entries = plan(samples, datamodule.split, partial(_name, samples))
    if output.exists():
        require_only(output, entries)
    todo = [entry for entry in entries if not _is_done(output / entry.path, samples.path(entry.row), mode, overwrite)]
    for entry in tracked(todo, "writing", len(todo)):
        _write_link(output / entry.path, samples, entry, mode)
    write_list(output, samples, entries)
    log.info("%s: %d written, %d were there", output, len(todo), len(entries) - len(todo))
    log.info("read it with %s", how_to_read(output, samples, datamodule.split))
    return output


def _require_files(samples: Samples) -> None:
    if samples.boxes is not None or samples.store is not None:
        what = "boxes in images" if samples.boxes is not None else "images that are no files of their own"
        raise UserError(
            f"the samples of {samples.root} are {what}, and split.py writes whole files: "
            "use scripts/crop.py with the same arguments"
        )


def _name(samples: Samples, row: int) -> tuple[str, str]:
    name = source_name(samples, row)
    if name.suffix.lower() not in EXTENSIONS:
        raise UserError(
            f"{samples.path(row)} has none of the endings that data=folder reads ({', '.join(EXTENSIONS)}): "
            "use scripts/crop.py with the same arguments"
        )
    return name.stem, name.suffix


def _is_done(target: Path, source: Path, mode: str, overwrite: bool) -> bool:
    """Whether `target` has the content of `source`, and is no link where it is to be a copy.

    A link whose file is gone has no content.
    """
    if overwrite or not target.exists():
        return False
    if not target.is_file():
        raise UserError(f"{target} is not a file: remove it, or name another place with output=...")
    same = target.samefile(source)
    # equal sizes and times are taken for equal content, as copies keep them
    if same or filecmp.cmp(source, target):
        return not (mode == "copy" and (same or target.is_symlink()))
    raise UserError(f"{target} exists with other content than {source}: use overwrite=true, or another output=...")


def _write_link(target: Path, samples: Samples, entry: Entry, mode: str) -> None:
    source = samples.path(entry.row).resolve()
    with whole_file(target) as scratch:
        if mode == "copy":
            shutil.copy2(source, scratch)
            return
        try:
            if mode == "hardlink":
                scratch.hardlink_to(source)
            else:
                # Relative: it holds where data and output move together, or are mounted elsewhere in a container.
                # From the true folder, as `..` leads out of that one.
                scratch.symlink_to(os.path.relpath(source, target.parent.resolve()))
        except (OSError, ValueError) as error:  # another file system or drive, or links are not allowed
            raise UserError(f"cannot make the {mode} {target} to {source} ({error}): use mode=copy") from error
