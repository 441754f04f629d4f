import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch

from classifier.evaluation.predictions import Predictions, rounded, write_json
from classifier.training.task import CrossEntropy, SingleLabel

CLASSES = ["cat", "dog", "owl"]
ALONE: Any = SimpleNamespace(world_size=1)  # all that is asked of a trainer


def collector(top_k: int) -> Predictions:
    task = SingleLabel(CLASSES, CrossEntropy(classes=CLASSES))
    return Predictions(task.prediction_columns(top_k), partial(task.predictions, top_k=top_k))


def test_predictions_come_in_the_order_of_the_images() -> None:
    found = collector(2)
    first = torch.tensor([[0.2, 0.7, 0.1], [0.1, 0.3, 0.6]])
    found.on_test_batch_end(ALONE, None, first, {"index": torch.tensor([4, 0])}, 0)
    batch = {"index": torch.tensor([2]), "unreadable": {3: "empty"}}
    found.on_predict_batch_end(ALONE, None, torch.tensor([[0.5, 0.2, 0.3]]), batch, 1)
    found.on_predict_batch_end(ALONE, None, None, {"index": torch.tensor([]), "unreadable": {1: "cut"}}, 2)
    found.on_test_end(ALONE, None)
    table = found.table()
    assert list(table.columns) == ["label", "confidence", "label_2", "confidence_2"]
    assert list(table.index) == [0, 2, 4]
    assert list(table["label"]) == ["owl", "cat", "dog"]
    assert table["confidence_2"].to_list() == pytest.approx([0.3, 0.3, 0.2])
    assert found.unreadable == {3: "empty", 1: "cut"}


def test_a_table_without_an_image_has_its_columns() -> None:
    columns = list(pd.DataFrame({"path": ["a"]}).join(collector(5).table()))
    assert columns == ["path", "label", "confidence", "label_2", "confidence_2", "label_3", "confidence_3"]


def test_metrics_are_rounded_sorted_and_only_metrics(tmp_path: Path) -> None:
    values = {"val/loss": 0.12345678, "test/acc": 1.0, "all/acc": 0.5, "train/loss_step": 2.0, "lr-AdamW": 0.1}
    kept = rounded(values)
    assert list(kept.items()) == [("all/acc", 0.5), ("test/acc", 1.0), ("val/loss", 0.123457)]
    write_json(tmp_path / "metrics.json", kept)
    assert json.loads((tmp_path / "metrics.json").read_text()) == kept
