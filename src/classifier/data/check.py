"""Look at every file before the first epoch, so that all bad ones are known at once."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from classifier.data.decode import Picture, decode, image_problem
from classifier.data.samples import Problem, Samples
from classifier.errors import UserError, did_you_mean

CHECKS = ("quick", "full", "none")
# the bytes that end a whole file; a file without them was cut off, or is odd enough to be decoded to find out
END_MARKS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82", "GIF": b"\0;"}
TAIL = 64  # cameras pad some files behind the end mark


def image_size(picture: Picture, check: str) -> tuple[int, int]:
    """Width and height, in pixels, from the header; raises on a file that cannot be used.

    The quick check reads the header and looks for the end mark, and decodes only what fails that; it costs a few
    per cent of decoding. The full one decodes, and so finds damage in the middle too.
    """
    if isinstance(picture, np.ndarray):
        return picture.shape[1], picture.shape[0]
    if isinstance(picture, Image.Image):
        return picture.size
    with picture.open("rb") as file:
        length = file.seek(0, 2)
        if length == 0:
            raise ValueError("empty file (0 bytes)")
        file.seek(max(0, length - TAIL))
        tail = file.read()
        file.seek(0)
        with Image.open(file) as image:
            size, mark = image.size, END_MARKS.get(image.format or "")
        file.seek(0)
        if image.format == "WEBP":
            header = file.read(12)
            whole = length >= int.from_bytes(header[4:8], "little") + 8
        else:
            whole = mark is not None and mark in tail
    if check == "full" or not whole:
        decode(picture, None, lambda width, height: (0, 0, width, height), (size[1], size[0]))
    return size


def check_images(samples: Samples, check: str) -> tuple[Samples, list[Problem]]:
    """The usable part of `samples`, with boxes cut at the image's edge, and what is wrong with the rest.

    Raises:
        UserError: `check` is unknown.
    """
    if check not in CHECKS:
        raise UserError(f"data.check={check} is unknown: {did_you_mean(check, CHECKS)}")
    if check == "none" and samples.boxes is None:
        return samples, []
    _, first_rows, inverse = np.unique(samples.image_ids(), return_index=True, return_inverse=True)
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(lambda row: _size_or_problem(samples, int(row), check), first_rows))
    problems = [result for result in results if isinstance(result, Problem)]
    sizes = np.array([(0, 0) if isinstance(result, Problem) else result for result in results]).reshape(-1, 2)[inverse]
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


def _size_or_problem(samples: Samples, row: int, check: str) -> tuple[int, int] | Problem:
    try:
        return image_size(samples.image(row), check)
    except Exception as error:  # whatever a Pillow plugin meets on damaged bytes
        cause = error.__cause__ or error  # `decode` wraps it in advice that is for one file
        return Problem(samples.relative_path(row), image_problem(cause))


def refuse(problems: list[Problem], count: int) -> None:
    """Raise one UserError that lists all problems among `count` samples (twenty in words)."""
    lines = [f"  {problem.path}: {problem.reason}" for problem in problems[:20]]
    if len(problems) > 20:
        lines.append(f"  ... and {len(problems) - 20} more")
    raise UserError(
        "\n".join([f"{len(problems)} of {count} samples cannot be used:", *lines])
        + "\nMend or remove them, or leave them out with data.on_error=skip"
    )
