"""Samples -> paths in class folders, as `data=folder` reads them, with a list of what came from where."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from classifier.data.samples import SPLITS, Samples
from classifier.data.sources.folder import image_files
from classifier.data.split import Split
from classifier.errors import UserError
from classifier.evaluation.tables import write_table
from classifier.tools.naming import distinct, safe_name

log = logging.getLogger(__name__)

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
