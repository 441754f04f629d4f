"""Look at every file before the first epoch, so that all bad ones are known at once."""

import hashlib
import logging
import os
import struct
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import PIL
from PIL import Image

from classifier.data import jpeg
from classifier.data.boxes import cut, in_pixels
from classifier.data.image import (
    ImageError,
    Picture,
    ValueRange,
    decode,
    deep_values,
    everything,
    image_problem,
    open_image,
    opened,
    orientation_of,
    require_file,
)
from classifier.data.jpeg import END, TAIL
from classifier.data.loader import Images
from classifier.data.samples import BOX, mark, readable, usable
from classifier.errors import UserError, require_choice
from classifier.files import locked, whole_file
from classifier.parallel import parallel_map, worker_count

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

# the bytes that end a whole file; a file without them was cut off, or is odd enough to be decoded to find out
END_MARKS = {"JPEG": END, "MPO": END, "PNG": b"IEND\xaeB`\x82", "GIF": b"\0;"}
HEAD = 1 << 15  # bytes, which hold the header of nearly every JPEG
DARK = (255, 1023, 4095, 16383)  # white of 8 to 14 bits, in files of 16
SOME = 1 << 20  # numbers of an image that are looked at
CHUNK = 64  # files a task: handing one over takes longer than reading one header
QUICK = 0.0002  # seconds a file: what takes longer is done in threads
KEPT = {"path": "str", "size": "int64", "mtime": "int64"}
KEPT |= dict.fromkeys(("width", "height", "orientation"), "int64")
How = tuple[str, ValueRange | None]  # `quick` or `full`, and the values that become black and white
Header = tuple[int, int, int]
"""Width and height in pixels, as stored, and EXIF's orientation."""
FOUND = ("width", "height", "orientation", "problem")
Outcome = tuple[int, int, int, str | None]
"""A header, of width and height 0 where there is a problem."""


def check_images(
    table: pd.DataFrame, images: Images, check: str, cache_dir: Path | None = None, margin: float = 0.0
) -> pd.DataFrame:
    """`table` with the problems of files and boxes noted, and with boxes cut at the image's edge.

    Args:
        images: Of the same rows.
        check: `quick`, `full` or `none`.
        cache_dir: Keeps what was found: of good files that are as they were, nothing is read the next time.
        margin: By which the boxes were grown, as a share of their own sides.

    Raises:
        UserError: `check` is unknown.
    """
    require_choice("data.check", check, ("quick", "full", "none"))
    rows, boxed = usable(table), BOX[0] in table
    if not rows.any() or (check == "none" and not boxed):
        return table
    found = headers(table, images, "full" if check == "full" else "quick", cache_dir)
    table = mark(table, rows & (found["width"] == 0).to_numpy(), found["problem"])
    return cut(in_pixels(table, found, margin), found, margin) if boxed else table


def headers(table: pd.DataFrame, images: Images, check: str = "quick", cache_dir: Path | None = None) -> pd.DataFrame:
    """`width` (0 where it cannot be used), `height`, `orientation` and `problem` of each usable row's image."""
    rows = np.flatnonzero(usable(table))
    numbers, paths = pd.factorize(table["path"].iloc[rows])
    how: How = check, images.value_range
    if images.items is None:
        found = _check_files(images.root, paths, how, cache_dir)[[*FOUND]]
    else:
        first = rows[np.unique(numbers, return_index=True)[1]]
        one_for_all = check != "full" and BOX[0] not in table
        found = pd.DataFrame(_check_pictures(images, first.tolist(), how, one_for_all), columns=[*FOUND])
    found = found.iloc[numbers].set_axis(table.index[rows]).reindex(table.index)
    return found.fillna({"width": 0, "height": 0, "orientation": 1}).astype({"width": "int64", "height": "int64"})


