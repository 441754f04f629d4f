"""A data set, read to its end -> a table of what is wrong with it, and an exit code."""

import hashlib
import json
import logging
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from classifier.data import ClassificationDataModule, build_datamodule
from classifier.data.check import cause_of
from classifier.data.image import (
    ArrayImage,
    Box,
    Picture,
    PillowImage,
    StoredImage,
    cut_and_resize,
    everything,
    exif_of,
    open_image,
)
from classifier.data.jpeg import ORIENTATION_TAG
from classifier.data.samples import SPLITS, UNASSIGNED, Samples, numbered
from classifier.errors import UserError
from classifier.files import require_outside, whole_file
from classifier.parallel import parallel_map, tracked, worker_count
from classifier.runs import plain
from classifier.tools.data import flag
from classifier.tools.near_duplicates import equal_ones, members, near_duplicates

log = logging.getLogger(__name__)


SEVERITIES = ("error", "warning", "info")


class Kind(Enum):
    """What can be wrong: its name, its severity and what it means.

    An error stops or falsifies a training, a warning deserves a look, and an info is dealt with in reading.
    """

    EMPTY = "empty file", "error", "it has no bytes"
    TRUNCATED = "truncated", "error", "the file was cut off"
    UNREADABLE = "unreadable", "error", "no image, a damaged one, or a file that cannot be opened"
    BOMB = "too many pixels", "error", "decoding is refused, as it could take all memory"
    ANNOTATION = "unusable annotation", "error", "training refuses it as well"
    BOX_OUTSIDE = "box outside", "error", "no part of the box lies in the image"
    OTHER_CLASS = "same, other class", "error", "equal images with different labels"
    LEAK = "same in two parts", "error", "equal images in training and in evaluation, whose score they falsify"
    DIVIDED_GROUP = "divided group", "error", "one group in two prescribed parts"
    ONE_CLASS = "one class", "error", "a classifier needs two at least"
    UNTRAINED = "untrained class", "error", "the class has no training images"

    EXTENSION = "wrong extension", "warning", "the content has another format than the name says"
    ANIMATED = "several frames", "warning", "only the first one is read"
    TINY = "tiny", "warning", "a side has fewer pixels than min_side"
    HUGE = "huge", "warning", "more pixels than max_pixels: slow to decode"
    BOX_CUT = "box cut", "warning", "the box reaches over the edge of the image, and is cut there"
    TWICE = "same twice", "warning", "equal images of one class, in one part"
    ALIKE_OTHER_CLASS = "alike, other class", "warning", "nearly equal images with different labels"
    ALIKE_LEAK = "alike in two parts", "warning", "nearly equal images in training and in evaluation"
    MISSING_CLASS = "missing class", "warning", "a part of the data has none of its images"
    FEW = "few images", "warning", "the class has fewer than min_per_class"
    IMBALANCE = "imbalance", "warning", "the largest class has over max_imbalance times the images of the smallest"

    ALIKE = "alike", "info", "nearly equal images of one class, in one part"
    UPSCALED = "enlarged", "info", "smaller than data.image_size"
    ROTATED = "turned by EXIF", "info", "turned upright in reading"
    DEEP = "16 bits", "info", "scaled to 8 bits in reading"
    CMYK = "CMYK", "info", "converted to RGB in reading"
    PALETTE = "palette", "info", "converted to RGB in reading"
    ALPHA = "transparency", "info", "laid on white in reading"

    def __init__(self, title: str, severity: str, meaning: str) -> None:
        self.title = title
        self.severity = severity
        self.meaning = meaning


@dataclass(frozen=True)
class Remark:
    """One thing that was found.

    Args:
        names: Paths of the images concerned, relative to the data's root: one, or those that are alike. Of what is
            said about a class, its name.
        detail: What was found there, in a few words.
    """

    kind: Kind
    names: tuple[str, ...]
    detail: str = ""


THUMBNAIL = 16  # pixels of a side
PNG_DEPTH = 24  # where a PNG says how many bits it has
TIFF_BITS = 258  # tag
SAME_CONTENT = {"MPO": "JPEG"}  # several JPEGs in a file: what some cameras write as .jpg


