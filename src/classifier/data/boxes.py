"""Boxes: which become samples, and how the numbers of an annotation become pixels of the stored image."""

import logging
from dataclasses import dataclass

import numpy as np
import pandas as pd

from classifier.data.image import FLIPPED_X, FLIPPED_Y, TRANSPOSED
from classifier.data.samples import BOX, mark, usable
from classifier.errors import UserError, require_choice, require_flag, require_number

log = logging.getLogger(__name__)

FAR = 1 << 24  # pixels; keeps boxes, with any margin, in int32
FEW = 0.1  # share of boxes that may be wrong by a slip of the annotator: more are of another format
SNAP = 0.01  # pixels: by so much fractions of a few digits may miss a whole pixel
UNITS = {"pixel": 1, "fraction": 1, "percent": 100}
SIZE = ["width", "height"]


@dataclass(frozen=True)
class BoxReading:
    """How the numbers of an annotation become boxes.

    Args:
        box_format: Four numbers are `xyxy`, x1, y1, x2, y2, half-open; `xywh`, x1, y1, width, height; or `cxcywh`,
            the middle, width and height.
        box_unit: `pixel`; `fraction` of the upright image's width and height, 0 to 1; or `percent` of them.
        objects: Which boxes of an image become samples: `all`, the `largest` or the `first`.
        margin: Added on each side, as a fraction of the box's width and height; see `in_pixels`.
        negatives: Class of images without an object, which are then whole samples; None leaves them out.
        scale_boxes: Boxes are scaled where the annotation is for another size than the image's; else they are kept.
    """

    box_format: str = "xyxy"
    box_unit: str = "pixel"
    objects: str = "all"
    margin: float = 0.0
    negatives: str | None = None
    scale_boxes: bool = True

    def __post_init__(self) -> None:
        require_choice("data.box_format", self.box_format, ("xyxy", "xywh", "cxcywh"))
        require_choice("data.box_unit", self.box_unit, UNITS)
        require_choice("data.objects", self.objects, ("all", "largest", "first"))
        require_number("data.margin", self.margin, least=0)
        require_flag("data.scale_boxes", self.scale_boxes)

    def read(self, table: pd.DataFrame) -> pd.DataFrame:
        """`table` with float64 boxes, `width` and `height`; see `classifier.data.samples`.

        A few empty boxes are left out; what else is no box is a problem.

        Args:
            table: `x1` to `y2` are the four numbers as annotated; four zeros say that the image has no object. `width`
                and `height`, where it has them, are the image's in pixels, as the annotation states them, or nan.

        Raises:
            UserError: No row has a box, or the unit cannot be right.
        """
        numbers, sizes = table[BOX].to_numpy(float), table.reindex(columns=SIZE).to_numpy(float)
        blank = usable(table) & (numbers == 0).all(axis=1)
        boxed = usable(table) & ~blank
        found = boxed & np.isfinite(numbers).all(axis=1)
        self._require_unit(np.abs(numbers[found]).max(axis=1))
        start, end = numbers[:, :2], numbers[:, 2:]
        if self.box_format != "xyxy":
            start = start - end / 2 if self.box_format == "cxcywh" else start
            end = start + end
        turned, empty = found & (end < start).any(axis=1), found & (end <= start).any(axis=1)
        if turned.sum() > FEW * found.sum():
            empty &= ~turned
        corners = np.where(blank[:, None], np.nan, np.hstack([start, end]) / UNITS[self.box_unit])
        # 0 and 1 pixels stand for unknown
        sizes = np.where((sizes > 1).all(axis=1, keepdims=True) & self.scale_boxes, sizes, np.nan)
        sizes = sizes if self.box_unit == "pixel" else np.ones_like(start)
        table = table.assign(**dict(zip([*BOX, *SIZE], np.hstack([corners, sizes]).T, strict=True)))
        below = (numbers <= 1).all(axis=1) & (numbers != np.floor(numbers)).any(axis=1) & (self.box_unit == "pixel")
        bad = boxed & ~empty & (~found | turned | below)
        texts = [f"no box: x {x1:g} to {x2:g}, y {y1:g} to {y2:g}" for x1, y1, x2, y2 in corners[bad]]
        settings = " (data.box_unit, or data.box_format of a table?)"
        table = mark(table, bad, pd.Series(texts, table.index[bad], dtype="str") + settings)
        if empty.any():
            what = "%d boxes are empty, and are left out: those of %s"
            log.warning(what, empty.sum(), ", ".join(table["path"][empty][:3]))
        table = self.with_negatives(table[~empty], blank[~empty])
        return table if self.objects == "all" else self._one_each(table)

    def with_negatives(self, table: pd.DataFrame, rows: np.ndarray) -> pd.DataFrame:
        """`table` whose `rows` (bool (N,)), images without an object, are left out, or of the class `negatives`.

        Raises:
            UserError: There are no others.
        """
        if self.negatives:
            named = table["label"].mask(rows & (table["label"] == ""), str(self.negatives))
            return table.assign(label=named)[~(rows & table["path"].isin(table["path"][~rows]))]
        if rows.any():
            paths = table["path"][rows].drop_duplicates()
            if rows.all():
                found = f"none of the {len(paths)} images, {paths.iloc[0]} first, has a box"
                raise UserError(f"{found}: use other data.annotations=... or data.box_columns=...")
            what = "%d images have no box, and are left out (data.negatives=background makes them a class): %s"
            log.warning(what, len(paths), ", ".join(paths[:3]))
        return table[~rows]

    def _require_unit(self, reach: np.ndarray) -> None:
        """Refuse boxes whose largest numbers, float64 (N,), are of another unit altogether."""
        most, unit = reach.max(initial=0), self.box_unit
        beyond = unit != "pixel" and len(reach) > 0 and np.median(reach) > 2 * UNITS[unit]
        if (other := "fraction" if 0 < most <= 2 else "pixel" if beyond else unit) != unit:
            raise UserError(f"data.box_unit={unit} does not fit boxes up to {most:g}: use data.box_unit={other}")

    def _one_each(self, table: pd.DataFrame) -> pd.DataFrame:
        """The `largest` or the `first` of the usable boxes of each image; problems stay."""
        good = table[usable(table)]
        area = (good["x2"] - good["x1"]) * (good["y2"] - good["y1"])
        order = area.sort_values(ascending=False, kind="stable").index if self.objects == "largest" else good.index
        later = good["path"][order].duplicated()  # of equal boxes the first is the largest
        return table.drop(index=later.index[later])