def image_size(path: str | Path, check: str, value_range: ValueRange | None = None) -> Header:
    """Width, height and orientation, from the header; raises on a file that cannot be used.

    The quick check reads the header and looks for the end mark, and decodes only what fails that. The full one
    decodes, and so finds damage in the middle too.
    """
    if (length := require_file(path)) == 0:
        raise ValueError("empty file (0 bytes)")
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - a `Path` takes a tenth of the check
        head = file.read(HEAD)
        file.seek(max(0, length - TAIL))
        tail = file.read(TAIL)
        # what `decode` reads by itself: in a third of the time that Pillow takes to open the file
        plain = jpeg.parse(head) if head.startswith(jpeg.START) else None
        if plain is not None:
            size, whole = (plain.width, plain.height, plain.orientation), END in tail
        else:
            file.seek(0)
            with opened(file) as image:
                size, end = (*image.size, orientation_of(image)), END_MARKS.get(image.format or "")
            whole = end is not None and end in tail
            if head[8:12] == b"WEBP":
                whole = length >= int.from_bytes(head[4:8], "little") + 8
    if check == "full" or not whole:
        decode(Path(path), None, everything, (size[1], size[0]), value_range=value_range)
    return size


def cause_of(error: Exception) -> tuple[BaseException, str]:
    """What went wrong with a file, and in words; `decode` wraps it in advice that is for one file."""
    cause = (isinstance(error, ImageError) and error.__cause__) or error
    # where a header ends too early, Pillow lets `struct` complain
    return cause, "the file is cut off" if isinstance(cause, struct.error) else image_problem(cause)


def _look(size: Callable[[], Header]) -> Outcome:
    try:
        return *size(), None
    except Exception as error:  # whatever a Pillow plugin meets on damaged bytes
        return 0, 0, 1, readable(cause_of(error)[1])


def _check_pictures(images: Images, rows: Sequence[int], how: How, one_for_all: bool) -> list[Outcome]:
    """Of images that are not files. An array is one piece: if its first image can be read, the others can."""

    def size(row: int) -> Header:
        picture = images.picture(row)
        if isinstance(picture, (str, Path)):
            return image_size(Path(picture), *how)
        image = open_image(picture, how[1])
        decode(image, None, everything, (image.height, image.width))
        return image.width, image.height, image.orientation

    if one_for_all and isinstance(images.picture(rows[0]), np.ndarray):
        rows = [rows[0]] * len(rows)
    return [_look(partial(size, row)) for row in rows]


def _check_files(root: Path, paths: pd.Index, how: How, cache_dir: Path | None) -> pd.DataFrame:
    """What is `FOUND` of each file; read where the cache does not know it as it is.

    One process of a machine is inside at a time, so that the others find what the first one did. Nothing is kept
    without a folder, in one that cannot be written, or in one inside the data, which is read-only to us.
    """
    if cache_dir is None or cache_dir.resolve().is_relative_to(root.resolve()):
        return _read_files(root, paths, how, None)
    # what one version of Pillow cannot read, another may
    origin = f"{list(KEPT)} {PIL.__version__} {how} {root.resolve()}".encode("utf-8", "surrogateescape")
    path = cache_dir / "check" / f"{hashlib.sha256(origin).hexdigest()[:16]}.parquet"
    try:
        with locked(path.with_suffix(".lock"), "data.cache_dir"):
            return _read_files(root, paths, how, path)
    except UserError as error:
        log.warning("the next run will read every header again: %s", error)
        return _read_files(root, paths, how, None)


def _read_files(root: Path, paths: pd.Index, how: How, cache: Path | None) -> pd.DataFrame:
    places = [f"{root}/{path}" for path in paths]  # a million `Path`s take seconds
    stamps = np.array(list(_in_threads(stamp, places)), dtype=np.int64)
    files = pd.DataFrame({"path": paths, "size": stamps[:, 0], "mtime": stamps[:, 1]})
    known = pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in KEPT.items()})
    if cache is not None:
        with suppress(Exception):  # a damaged file raises many kinds, and is rewritten
            known = pd.read_parquet(cache)[list(KEPT)].astype(KEPT)
    files = files.merge(known, how="left", on=["path", "size", "mtime"])
    new = np.flatnonzero(files["width"].isna())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large, but not refused
        looked = list(_in_threads(lambda row: _look(lambda: image_size(places[row], *how)), new.tolist()))
    files = pd.DataFrame(looked, new, [*FOUND]).combine_first(files)
    if looked and cache is not None:
        # not what failed: a right to read can come without a change of the file
        good = pd.concat([files[files["width"] > 0], known]).drop_duplicates("path")
        with whole_file(cache, "data.cache_dir") as scratch:
            good[list(KEPT)].astype(KEPT).to_parquet(scratch, index=False)
    return files


