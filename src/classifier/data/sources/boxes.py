"""Boxes of annotated objects: which of an image's objects become samples, and how much around them."""

import math
from typing import NamedTuple

from classifier.data.picture import Box
from classifier.errors import UserError, require_number

OBJECTS = ("all", "largest", "first")
FAR = 1 << 24  # pixels; keeps boxes, with any margin, in int32


class BoxedObject(NamedTuple):
    """An annotated object: its class name and its box, (x1, y1, x2, y2) in stored pixels, half-open."""

    name: str
    box: Box

    @property
    def area(self) -> int:
        return (self.box[2] - self.box[0]) * (self.box[3] - self.box[1])


def require_margin(margin: float) -> None:
    """Raise a UserError unless it can be added around a box."""
    require_number("data.margin", margin)
    if margin < 0:
        raise UserError(f"data.margin={margin} must not be negative: use data.margin=0 for the box alone")


def choose(objects: list[BoxedObject], which: str) -> list[BoxedObject]:
    """Of the objects of one image, `all`, the `largest` or the `first`."""
    if which == "largest":
        return [max(objects, key=lambda item: item.area)] if objects else []
    return objects[:1] if which == "first" else objects


def with_margin(box: Box, margin: float) -> Box:
    """`box` grown on each side by `margin` times its width or height; it may then leave the image."""
    x1, y1, x2, y2 = box
    dx, dy = round((x2 - x1) * margin), round((y2 - y1) * margin)
    return (x1 - dx, y1 - dy, x2 + dx, y2 + dy)


def covering(x1: float, y1: float, x2: float, y2: float) -> Box:
    """The smallest box of whole pixels around one of fractions.

    Raises:
        ValueError: A corner is not finite, or the box is empty.
    """
    if not all(map(math.isfinite, (x1, y1, x2, y2))):
        raise ValueError(f"the box {x1:g}, {y1:g}, {x2:g}, {y2:g} is not finite")
    if x2 <= x1 or y2 <= y1:
        raise ValueError(f"empty box: x {x1:g} to {x2:g}, y {y1:g} to {y2:g}")
    x1, y1, x2, y2 = (max(-FAR, min(FAR, edge)) for edge in (x1, y1, x2, y2))
    return math.floor(x1), math.floor(y1), math.ceil(x2), math.ceil(y2)
