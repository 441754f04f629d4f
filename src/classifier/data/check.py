"""Look at every file before the first epoch, so that all bad ones are known at once."""

import os
import struct
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

from classifier.data.check_cache import Outcome, Stamp, shared_cache
from classifier.data.decode import decode
from classifier.data.header import TAIL, scan
from classifier.data.picture import Picture
from classifier.data.samples import Problem, Samples
from classifier.data.stored import image_problem
from classifier.data.upright import everything
from classifier.errors import UserError, did_you_mean

CHECKS = ("quick", "full", "none")
# the bytes that end a whole file; a file without them was cut off, or is odd enough to be decoded to find out
END_MARKS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82", "GIF": b"\0;"}
CHUNK = 64  # files a task: handing one over takes longer than reading one header


def image_size(picture: Picture, check: str) -> tuple[int, int]:
    """Width and height, in pixels, from the header; raises on a file that cannot be used.

    The quick check reads the header and looks for the end mark, and decodes only what fails that; it costs about one
    per cent of decoding. The full one decodes, and so finds damage in the middle too.
    """
    if isinstance(picture, np.ndarray):
        return picture.shape[1], picture.shape[0]
    if isinstance(picture, Image.Image):
        return picture.size
    with FileIO(picture) as file:
        length = os.fstat(file.fileno()).st_size
        if length == 0:
            raise ValueError("empty file (0 bytes)")
        header = scan(file, length)
        size, whole = ((header.width, header.height), header.whole) if header else _read_by_pillow(file, length)
    require_reasonable(size)
    if check == "full" or not whole:
        decode(picture, None, everything, (size[1], size[0]))
    return size


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


def check_images(samples: Samples, check: str, cache_dir: Path | None = None) -> tuple[Samples, list[Problem]]:
    """The usable part of `samples`, with boxes cut at the image's edge, and what is wrong with the rest.

    Args:
        check: One of `CHECKS`.
        cache_dir: Keeps what was found: of files that are as they were, nothing is read the next time.

    Raises:
        UserError: `check` is unknown.
    """
    if check not in CHECKS:
        raise UserError(f"data.check={check} is unknown: {did_you_mean(check, CHECKS)}")
    if check == "none" and samples.boxes is None:
        return samples, []
    _, first_rows, inverse = np.unique(samples.image_ids(), return_index=True, return_inverse=True)
    paths = [samples.relative_path(int(row)) for row in first_rows]
    if samples.store is None:
        level = "full" if check == "full" else "quick"  # boxes need the sizes
        outcomes = _outcomes(samples.root, paths, level, cache_dir)
    else:
        outcomes = [_look(samples.image(int(row)), check)[0] for row in first_rows]
    named = zip(paths, outcomes, strict=True)
    problems = [Problem(path, outcome.reason) for path, outcome in named if outcome.reason]
    sizes = np.array([(outcome.width, outcome.height) for outcome in outcomes]).reshape(-1, 2)[inverse]
    usable = sizes[:, 0] > 0
    boxes = samples.boxes
    if boxes is not None:
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
    outcomes: dict[str, Outcome] = {}
    with shared_cache(cache_dir, root, check) as known, ThreadPoolExecutor() as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large, but not refused
        stamps = {path: _stamp(root / path) for path in paths}
        unknown = []
        for path, stamp in stamps.items():
            if stamp is not None and path in known and known[path][0] == stamp:
                outcomes[path] = known[path][1]
            else:
                unknown.append(path)
        chunks = [unknown[start : start + CHUNK] for start in range(0, len(unknown), CHUNK)]
        looks = chain.from_iterable(pool.map(lambda chunk: [_look(root / path, check) for path in chunk], chunks))
        for path, (outcome, lasting) in zip(unknown, looks, strict=True):
            outcomes[path] = outcome
            if lasting and (stamp := stamps[path]) is not None:
                known[path] = (stamp, outcome)
    return [outcomes[path] for path in paths]


def _stamp(path: Path) -> Stamp | None:
    """None for a file that cannot be asked; reading it will tell why."""
    try:
        status = path.stat()
    except OSError:
        return None
    return Stamp(status.st_size, status.st_mtime_ns)


def _look(picture: Picture, check: str) -> tuple[Outcome, bool]:
    """What is found, and whether it stays so as long as the file does."""
    try:
        return Outcome(*image_size(picture, check)), True
    except Exception as error:  # whatever a Pillow plugin meets on damaged bytes
        cause, reason = cause_of(error)
        # a file that may not be opened, a disk that failed: that can change without the file
        lasting = not (isinstance(cause, OSError) and cause.errno is not None) and not isinstance(cause, MemoryError)
        return Outcome(0, 0, reason), lasting


def cause_of(error: Exception) -> tuple[BaseException, str]:
    """What went wrong with a file, and in words; `decode` wraps it in advice that is for one file."""
    cause = error.__cause__ or error
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