def stamp(path: str) -> tuple[int, int]:
    """A file's length in bytes and its time of change: while they stay, so does what was found."""
    with suppress(OSError, ValueError):  # ValueError: a zero byte in the name. Reading the file will say why
        status = os.stat(path)  # noqa: PTH116
        return status.st_size, status.st_mtime_ns
    return -1, -1


def _in_threads(function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """`function` of each item, in their order; in threads only where the first ones took long.

    Threads help to wait for a disk and to decode. Reading headers from memory, they wait for Python's lock, and take
    twice the time.
    """

    def each(some: Sequence[T]) -> list[R]:
        return [function(item) for item in some]

    started = time.perf_counter()
    first = each(items[:CHUNK])
    slow = time.perf_counter() - started > QUICK * CHUNK
    chunks = (items[start : start + CHUNK] for start in range(CHUNK, len(items), CHUNK))
    rest = parallel_map(each, chunks, worker_count("auto")) if slow else map(each, chunks)
    for results in chain([first], rest):
        yield from results


def note_on_values(values: np.ndarray | None, value_range: ValueRange | None) -> dict[str, str]:
    """What is unusual about the numbers of images of more than 8 bits, as a note of `Facts`."""
    if values is None:
        return {}
    low, high = (float(least.reduce(values, axis=None)) for least in (np.fmin, np.fmax))  # of all but nan
    if value_range is None:
        whites: list[float] = [white for white in DARK if high <= white and values.dtype.name == "uint16"]
        whites += [high] * (values.dtype.kind == "f" and 0 < high <= 1 / 16)
        advice = f"train with data.value_range=[0,{min(whites, default=0):g}]"
        what = f"no value is above {high:g}: where that is white, {advice}"
        return {"nearly black": what} if whites else {}
    (black, white), nan = value_range, bool(np.isnan(values.min()))
    if black < high <= black + (white - black) / 16:
        return {"nearly black": f"no value is above {high:g}, for data.value_range=[{black:g},{white:g}]"}
    what = f"values from {low:g} to {high:g}{' and nan' * nan}, for data.value_range=[{black:g},{white:g}]"
    return {"out of range": what} if nan or low < 2 * black - white or high > 2 * white - black else {}


def warn_of_values(count: int, picture: Callable[[int], Picture], value_range: ValueRange | None) -> None:
    """Say where black and white do not fit a few images of more than 8 bits, by what `picture` gives for a number."""
    found: list[np.ndarray] = []
    for row in dict.fromkeys(np.random.default_rng(0).integers(0, count, 64).tolist()):
        with suppress(Exception):  # who reads it will say why
            if len(found) < 8 and (values := deep_values(picture(row))) is not None:
                found.append(values.ravel()[:: 1 + values.size // SOME])
    for kind, detail in note_on_values(np.concatenate(found) if found else None, value_range).items():
        log.warning("%s: in %d images of more than 8 bits that were looked at, %s", kind, len(found), detail)


def refuse(skipped: pd.DataFrame, count: int) -> None:
    """Raise one UserError that lists the `path` and `problem` of bad ones among `count` samples; see `kinds`."""
    advice = "Mend or remove them, or leave them out with data.on_error=skip"
    raise UserError("\n".join([f"{len(skipped)} of {count} samples cannot be used:", *kinds(skipped), advice]))


def kinds(skipped: pd.DataFrame) -> list[str]:
    """Lines with three of each kind of problem, the most common first; kinds differ in more than numbers and paths."""
    alike = skipped["problem"].str.replace(r"\S*[\d/'\"]\S*", "", regex=True)
    lines = []
    for kind, count in alike.value_counts(sort=False).sort_values(ascending=False, kind="stable").head(20).items():
        paths = skipped[alike == kind].head(3).groupby("problem", sort=False)["path"].agg(", ".join)
        lines += [f"  {names}: {problem}" for problem, names in paths.items()]
        lines += [f"  ... and {count - 3} more like these"] * (count > 3)
    return lines
