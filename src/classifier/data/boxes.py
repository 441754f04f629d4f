"""The boxes of a table of samples: which become samples, and how numbers become pixels."""

import numpy as np
import pandas as pd

from classifier.data.samples import BOX, mark, usable
from classifier.errors import require_choice, require_number

FAR = 1 << 24  # pixels; keeps boxes, with any margin, in int32


def require_crops(objects: str, margin: float) -> None:
    """Raise a UserError unless these are arguments of `crops`."""
    require_choice("data.objects", objects, ("all", "largest", "first"))
    require_number("data.margin", margin, least=0)


def crops(table: pd.DataFrame, objects: str, margin: float) -> pd.DataFrame:
    """`all`, the `largest` or the `first` of the usable boxes of each image, grown by `margin`; problems stay.

    Args:
        margin: Added on each side, as a fraction of the box's width and height; boxes may then leave the image.
    """
    if objects != "all":
        good = table[usable(table)]
        area = (good["x2"] - good["x1"]).astype("int64") * (good["y2"] - good["y1"])
        order = area.sort_values(ascending=False, kind="stable").index if objects == "largest" else good.index
        later = good["path"][order].duplicated()  # of equal boxes the first is the largest
        table = table.drop(index=later.index[later]).reset_index(drop=True)
    if margin:
        x1, y1, x2, y2 = (table[side] for side in BOX)
        dx, dy = ((side * margin).round().astype("int32") for side in (x2 - x1, y2 - y1))
        table = table.assign(x1=x1 - dx, y1=y1 - dy, x2=x2 + dx, y2=y2 + dy)
    return table


def with_covering_boxes(table: pd.DataFrame, boxes: np.ndarray) -> pd.DataFrame:
    """`table` with the smallest boxes of whole pixels around `boxes` float64 (N, 4); empty ones are problems."""
    good = np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    near = np.clip(np.nan_to_num(boxes), -FAR, FAR)
    whole = np.hstack([np.floor(near[:, :2]), np.ceil(near[:, 2:])]).astype(np.int32)
    reasons = [f"no box: x {x1:g} to {x2:g}, y {y1:g} to {y2:g}" for x1, y1, x2, y2 in boxes[~good]]
    table = table.assign(**dict(zip(BOX, whole.T, strict=True)))
    return mark(table, ~good, pd.Series(reasons, table.index[~good], dtype="str"))
