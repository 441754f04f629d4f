"""Whether boxes lie in their images, as they do where they were read in the right format."""

import logging

import numpy as np

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
