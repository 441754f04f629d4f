"""What is to say about each image by itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from classifier.errors import UserError
from classifier.tools.check.reading import Reading
from classifier.tools.check.remarks import Kind, Remark


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
