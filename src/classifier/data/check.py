"""Look at every file before the first epoch, so that all bad ones are known at once."""

import hashlib
import logging
import os
import struct
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from io import FileIO
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
from filelock import FileLock
from PIL import Image

from classifier.data.image import ImageError, decode, everything, image_problem
from classifier.data.jpeg import END, PNG_END, TAIL, scan
from classifier.data.samples import Problem, Samples, SizedStore
from classifier.errors import UserError, require_choice
from classifier.files import replacing
from classifier.parallel import parallel_map, worker_count

log = logging.getLogger(__name__)


OUTSIDE = 0.1  # of a box's side; less may be an annotator's slip
MANY = 0.05  # of the boxes


def warn_of_outside(boxes: np.ndarray, sizes: np.ndarray, margin: float) -> None:
    """Say so where many boxes leave their images: x1, y1, x2, y2 taken for x, y, width, height does that.

    Args:
        boxes: int32 (N, 4) as (x1, y1, x2, y2).
        sizes: int64 (N, 2), width and height of their images, in pixels.
        margin: By which the boxes were grown on each side, as a fraction of their sides.
    """
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 1)
    outside = np.maximum(-boxes[:, :2], boxes[:, 2:] - sizes) / sides
    # of an object at the edge, its margin is outside
    allowed = OUTSIDE + margin / (1 + 2 * margin)
    count = int((outside.max(axis=1, initial=0) > allowed).sum())
    if count > MANY * len(boxes):
        log.warning(
            "%d of %d boxes reach far over the edge of their image, and are cut there: are they x1, y1, x2, y2, or x, "
            "y, width, height (data.box_format of a table)? scripts/preview.py draws them",
            count,
            len(boxes),
        )


FORMAT = 1  # of the file; one of another format is ignored


class Stamp(NamedTuple):
    """A file's length in bytes and time of change: while they stay, so does what was found."""

    length: int
    mtime_ns: int


class Outcome(NamedTuple):
    """Width and height in pixels, or the reason why the file cannot be used."""

    width: int
    height: int
    reason: str = ""


Known = dict[str, tuple[Stamp, Outcome]]
"""What was found, by the path below the data's root."""


@contextmanager
def shared_cache(cache_dir: Path | None, root: Path, check: str) -> Iterator[Known]:
    """What earlier checks of `root` found; what is added to it inside the block is kept.

    One process of a machine is inside at a time, so that the others find what the first one did. Where nothing can
    be kept, it begins empty and ends so: without a folder, with one that cannot be written, or with one inside the
    data, which is read-only to us.
    """
    root = root.resolve()
    if cache_dir is None or cache_dir.resolve().is_relative_to(root):
        yield {}
        return
    # what one version of Pillow cannot read, another may
    origin = f"{FORMAT} {PIL.__version__} {check} {root}"
    digest = hashlib.sha256(f"{check} {root}".encode("utf-8", "surrogateescape")).hexdigest()
    path = cache_dir / "check" / f"{digest[:16]}.npz"
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(path.with_suffix(".lock")))
        except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
            _warn(path, error)
            yield {}
            return
        known = _load(path, origin)
        before = dict(known)
        try:
            yield known
        finally:  # what was found before Ctrl-C, too
            if known != before:
                _save(path, origin, known)


def _warn(path: Path, error: Exception) -> None:
    log.warning("cannot write %s (%s): the next run will read every header again (data.cache_dir=...)", path, error)


def _load(path: Path, origin: str) -> Known:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if _texts(arrays["origin"]) != [origin]:
                return {}
            paths, reasons = _texts(arrays["paths"]), _texts(arrays["reasons"])
            rows = zip(paths, reasons, arrays["numbers"].tolist(), strict=True)
            return {name: (Stamp(*row[:2]), Outcome(row[2], row[3], reason)) for name, reason, row in rows}
    except FileNotFoundError:
        return {}
    except Exception as error:  # a damaged archive raises many kinds, and is written anew
        log.debug("%s is ignored (%s)", path, error)
        return {}