def in_pixels(table: pd.DataFrame, found: pd.DataFrame, margin: float = 0.0) -> pd.DataFrame:
    """`table` with the smallest int32 boxes of whole stored pixels around its own, grown by `margin`, not cut.

    A size that differs from the image's by more than a factor is a problem. Boxes of a turned image were drawn on the
    upright one, as most tools show it, unless the sizes or other boxes of the set say that they were not.

    Args:
        table: With boxes as annotated, or int32 in stored pixels already.
        found: `width` and `height` of each row's image as stored, 0 where it cannot be read, and its `orientation`.
        margin: Added on each side of boxes as annotated, as a fraction of their width and height; they may then leave
            the image.
    """
    numbers = table[BOX].to_numpy(float)
    annotated = table["x1"].dtype.kind == "f"
    if annotated:
        good, orientation = usable(table) & (found["width"] > 0).to_numpy(), found["orientation"].to_numpy()
        exchanged, stored = np.isin(orientation, TRANSPOSED), found[SIZE].to_numpy(float)
        upright = np.where(exchanged[:, None], stored[:, ::-1], stored)
        stated = table.reindex(columns=SIZE).to_numpy(float)
        known = ~np.isnan(stated[:, 0])
        # without a size, boxes that leave the one image and not the other tell as well
        of_stored, of_upright = (
            np.where(known, _alike(stated, size), (numbers[:, 2:] <= size + 1).all(axis=1))
            for size in (stored, upright)
        )
        wrong = good & known & ~of_stored & ~of_upright
        sizes = [f"{a:g}x{b:g} pixels, the image has {c:g}x{d:g}" for a, b, c, d in np.hstack([stated, upright])[wrong]]
        texts = "its annotation is for " + pd.Series(sizes, table.index[wrong], dtype="str") + ", of another shape: "
        table = mark(table.drop(columns=SIZE, errors="ignore"), wrong, texts + "mend it, or use data.scale_boxes=false")
        good &= ~wrong
        turned = good & np.isin(orientation, range(2, 9))
        tells = turned & (of_stored != of_upright)
        if turned.any() and not tells.any():
            what = "%d images are turned by EXIF, and nothing says whether boxes were drawn before, as in %s: they are"
            what += " taken as drawn on the upright image (scripts/preview.py draws them)"
            log.warning(what, table["path"][turned].nunique(), table["path"][turned].iloc[0])
        # where an image does not tell, as a square one, the others of the set do
        most = not tells.any() or of_upright[tells].mean() >= 0.5
        turned &= np.where(known & tells, of_upright, most)
        frame = np.where(turned[:, None], upright, stored)
        _warn_of_size(table["path"], numbers, stated, frame, good)
        scale = np.where(np.isnan(stated), 1, frame / stated)
        whole = np.hstack([np.zeros_like(frame), frame])
        numbers = np.where(np.isnan(numbers), whole, numbers * np.tile(scale, 2))
        numbers = np.where((turned & exchanged)[:, None], numbers[:, [1, 0, 3, 2]], numbers)
        for side, flipped in enumerate((FLIPPED_X, FLIPPED_Y)):
            rows = turned & np.isin(orientation, flipped)
            numbers[rows, side::2] = (stored[rows, side, None] - numbers[rows, side::2])[:, ::-1]
    near = np.clip(np.nan_to_num(numbers), -FAR, FAR)
    low, high = np.floor(near[:, :2] + SNAP), np.ceil(near[:, 2:] - SNAP)
    high = np.where(near[:, 2:] > near[:, :2], np.maximum(high, low + 1), high)
    more = np.round((high - low) * margin * annotated)
    edges = np.hstack([low - more, high + more]).astype(np.int32)
    return table.assign(**dict(zip(BOX, edges.T, strict=True)))


