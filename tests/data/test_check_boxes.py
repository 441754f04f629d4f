"""Boxes in another format than was said leave their images, and that is told."""

import logging
from pathlib import Path

import numpy as np
import pytest

from classifier.data.check import warn_of_outside
from classifier.data.modules import AnnotationCropDataModule, TableDataModule


def read_table(root: Path, box_format: str, table: Path) -> None:
    lines = ["path,label,x1,y1,x2,y2"]
    for number, path in enumerate(sorted((root / "images").iterdir())):
        x, y = number % 50, number % 30
        lines.append(f"images/{path.name},{path.name.split('_')[0]},{x},{y},{x + 30},{y + 30}")
    table.write_text("\n".join(lines))
    columns = ["x1", "y1", "x2", "y2"]
    module = TableDataModule(root, table=str(table), box_columns=columns, box_format=box_format)
    module.setup()


def test_corners_read_as_width_and_height(annotated: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_table(annotated, "xyxy", tmp_path / "boxes.csv")
    assert caplog.messages == []
    read_table(annotated, "xywh", tmp_path / "boxes.csv")
    (message,) = caplog.messages
    assert "of 60 boxes reach far over the edge" in message
    assert "data.box_format" in message


@pytest.mark.parametrize("margin", [0.0, 0.5, 2.0])
def test_a_margin_may_leave_the_image(annotated: Path, margin: float, caplog: pytest.LogCaptureFixture) -> None:
    module = AnnotationCropDataModule(annotated, margin=margin)
    module.setup()
    assert caplog.messages == []


def test_few_and_small_slips_are_let_pass(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        inside = np.tile([0, 0, 50, 50], (99, 1))
        warn_of_outside(np.concatenate([inside, [[90, 0, 190, 50]]]), np.full((100, 2), 100), 0.0)
        warn_of_outside(np.tile([-2, 0, 102, 50], (100, 1)), np.full((100, 2), 100), 0.0)
        warn_of_outside(np.zeros((0, 4), np.int64), np.zeros((0, 2), np.int64), 0.0)
    assert caplog.messages == []