def _save(path: Path, origin: str, known: Known) -> None:
    """Write the file, whole or not at all."""
    numbers = [(*stamp, outcome.width, outcome.height) for stamp, outcome in known.values()]
    arrays = {
        "origin": _bytes([origin]),
        "paths": _bytes(known),
        "reasons": _bytes(outcome.reason.replace("\0", " ") for _, outcome in known.values()),
        "numbers": np.array(numbers, dtype=np.int64).reshape(-1, 4),
    }
    try:
        with replacing(path) as scratch, scratch.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        _warn(path, error)


def _bytes(texts: Iterable[str]) -> np.ndarray:
    # surrogateescape: a file name on Linux need not be valid UTF-8
    return np.frombuffer("\0".join([*texts, ""]).encode("utf-8", "surrogateescape"), dtype=np.uint8)


def _texts(array: np.ndarray) -> list[str]:
    return array.tobytes().decode("utf-8", "surrogateescape").split("\0")[:-1]


CHECKS = ("quick", "full", "none")
# the bytes that end a whole file; a file without them was cut off, or is odd enough to be decoded to find out
END_MARKS = {"JPEG": END, "MPO": END, "PNG": PNG_END, "GIF": b"\0;"}
QUICK = 0.0002  # seconds; files that come faster, out of memory, are read faster by one thread than by several
CHUNK = 64  # files a task: handing one over takes longer than reading one header


def image_size(path: Path, check: str) -> tuple[int, int]:
    """Width and height, in pixels, from the header; raises on a file that cannot be used.

    The quick check reads the header and looks for the end mark, and decodes only what fails that; it costs about
    three per cent of decoding. The full one decodes, and so finds damage in the middle too.
    """
    with FileIO(path) as file:
        length = os.fstat(file.fileno()).st_size
        if length == 0:
            raise ValueError("empty file (0 bytes)")
        header = scan(file, length)
        size, whole = ((header.width, header.height), header.whole) if header else _read_by_pillow(file, length)
    require_reasonable(size)
    if check == "full" or not whole:
        decode(path, None, everything, (size[1], size[0]))
    return size


def _size_in_store(samples: Samples, row: int, check: str) -> tuple[int, int]:
    """Width and height of an image that is no file; raises on one that cannot be read."""
    if check != "full" and isinstance(samples.store, SizedStore) and samples.items is not None:
        return samples.store.size(int(samples.items[row]))
    picture = samples.image(row)
    if isinstance(picture, np.ndarray):
        return picture.shape[1], picture.shape[0]
    assert isinstance(picture, Image.Image)
    picture.load()
    return picture.size


def require_reasonable(size: tuple[int, int]) -> None:
    """Raise ValueError for more pixels than Pillow agrees to decode: a small file can ask for all memory."""
    limit, count = Image.MAX_IMAGE_PIXELS, size[0] * size[1]
    if limit is not None and count > 2 * limit:
        raise ValueError(
            f"{size[0]}x{size[1]} are {count:,} pixels, more than the {2 * limit:,} that are safe to decode"
        )


def _read_by_pillow(file: FileIO, length: int) -> tuple[tuple[int, int], bool]:
    """Width and height, and whether the file ends as a whole one does."""
    file.seek(max(0, length - TAIL))
    tail = file.read(TAIL)
    file.seek(0)
    with Image.open(file) as image:
        size, kind = image.size, image.format or ""
    if kind == "WEBP":
        file.seek(0)
        return size, length >= int.from_bytes(file.read(12)[4:8], "little") + 8
    mark = END_MARKS.get(kind)
    return size, mark is not None and mark in tail


