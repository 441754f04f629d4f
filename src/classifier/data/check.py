"""Look at every file before the first epoch, so that all bad ones are known at once."""

import hashlib
import logging
import os
import struct
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import pandas as pd
import PIL
from PIL import Image

from classifier.data.image import ImageError, decode, everything, image_problem
from classifier.data.jpeg import END, TAIL
from classifier.data.loader import Images
from classifier.data.samples import BOX, boxes_of, mark, readable, usable
from classifier.errors import UserError, require_choice
from classifier.files import locked, whole_file
from classifier.parallel import parallel_map, worker_count

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

CHECKS = ("quick", "full", "none")
# the bytes that end a whole file; a file without them was cut off, or is odd enough to be decoded to find out
END_MARKS = {"JPEG": END, "MPO": END, "PNG": b"IEND\xaeB`\x82", "GIF": b"\0;"}
QUICK = 0.0002  # seconds; files that come faster, out of memory, are read faster by one thread than by several
CHUNK = 64  # files a task: handing one over takes longer than reading one header
OUTSIDE = 0.1  # of a box's side; less may be an annotator's slip
MANY = 0.05  # of the boxes


class Outcome(NamedTuple):
    """Width and height in pixels, or 0 and the problem; and whether that lasts as long as the file does."""

    width: int
    height: int
    problem: str | None = None
    lasting: bool = True


def check_images(
    table: pd.DataFrame, images: Images, check: str, cache_dir: Path | None = None, margin: float = 0.0
) -> pd.DataFrame:
    """`table` with the problems of files and boxes noted, and with boxes cut at the image's edge.

    Args:
        images: Of the same rows.
        check: One of `CHECKS`.
        cache_dir: Keeps what was found: of files that are as they were, nothing is read the next time.
        margin: By which the boxes were grown, as a share of their own sides.

    Raises:
        UserError: `check` is unknown.
    """
    require_choice("data.check", check, CHECKS)
    rows = np.flatnonzero(usable(table))
    if len(rows) == 0 or (check == "none" and BOX[0] not in table):
        return table
    numbers, paths = pd.factorize(table["path"].iloc[rows])
    if images.items is None:
        level = "full" if check == "full" else "quick"  # boxes need the sizes
        found = _check_files(images.root, paths, level, cache_dir)
    else:
        first = rows[np.unique(numbers, return_index=True)[1]]
        found = pd.DataFrame(_check_pictures(images, first.tolist(), check), columns=Outcome._fields)
    found = found.iloc[numbers].set_axis(table.index[rows])
    table = mark(table, table.index.isin(found.index[found["width"] == 0]), found["problem"].reindex(table.index))
    return table if BOX[0] not in table else _cut_boxes(table, found, margin)


def _cut_boxes(table: pd.DataFrame, found: pd.DataFrame, margin: float) -> pd.DataFrame:
    boxes = boxes_of(table)
    assert boxes is not None
    sizes = found[["width", "height"]].reindex(table.index, fill_value=0).to_numpy(np.int64)
    good = usable(table)
    warn_of_outside(boxes[good], sizes[good], margin)
    cut = np.clip(boxes, 0, np.tile(sizes, 2)).astype(np.int32)
    empty = good & (cut[:, 2:] <= cut[:, :2]).any(axis=1)
    texts = [
        f"box {tuple(box)} lies outside the image of {width}x{height} pixels"
        for box, (width, height) in zip(boxes[empty].tolist(), sizes[empty].tolist(), strict=True)
    ]
    table = mark(table, empty, pd.Series(texts, table.index[empty], dtype="str").reindex(table.index))
    cut[~good | empty] = boxes[~good | empty]
    return table.assign(**dict(zip(BOX, cut.T, strict=True)))