@dataclass(frozen=True)
class Facts:
    """What is known of an image.

    Args:
        width, height: As stored, in pixels; 0 where they cannot be known.
        problem: Why it cannot be used, and the reason in words; None of a good one.
        notes: What is unusual about it, with a detail.
        digest: The same for equal files, or equal pixels; empty where it cannot be read.
        thumbnails: uint8 (boxes, 16, 16), grey and upright, of each box, or (1, 16, 16) of the whole image.
    """

    width: int = 0
    height: int = 0
    problem: tuple[Kind, str] | None = None
    notes: dict[Kind, str] = field(default_factory=dict)
    digest: bytes = b""
    thumbnails: np.ndarray = field(default_factory=lambda: np.zeros((0, THUMBNAIL, THUMBNAIL), np.uint8))


def facts_of(picture: Picture, boxes: np.ndarray | None = None) -> Facts:
    """Read a picture to its end; raises nothing that is the picture's fault.

    Args:
        boxes: int32 (boxes, 4) as (x1, y1, x2, y2) in stored pixels, half-open, which may leave the image; None for
            all of it.
    """
    digest, width, height, notes = b"", 0, 0, {}
    try:
        if isinstance(picture, Path):
            content = picture.read_bytes()
            if not content:
                return Facts(problem=(Kind.EMPTY, "0 bytes"))
            digest = _digest(content)
            with Image.open(BytesIO(content)) as image:
                width, height = image.size
                notes = {**_mode_notes(image, content), **_file_notes(image, picture)}
            stored: StoredImage = PillowImage(Image.open(BytesIO(content)))
        else:
            pixels = np.asarray(picture)
            height, width = pixels.shape[:2]
            digest = _digest(np.ascontiguousarray(pixels).tobytes(), pixels.shape)
            notes = _mode_notes(picture) if isinstance(picture, Image.Image) else {}
            stored = open_image(pixels)
        if boxes is not None:  # decoded once, to the end, wherever they lie
            stored = ArrayImage(stored.read((0, 0, width, height), 1, channels=1), stored.orientation)
        thumbnails = [_thumbnail(stored, box) for box in _inside(boxes, width, height)]
    except Exception as error:  # whatever a Pillow plugin meets on damaged bytes
        return Facts(width, height, _problem(error), digest=digest)
    return Facts(width, height, None, notes, digest, np.stack(thumbnails))


def _digest(content: bytes, shape: tuple[int, ...] = ()) -> bytes:
    return hashlib.blake2b(content, digest_size=16, salt=repr(shape).encode()[:16]).digest()


def _inside(boxes: np.ndarray | None, width: int, height: int) -> list[Box | None]:
    """The boxes, cut at the edge; what has no part inside stands for the whole image, and is remarked elsewhere."""
    if boxes is None:
        return [None]
    cut = np.clip(boxes, 0, (width, height, width, height)).tolist()
    return [(x1, y1, x2, y2) if x2 > x1 and y2 > y1 else None for x1, y1, x2, y2 in cut]


def _thumbnail(image: StoredImage, box: Box | None) -> np.ndarray:
    size = (THUMBNAIL, THUMBNAIL)
    pixels: np.ndarray = cut_and_resize(image, box, everything, size, "bilinear", channels=1, exact=True).numpy()[0]
    return pixels


def _problem(error: Exception) -> tuple[Kind, str]:
    cause, reason = cause_of(error)
    if isinstance(cause, Image.DecompressionBombError):
        return Kind.BOMB, reason
    cut_off = any(words in reason.lower() for words in ("truncated", "cut off"))
    return Kind.TRUNCATED if cut_off else Kind.UNREADABLE, reason


def _mode_notes(image: Image.Image, content: bytes = b"") -> dict[Kind, str]:
    notes = {}
    bits = content[PNG_DEPTH] if image.format == "PNG" else 0
    if image.format == "TIFF":
        bits = max(image.tag_v2.get(TIFF_BITS, (0,)))  # type: ignore[attr-defined]
    if image.mode[0] in "IF" or bits > 8:
        notes[Kind.DEEP] = f"mode {image.mode}"
    if image.mode == "CMYK":
        notes[Kind.CMYK] = ""
    if image.mode in ("P", "PA"):
        notes[Kind.PALETTE] = ""
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        notes[Kind.ALPHA] = ""
    return notes


def _file_notes(image: Image.Image, path: Path) -> dict[Kind, str]:
    notes = {}
    form = SAME_CONTENT.get(image.format or "", image.format)
    named = Image.registered_extensions().get(path.suffix.lower())
    if form != named:
        notes[Kind.EXTENSION] = f"{form} content"
    if image.format != "MPO" and getattr(image, "is_animated", False):
        notes[Kind.ANIMATED] = ""
    orientation = exif_of(image).get(ORIENTATION_TAG, 1)  # of TIFFs, too
    if orientation in range(2, 9):
        notes[Kind.ROTATED] = f"orientation {orientation}"
    return notes