def check_images(
    samples: Samples, check: str, cache_dir: Path | None = None, margin: float = 0.0
) -> tuple[Samples, list[Problem]]:
    """The usable part of `samples`, with boxes cut at the image's edge, and what is wrong with the rest.

    Args:
        check: One of `CHECKS`.
        cache_dir: Keeps what was found: of files that are as they were, nothing is read the next time.
        margin: By which the boxes were grown, as a fraction of their own sides.

    Raises:
        UserError: `check` is unknown.
    """
    require_choice("data.check", check, CHECKS)
    if check == "none" and samples.boxes is None:
        return samples, []
    _, first_rows, inverse = np.unique(samples.image_ids(), return_index=True, return_inverse=True)
    paths = [samples.relative_path(int(row)) for row in first_rows]
    if samples.store is None:
        level = "full" if check == "full" else "quick"  # boxes need the sizes
        outcomes = _outcomes(samples.root, paths, level, cache_dir)
    else:
        outcomes = [_look(partial(_size_in_store, samples, row, check))[0] for row in first_rows.tolist()]
    named = zip(paths, outcomes, strict=True)
    problems = [Problem(path, outcome.reason) for path, outcome in named if outcome.reason]
    sizes = np.array([(outcome.width, outcome.height) for outcome in outcomes]).reshape(-1, 2)[inverse]
    usable = sizes[:, 0] > 0
    boxes = samples.boxes
    if boxes is not None:
        warn_of_outside(boxes[usable], sizes[usable], margin)
        limits = np.concatenate([sizes, sizes], axis=1)
        boxes = np.clip(boxes, 0, limits)
        empty = (boxes[:, 2] <= boxes[:, 0]) | (boxes[:, 3] <= boxes[:, 1])
        for row in np.flatnonzero(usable & empty):
            width, height = sizes[row]
            reason = f"box {samples.box(int(row))} lies outside the image of {width}x{height} pixels"
            problems.append(Problem(samples.relative_path(int(row)), reason))
        usable &= ~empty
        boxes = boxes[usable]
    return samples.select(np.flatnonzero(usable), boxes), problems


def _outcomes(root: Path, paths: Sequence[str], check: str, cache_dir: Path | None) -> list[Outcome]:
    """What is known of each file; those that are new or changed are read."""
    outcomes: list[Outcome] = []
    chunks = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
    with shared_cache(cache_dir, root, check) as known, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large, but not refused

        def look_at(chunk: Sequence[str]) -> list[tuple[str, Outcome, Stamp | None]]:
            """Each with its stamp, where that is new and what was found is to be kept."""
            found: list[tuple[str, Outcome, Stamp | None]] = []
            for path in chunk:
                place = f"{root}/{path}"  # a million `Path`s take seconds
                stamp = _stamp(place)
                before = known.get(path)
                if before is not None and before[0] == stamp:
                    found.append((path, before[1], None))
                else:
                    outcome, lasting = _look(partial(image_size, Path(place), check))
                    found.append((path, outcome, stamp if lasting else None))
            return found

        started = time.perf_counter()
        first = [look_at(chunk) for chunk in chunks[:1]]
        waits = time.perf_counter() - started > QUICK * CHUNK
        rest = parallel_map(look_at, chunks[1:], worker_count("auto")) if waits else map(look_at, chunks[1:])
        for path, outcome, stamp in chain.from_iterable(chain(first, rest)):
            outcomes.append(outcome)
            if stamp is not None:
                known[path] = (stamp, outcome)
    return outcomes


def _stamp(path: str) -> Stamp | None:
    """None for a file that cannot be asked; reading it will tell why."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):  # ValueError: a zero byte in the name
        return None
    return Stamp(status.st_size, status.st_mtime_ns)


def _look(size: Callable[[], tuple[int, int]]) -> tuple[Outcome, bool]:
    """What is found, and whether it stays so as long as the file does."""
    try:
        return Outcome(*size()), True
    except Exception as error:  # whatever a Pillow plugin meets on damaged bytes
        cause, reason = cause_of(error)
        # a file that may not be opened, a disk that failed: that can change without the file
        lasting = not (isinstance(cause, OSError) and cause.errno is not None) and not isinstance(cause, MemoryError)
        return Outcome(0, 0, reason), lasting


def cause_of(error: Exception) -> tuple[BaseException, str]:
    """What went wrong with a file, and in words; `decode` wraps it in advice that is for one file."""
    cause = (isinstance(error, ImageError) and error.__cause__) or error
    # where a header ends too early, Pillow lets `struct` complain
    return cause, "the file is cut off" if isinstance(cause, struct.error) else image_problem(cause)


def refuse(problems: list[Problem], count: int) -> None:
    """Raise one UserError that lists all problems among `count` samples (twenty in words)."""
    lines = [f"  {problem.path}: {problem.reason}" for problem in problems[:20]]
    if len(problems) > 20:
        lines.append(f"  ... and {len(problems) - 20} more")
    raise UserError(
        "\n".join([f"{len(problems)} of {count} samples cannot be used:", *lines])
        + "\nMend or remove them, or leave them out with data.on_error=skip"
    )