def warn_of_outside(boxes: np.ndarray, sizes: np.ndarray, margin: float) -> None:
    """Say so where many boxes leave their images: x1, y1, x2, y2 taken for x, y, width, height does that.

    Args:
        boxes: int32 (N, 4) as (x1, y1, x2, y2).
        sizes: int64 (N, 2), width and height of their images, in pixels.
        margin: By which the boxes were grown on each side, as a share of their sides.
    """
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 1)
    outside = np.maximum(-boxes[:, :2], boxes[:, 2:] - sizes) / sides
    # the margin of an object at the edge lies outside
    allowed = OUTSIDE + margin / (1 + 2 * margin)
    count = int((outside.max(axis=1, initial=0) > allowed).sum())
    if count > MANY * len(boxes):
        log.warning(
            "%d of %d boxes reach far over the edge of their image, and are cut there: are they x1, y1, x2, y2, or x, "
            "y, width, height (data.box_format of a table)? scripts/preview.py draws them",
            *(count, len(boxes)),
        )


def image_size(path: Path, check: str) -> tuple[int, int]:
    """Width and height, in pixels, from the header; raises on a file that cannot be used.

    The quick check reads the header and looks for the end mark, and decodes only what fails that. The full one
    decodes, and so finds damage in the middle too.
    """
    with path.open("rb") as file:
        length = os.fstat(file.fileno()).st_size
        if length == 0:
            raise ValueError("empty file (0 bytes)")
        with Image.open(file) as image:
            size, kind = image.size, image.format or ""
            if kind == "WEBP":
                file.seek(4)
                whole = length >= int.from_bytes(file.read(4), "little") + 8
            else:
                file.seek(max(0, length - TAIL))
                whole = kind in END_MARKS and END_MARKS[kind] in file.read(TAIL)
    if check == "full" or not whole:
        decode(path, None, everything, (size[1], size[0]))
    return size


def cause_of(error: Exception) -> tuple[BaseException, str]:
    """What went wrong with a file, and in words; `decode` wraps it in advice that is for one file."""
    cause = (isinstance(error, ImageError) and error.__cause__) or error
    # where a header ends too early, Pillow lets `struct` complain
    return cause, "the file is cut off" if isinstance(cause, struct.error) else image_problem(cause)


def _look(size: Callable[[], tuple[int, int]]) -> Outcome:
    try:
        return Outcome(*size())
    except Exception as error:  # whatever a Pillow plugin meets on damaged bytes
        cause, problem = cause_of(error)
        # a file that may not be opened, a disk that failed: that can change without the file
        lasting = not (isinstance(cause, OSError) and cause.errno is not None) and not isinstance(cause, MemoryError)
        return Outcome(0, 0, readable(problem), lasting)


def _check_pictures(images: Images, rows: Sequence[int], check: str) -> list[Outcome]:
    """Of images that are not files. An array is one piece: if its first image can be read, the others can."""

    def size(row: int) -> tuple[int, int]:
        picture = images.picture(row)
        if isinstance(picture, Path):
            return image_size(picture, check)
        if isinstance(picture, Image.Image):
            picture.load()
            return picture.size
        return picture.shape[1], picture.shape[0]

    if check != "full" and images.boxes is None and isinstance(images.picture(rows[0]), np.ndarray):
        rows = [rows[0]] * len(rows)
    return [_look(partial(size, row)) for row in rows]


def _check_files(root: Path, paths: pd.Index, check: str, cache_dir: Path | None) -> pd.DataFrame:
    """What is known of each file, as the columns of `Outcome`; those that are new or changed are read."""
    places = [f"{root}/{path}" for path in paths]  # a million `Path`s take seconds
    with _cache_file(cache_dir, root, check) as kept, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large, but not refused
        stamps = np.array(list(_in_chunks(_stamp, places)), dtype=np.int64)
        files = pd.DataFrame({"path": paths, "size": stamps[:, 0], "mtime": stamps[:, 1]})
        known = _load(kept)
        files = files.merge(known, how="left", on=["path", "size", "mtime"]).assign(lasting=True)
        new = np.flatnonzero(files["width"].isna())
        looked: list[Outcome] = []
        try:
            look = _in_chunks(lambda row: _look(lambda: image_size(Path(places[row]), check)), new.tolist())
            looked.extend(look)
        finally:  # what was found before Ctrl-C is kept, too
            if looked:
                found = pd.DataFrame(looked, columns=Outcome._fields, index=new[: len(looked)])
                files = pd.concat([files.drop(found.index), files[["path", "size", "mtime"]].join(found, how="right")])
                _save(kept, pd.concat([files[files["lasting"] & files["width"].notna()], known]))
    return files.sort_index()


