"""Boxes: which become samples, and how numbers become pixels."""

import numpy as np
import pytest

from classifier.data.boxes import FAR, crops, require_crops, with_covering_boxes
from classifier.data.samples import BOX, boxes_of, usable
from classifier.errors import UserError, as_typed
from tests.data.tables import make_table


def test_boxes() -> None:
    table = with_covering_boxes(
        make_table(["a", "a", "b", "c", "d"]),
        np.array([[1, 2, 3, 4], [0.4, 3.6, 20.6, 24], [9, 0, 3, 1], [np.nan, 0, 1, 1], [-1e12, 0, 1e12, 1]]),
    )
    boxes = boxes_of(table)
    assert boxes is not None
    assert boxes[[0, 1, 4]].tolist() == [[1, 2, 3, 4], [0, 3, 21, 24], [-FAR, 0, FAR, 1]]
    assert usable(table).tolist() == [True, True, False, False, True]
    for which, count, first in (("all", 5, 1), ("largest", 4, 0), ("first", 4, 1)):
        chosen = crops(table, which, 0)
        assert (len(chosen), chosen["x1"][0]) == (count, first)
    grown = crops(make_table(["a"], boxes=[(10, 20, 30, 60)]), "all", 0.1)
    assert grown[BOX].to_numpy().tolist() == [[8, 16, 32, 64]]
    assert boxes_of(make_table(["a"])) is None
    for margin in (-0.1, float("nan"), "wide", None):
        with pytest.raises(UserError, match=rf"^data\.margin={as_typed(margin)} must "):
            require_crops("all", margin)  # type: ignore[arg-type]
