"""Look at every file before the first epoch, so that all bad ones are known at once."""

import os
import struct
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from io import FileIO
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

from classifier.data.check_boxes import warn_of_outside
from classifier.data.check_cache import Outcome, Stamp, shared_cache
from classifier.data.decode import decode
from classifier.data.header import PNG_END, scan
from classifier.data.jpeg import END, TAIL
from classifier.data.samples import Problem, Samples, SizedStore
from classifier.data.stored import ImageError, image_problem
from classifier.data.upright import everything
from classifier.errors import UserError, require_choice
from classifier.parallel import parallel_map, worker_count

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