def _stamp(path: str) -> tuple[int, int]:
    """A file's length in bytes and its time of change: while they stay, so does what was found."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):  # ValueError: a zero byte in the name. Reading the file will say why
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _in_chunks(function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """`function` of each item in their order; in several threads where the first ones took long."""

    def run(chunk: Sequence[T]) -> list[R]:
        return [function(item) for item in chunk]

    chunks = [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
    started = time.perf_counter()
    first = [run(chunk) for chunk in chunks[:1]]
    waits = time.perf_counter() - started > QUICK * CHUNK
    rest = parallel_map(run, chunks[1:], worker_count("auto")) if waits else map(run, chunks[1:])
    return chain.from_iterable(chain(first, rest))


COLUMNS = {"path": "str", "size": "int64", "mtime": "int64", "width": "int64", "height": "int64", "problem": "str"}


@contextmanager
def _cache_file(cache_dir: Path | None, root: Path, check: str) -> Iterator[Path | None]:
    """The Parquet file that keeps what checks of `root` found; None where nothing can be kept.

    One process of a machine is inside at a time, so that the others find what the first one did. Nothing is kept
    without a folder, in one that cannot be written, or in one inside the data, which is read-only to us.
    """
    root, path = root.resolve(), None
    with ExitStack() as stack:
        if cache_dir is not None and not cache_dir.resolve().is_relative_to(root):
            # what one version of Pillow cannot read, another may
            origin = f"{list(COLUMNS)} {PIL.__version__} {check} {root}".encode("utf-8", "surrogateescape")
            path = cache_dir / "check" / f"{hashlib.sha256(origin).hexdigest()[:16]}.parquet"
            try:
                stack.enter_context(locked(path.with_suffix(".lock"), "data.cache_dir"))
            except UserError as error:
                log.warning("the next run will read every header again: %s", error)
                path = None
        yield path


def _load(path: Path | None) -> pd.DataFrame:
    """What was found before, each path once; nothing where the file is damaged."""
    try:
        if path is not None and path.exists():
            return pd.read_parquet(path)[list(COLUMNS)].astype(COLUMNS).drop_duplicates("path")
    except Exception as error:  # a damaged file raises many kinds, and is rewritten
        log.debug("%s is ignored (%s)", path, error)
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in COLUMNS.items()})


def _save(path: Path | None, found: pd.DataFrame) -> None:
    """Write the file, whole or not at all; of a path that comes twice, the first counts."""
    if path is None:
        return
    try:
        with whole_file(path, "data.cache_dir") as scratch:
            found[list(COLUMNS)].drop_duplicates("path").astype(COLUMNS).to_parquet(scratch, index=False)
    except UserError as error:
        log.warning("the next run will read every header again: %s", error)


def refuse(skipped: pd.DataFrame, count: int) -> None:
    """Raise one UserError that lists the `path` and `problem` of bad ones among `count` samples, the first twenty."""
    lines = ("  " + skipped["path"] + ": " + skipped["problem"]).tolist()
    more = [f"  ... and {len(lines) - 20} more"] if len(lines) > 20 else []
    advice = "Mend or remove them, or leave them out with data.on_error=skip"
    raise UserError("\n".join([f"{len(lines)} of {count} samples cannot be used:", *lines[:20], *more, advice]))