CHUNK = 32  # images a task


@dataclass(frozen=True)
class Reading:
    """A table and what is in its images.

    Args:
        ids: int64 (N,), the number of each sample's image.
        rows_of: Of each image, by that number, the int64 rows of its samples.
        facts: Of each image.
    """

    samples: Samples
    ids: np.ndarray
    rows_of: list[np.ndarray]
    facts: list[Facts]

    @cached_property
    def sizes(self) -> np.ndarray:
        """int64 (N, 2): width and height of each sample's image, in pixels; 0 where it cannot be used."""
        sizes = [(0, 0) if item.problem else (item.width, item.height) for item in self.facts]
        of_samples: np.ndarray = np.array(sizes, dtype=np.int64).reshape(-1, 2)[self.ids]
        return of_samples

    @cached_property
    def boxes(self) -> np.ndarray:
        """int64 (N, 4): the part of each box that lies in the image, or all of the image."""
        whole = np.concatenate([np.zeros_like(self.sizes), self.sizes], axis=1)
        return whole if self.samples.boxes is None else np.clip(self.samples.boxes, 0, np.tile(self.sizes, 2))

    @cached_property
    def sides(self) -> np.ndarray:
        """int64 (N, 2): width and height of these, in pixels; not positive where nothing is left."""
        sides: np.ndarray = self.boxes[:, 2:] - self.boxes[:, :2]
        return sides

    @cached_property
    def usable(self) -> np.ndarray:
        """int64 rows that training would accept."""
        return np.flatnonzero((self.sides > 0).all(axis=1))

    def thumbnails(self) -> np.ndarray:
        """uint8 (N, 16, 16), grey; black where there is none."""
        side = self.facts[0].thumbnails.shape[-1] if self.facts else 0
        thumbnails = np.zeros((len(self.ids), side, side), dtype=np.uint8)
        for rows, item in zip(self.rows_of, self.facts, strict=True):
            if item.problem is None:
                thumbnails[rows] = item.thumbnails
        return thumbnails

    def name(self, row: int) -> str:
        """Path of a sample, with its box where it has one."""
        box = self.samples.box(row)
        return self.samples.relative_path(row) + ("" if box is None else f" {box}")