def _alike(sizes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """bool (N,): whether sizes (N, 2) differ by a factor alone, to a pixel."""
    skew = np.abs(sizes[:, 0] * others[:, 1] - sizes[:, 1] * others[:, 0])
    return np.asarray(skew <= np.maximum(sizes, others).max(axis=1))


def _warn_of_size(paths: pd.Series, boxes: np.ndarray, stated: np.ndarray, frame: np.ndarray, good: np.ndarray) -> None:
    scaled = paths[good & (stated > 1).all(axis=1) & (stated != frame).any(axis=1)].drop_duplicates()
    if len(scaled):
        what = "%d images are not of the size that their annotation is for, and their boxes are scaled: %s"
        log.warning(what, len(scaled), ", ".join(scaled[:3]))
    pixels = good & ~(stated == 1).any(axis=1)
    most, sides = np.nan_to_num(boxes[pixels]).max(initial=0), frame[pixels].min(axis=1)
    if 50 < most <= 100 and len(sides) >= 10 and np.median(sides) > 250:
        log.warning("no box lies beyond 100 pixels: are they percent, as for data.box_unit=percent?")


def cut(table: pd.DataFrame, found: pd.DataFrame, margin: float) -> pd.DataFrame:
    """`table` with boxes cut at the edge of the image; those outside are problems. Arguments as of `in_pixels`."""
    boxes = table[BOX].to_numpy(np.int64)
    sizes = found[SIZE].to_numpy(np.int64)
    good = usable(table)
    over = np.maximum(-boxes[:, :2], boxes[:, 2:] - sizes) / np.maximum(boxes[:, 2:] - boxes[:, :2], 1)
    # a tenth of a side may be an annotator's slip, and the margin of an object at the edge lies outside
    far = int((over.max(axis=1)[good] > 0.1 + margin / (1 + 2 * margin)).sum())
    if far > 0.05 * good.sum():  # x1, y1, x2, y2 taken for x, y, width, height does that
        log.warning(
            "%d of %d boxes reach far over the edge of their image, and are cut there: are they x1, y1, x2, y2, or x, "
            "y, width, height (data.box_format of a table)? scripts/preview.py draws them",
            *(far, good.sum()),
        )
    kept = np.clip(boxes, 0, np.tile(sizes, 2))
    empty = good & (kept[:, 2:] <= kept[:, :2]).any(axis=1)
    outside = zip(boxes[empty].tolist(), sizes[empty].tolist(), strict=True)
    texts = [f"box {tuple(box)} lies outside the image of {width}x{height} pixels" for box, (width, height) in outside]
    edges = np.where((good & ~empty)[:, None], kept, boxes).astype(np.int32)
    table = table.assign(**dict(zip(BOX, edges.T, strict=True)))
    return mark(table, empty, pd.Series(texts, table.index[empty], dtype="str"))