def read_all(samples: Samples) -> Reading:
    """Read every image, on all cores."""
    ids = samples.image_ids()
    rows_of = members(ids)
    boxes = samples.boxes

    def read(chunk: list[np.ndarray]) -> list[Facts]:
        return [facts_of(samples.image(int(rows[0])), None if boxes is None else boxes[rows]) for rows in chunk]

    chunks = [rows_of[start : start + CHUNK] for start in range(0, len(rows_of), CHUNK)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # such images are remarked upon
        found = chain.from_iterable(parallel_map(read, chunks, worker_count("auto")))
        facts = list(tracked(found, "reading", len(rows_of)))
    return Reading(samples, ids, rows_of, facts)


@dataclass(frozen=True)
class Limits:
    """From where on something is worth a remark; see configs/check_data.yaml.

    Args:
        image_size: Height and width, in pixels, that training reads.
    """

    image_size: tuple[int, int]
    min_side: float
    max_pixels: float
    min_per_class: float
    max_imbalance: float

    @classmethod
    def of(cls, settings: Mapping[str, Any], image_size: tuple[int, int]) -> "Limits":
        """Of the config.

        Raises:
            UserError: A number is negative or missing.
        """
        numbers = {key: settings[key] for key in ("min_side", "max_pixels", "min_per_class", "max_imbalance")}
        if numbers["min_side"] is None:  # pictures that are meant to be small, such as digits, are read small
            numbers["min_side"] = min(16, min(image_size) / 2)
        for key, value in numbers.items():
            if value is None or value < 0:
                raise UserError(f"{key}={'null' if value is None else value} must be a number, and not negative")
        return cls(image_size, **numbers)


def image_remarks(reading: Reading, limits: Limits, margin: bool = False) -> list[Remark]:
    """Remarks on files, on sizes and on boxes.

    Args:
        margin: The boxes have one, and so may leave the image.
    """
    remarks = []
    for rows, item in zip(reading.rows_of, reading.facts, strict=True):
        names = (reading.samples.relative_path(int(rows[0])),)
        if item.problem is not None:
            remarks.append(Remark(item.problem[0], names, item.problem[1]))
            continue
        remarks += [Remark(kind, names, detail) for kind, detail in item.notes.items()]
        size = f"{item.width}x{item.height}"
        if item.width * item.height > limits.max_pixels:
            remarks.append(Remark(Kind.HUGE, names, size))
        for row in rows.tolist():
            remarks += _box_remarks(reading, row, size, margin)
    least = reading.sides.min(axis=1)
    tiny = least < limits.min_side
    enlarged = (reading.sides < limits.image_size[::-1]).any(axis=1)
    for row in np.flatnonzero((tiny | enlarged) & (least > 0)).tolist():
        width, height = reading.sides[row].tolist()
        kind = Kind.TINY if tiny[row] else Kind.UPSCALED
        remarks.append(Remark(kind, (reading.name(row),), f"{width}x{height}"))
    return remarks


def _box_remarks(reading: Reading, row: int, size: str, margin: bool) -> list[Remark]:
    box = reading.samples.box(row)
    if box is None:
        return []
    names, detail = (reading.name(row),), f"image of {size}"
    if reading.sides[row].min() <= 0:
        return [Remark(Kind.BOX_OUTSIDE, names, detail)]
    if not margin and reading.boxes[row].tolist() != list(box):
        return [Remark(Kind.BOX_CUT, names, detail)]
    return []


def class_counts(reading: Reading, parts: np.ndarray) -> dict[str, np.ndarray]:
    """Part -> int64 (classes,), the number of usable samples; of the parts that have any, and of `all`."""
    labels, count = reading.samples.labels[reading.usable], len(reading.samples.classes)
    taken = parts[reading.usable]
    counts = {
        name: np.bincount(labels[taken == number], minlength=count)
        for number, name in enumerate(SPLITS)
        if (taken == number).any()
    }
    return {**counts, "all": np.bincount(labels, minlength=count)}


def class_remarks(reading: Reading, parts: np.ndarray, limits: Limits) -> list[Remark]:
    """Remarks on classes that are rare or missing somewhere, and on groups that a split divides."""
    counts, classes = class_counts(reading, parts), reading.samples.classes
    every = counts.pop("all")
    remarks = []
    for name, numbers in counts.items():
        kind = Kind.UNTRAINED if name == "train" else Kind.MISSING_CLASS
        missing = np.flatnonzero(numbers == 0).tolist()
        remarks += [Remark(kind, (classes[label],), f"none in {name}") for label in missing]
    few = np.flatnonzero((every < limits.min_per_class) & (every > 0)).tolist()
    remarks += [Remark(Kind.FEW, (classes[label],), f"{every[label]} in all") for label in few]
    found = np.flatnonzero(every)
    if len(found) < 2:
        remarks.append(Remark(Kind.ONE_CLASS, tuple(classes[label] for label in found.tolist())))
    else:
        largest, smallest = int(found[every[found].argmax()]), int(found[every[found].argmin()])
        if every[largest] > limits.max_imbalance * every[smallest]:
            names = (classes[largest], classes[smallest])
            remarks.append(Remark(Kind.IMBALANCE, names, f"{every[largest]} and {every[smallest]}"))
    return remarks + _divided_groups(reading, parts)


def _divided_groups(reading: Reading, parts: np.ndarray) -> list[Remark]:
    remarks = []
    rows = reading.usable[parts[reading.usable] >= 0]
    for positions in equal_ones(reading.samples.select(rows).group_ids()):
        group = rows[positions]
        taken = np.unique(parts[group])
        if len(taken) > 1:
            names = tuple(reading.name(row) for row in group.tolist())
            remarks.append(Remark(Kind.DIVIDED_GROUP, names, " and ".join(SPLITS[part] for part in taken)))
    return remarks


MIN_SIDE = 2 * THUMBNAIL  # pixels; smaller pictures look alike without being copies


def contents_of(reading: Reading) -> np.ndarray:
    """int64 (images,): the same number for images of the same bytes, or of the same pixels out of a store."""
    # what cannot be used is remarked upon already
    return numbered(number if item.problem else item.digest for number, item in enumerate(reading.facts))


def duplicate_remarks(reading: Reading, parts: np.ndarray) -> list[Remark]:
    """Remarks on equal images.

    Args:
        parts: int8 (N,), position in `SPLITS` of each sample.
    """
    samples, remarks = reading.samples, []
    for images in equal_ones(contents_of(reading)):
        rows_of = [reading.rows_of[image] for image in images.tolist()]
        names = [samples.relative_path(int(rows[0])) for rows in rows_of]
        labels = [" + ".join(sorted({samples.classes[label] for label in samples.labels[rows]})) for rows in rows_of]
        remarks += _remarks((Kind.OTHER_CLASS, Kind.LEAK, Kind.TWICE), names, labels, parts[np.concatenate(rows_of)])
    return remarks


def near_duplicate_remarks(reading: Reading, parts: np.ndarray, most: int | None = None) -> list[Remark]:
    """Remarks on images, or the insides of boxes, that are nearly equal without being of equal files.

    Args:
        most: Of more samples than these, none are compared.
    """
    rows = reading.usable[(reading.sides[reading.usable] >= MIN_SIDE).all(axis=1)]
    if most is not None and len(rows) > most:
        log.info(
            "not looking for near duplicates among more than %s samples; near_duplicates=true does, in a time that "
            "grows with the square of their number",
            f"{most:,}",
        )
        return []
    contents = contents_of(reading)[reading.ids[rows]]
    remarks = []
    for positions in near_duplicates(reading.thumbnails()[rows], contents, worker_count("auto")):
        group = rows[positions]
        names = [reading.name(row) for row in group.tolist()]
        labels = [reading.samples.classes[label] for label in reading.samples.labels[group]]
        remarks += _remarks((Kind.ALIKE_OTHER_CLASS, Kind.ALIKE_LEAK, Kind.ALIKE), names, labels, parts[group])
    return remarks


def _remarks(
    kinds: tuple[Kind, Kind, Kind], names: Sequence[str], labels: Sequence[str], parts: np.ndarray
) -> list[Remark]:
    other_class, leak, inside = kinds
    found = []
    if len(set(labels)) > 1:
        found.append(Remark(other_class, tuple(names), " or ".join(sorted(set(labels)))))
    taken = np.unique(parts[parts >= 0]).tolist()
    if len(taken) > 1:
        found.append(Remark(leak, tuple(names), " and ".join(SPLITS[part] for part in taken)))
    return found or [Remark(inside, tuple(names))]


STYLES = {"error": "bold red", "warning": "yellow", "info": "cyan"}
EXAMPLES = 3  # of each kind
NAMES = 3  # of each example
CLASSES = 20  # more than these are shown by the smallest and the largest alone


def print_report(reading: Reading, parts: np.ndarray, remarks: list[Remark]) -> None:
    """Print the classes, then each kind of remark, the worst first, with its number and its first examples."""
    console = Console()
    samples, counts = reading.samples, class_counts(reading, parts)
    console.print(_class_table(samples.classes, counts))
    if remarks:
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        table.add_column("severity", no_wrap=True)
        table.add_column("number", justify="right", no_wrap=True)
        table.add_column("what, and the first of them", overflow="fold")
        for kind, found in _by_kind(remarks).items():
            head = Text.assemble((kind.title, "bold"), (f": {kind.meaning}", "dim"))
            examples = [_example(remark) for remark in found[:EXAMPLES]]
            style = STYLES[kind.severity]
            table.add_row(Text(kind.severity, style), f"{len(found):,}", Text("\n").join([head, *examples]))
        console.print(table)
    console.print(Text(f"{_printable(str(samples.root))}: {_summary(samples, remarks)}"), soft_wrap=True)


def write_report(path: Path, reading: Reading, parts: np.ndarray, remarks: list[Remark]) -> None:
    """Write everything that was found, in full.

    Raises:
        UserError: The file cannot be written.
    """
    samples, counts = reading.samples, class_counts(reading, parts)
    content = {
        "root": str(samples.root),
        "samples": len(samples),
        "usable": len(reading.usable),
        **_numbers(remarks),
        "classes": {
            name: {part: int(numbers[label]) for part, numbers in counts.items()}
            for label, name in enumerate(samples.classes)
        },
        "found": [
            {
                "kind": kind.title,
                "severity": kind.severity,
                "meaning": kind.meaning,
                "number": len(found),
                "items": [{"names": list(remark.names), "detail": remark.detail} for remark in found],
            }
            for kind, found in _by_kind(remarks).items()
        ],
    }
    with whole_file(path, key="json") as scratch:
        scratch.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _by_kind(remarks: Iterable[Remark]) -> dict[Kind, list[Remark]]:
    """In the order of `Kind`, which is by severity."""
    found: dict[Kind, list[Remark]] = {kind: [] for kind in Kind}
    for remark in remarks:
        found[remark.kind].append(remark)
    return {kind: items for kind, items in found.items() if items}


def _numbers(remarks: Iterable[Remark]) -> dict[str, int]:
    severities = [remark.kind.severity for remark in remarks]
    return {severity: severities.count(severity) for severity in SEVERITIES}


def _summary(samples: Samples, remarks: list[Remark]) -> str:
    looked_at = f"{len(samples):,} {'images' if samples.boxes is None else 'boxes'} in {len(samples.classes)} classes"
    numbers = {severity: number for severity, number in _numbers(remarks).items() if number}
    told = [f"{number:,} {severity}{'s' * (number > 1)}" for severity, number in numbers.items()]
    return f"{looked_at}, {', '.join(told) or 'nothing to remark'}"


def _example(remark: Remark) -> Text:
    names = " = ".join(_printable(name) for name in remark.names[:NAMES])
    more = f" and {len(remark.names) - NAMES} more" if len(remark.names) > NAMES else ""
    return Text(names + more + (f": {_printable(remark.detail)}" if remark.detail else ""))


def _printable(name: str) -> str:
    # a file name on Linux need not be valid UTF-8, and then cannot be printed
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _class_table(classes: tuple[str, ...], counts: dict[str, np.ndarray]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("class", overflow="fold")
    for part in counts:
        table.add_column(part, justify="right", no_wrap=True)

    def add(label: int) -> None:
        table.add_row(Text(_printable(classes[label])), *(f"{numbers[label]:,}" for numbers in counts.values()))

    if len(classes) <= CLASSES:
        for label in range(len(classes)):
            add(label)
        return table
    order = np.argsort(-counts["all"], kind="stable").tolist()
    for label in order[: CLASSES // 2]:
        add(label)
    table.add_row(f"... {len(classes) - CLASSES // 2 * 2} more", *("" for _ in counts))
    for label in order[-(CLASSES // 2) :]:
        add(label)
    return table


FOUND_ERRORS = 3  # exit code
MOST_COMPARED = 200_000  # samples, all pairs of which take two minutes on two cores


def check_data(config: DictConfig) -> int:
    """Check the data that `config.data` names, print the report, and return the exit code.

    Args:
        config: As configs/check_data.yaml composes it.

    Raises:
        UserError: Wrong input.
    """
    report = None if config.json is None else Path(config.json)
    near_duplicates = None if config.near_duplicates is None else flag(config, "near_duplicates")
    datamodule = build_datamodule(plain(config.data))
    limits = Limits.of(config, datamodule.preprocessing.image_size)
    datamodule.prepare_data()
    if report is not None:
        require_outside(report, datamodule.source.root, key="json")
        if report.is_dir():
            raise UserError(f"json={report} is a folder: name a file")
    samples, problems = datamodule.read()
    reading = read_all(samples)
    parts = parts_of(reading, datamodule)
    remarks = [Remark(Kind.ANNOTATION, (problem.path,), problem.reason) for problem in problems]
    # a margin around the boxes leaves the image on purpose
    remarks += image_remarks(reading, limits, margin=bool(getattr(datamodule.source, "margin", 0)))
    remarks += duplicate_remarks(reading, parts)
    if near_duplicates is not False:
        remarks += near_duplicate_remarks(reading, parts, most=MOST_COMPARED if near_duplicates is None else None)
    remarks += class_remarks(reading, parts, limits)
    print_report(reading, parts, remarks)
    if report is not None:
        write_report(report, reading, parts, remarks)
    bad = ("error", "warning") if flag(config, "strict") else ("error",)
    return FOUND_ERRORS if any(remark.kind.severity in bad for remark in remarks) else 0


def parts_of(reading: Reading, datamodule: ClassificationDataModule) -> np.ndarray:
    """int8 (N,): the position in `SPLITS` that training would give each sample, or `UNASSIGNED`."""
    usable = reading.usable
    parts = np.full(len(reading.samples), UNASSIGNED, dtype=np.int8)
    if len(usable) == 0:
        return parts
    boxes = None if reading.samples.boxes is None else reading.boxes[usable].astype(np.int32)
    for name, rows in datamodule.divide(reading.samples.select(usable, boxes)).items():
        parts[usable[rows]] = SPLITS.index(name)
    return parts
