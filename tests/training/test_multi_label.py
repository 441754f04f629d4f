"""Several labels an image: losses, thresholds, predictions, and runs."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from classifier.errors import UserError
from classifier.training.task import BatchMix, BinaryCrossEntropy, MultiLabel, build_loss
from tests.training import runs

CLASSES = ("blue", "green", "red")
BCE = "classifier.training.task.BinaryCrossEntropy"
LOGITS = torch.tensor([[2.0, -1.0, 0.5], [-3.0, 0.0, 1.0], [0.1, 0.2, -0.3]])
TARGETS = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 1.0]])


class Focal(nn.Module):
    """Gives a loss for each image and class."""

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(sigmoid_focal_loss(logits, targets))


def task(**settings: Any) -> MultiLabel:
    config = {"_target_": BCE, **settings}
    return MultiLabel(CLASSES, build_loss(config, classes=CLASSES, class_counts=[1, 5, 0], image_count=10))


@pytest.mark.parametrize(
    ("settings", "weights"),
    [({}, [1, 1, 1]), ({"pos_weight": "balanced"}, [9, 1, 1]), ({"pos_weight": {"red": 4, "blue": 0.5}}, [0.5, 1, 4])],
)
def test_losses_are_means_over_classes(settings: dict[str, Any], weights: list[float]) -> None:
    likely = LOGITS.sigmoid()
    by_hand = -(TARGETS * likely.log() * torch.tensor(weights) + (1 - TARGETS) * (1 - likely).log()).mean(1)
    torch.testing.assert_close(task(**settings).losses(LOGITS, TARGETS), by_hand)
    plain = functional.binary_cross_entropy_with_logits(LOGITS, TARGETS, reduction="none").mean(1)
    torch.testing.assert_close(task(**settings).evaluation_losses(LOGITS, TARGETS), plain)
    smooth = functional.binary_cross_entropy_with_logits(LOGITS, TARGETS * 0.8 + 0.1, reduction="none").mean(1)
    torch.testing.assert_close(task(label_smoothing=0.2).losses(LOGITS, TARGETS), smooth)


@pytest.mark.parametrize("value", ["equal", {"cat": 2.0}, {"red": -1.0}, 3.0])
def test_a_bad_weight_names_its_key(value: Any) -> None:
    with pytest.raises(UserError, match=r"loss\.pos_weight"):
        BinaryCrossEntropy(classes=CLASSES, pos_weight=value)


@pytest.mark.parametrize("name", ["torch.nn.BCEWithLogitsLoss", "torch.nn.MultiLabelSoftMarginLoss",
                                  "tests.training.test_multi_label.Focal"])  # fmt: skip
def test_losses_of_other_packages(name: str) -> None:
    found = MultiLabel(CLASSES, build_loss({"_target_": name}, classes=CLASSES))
    found.require_loss(name, mixed=True)
    assert found.losses(LOGITS, TARGETS).shape == (3,)


@pytest.mark.parametrize(("kind", "target", "advice"), [
    ("multi_label", "classifier.training.task.CrossEntropy", "loss=binary_cross_entropy"),
    ("single_label", BCE, f"loss._target_={BCE}")])  # fmt: skip
def test_the_loss_of_the_other_task_is_refused(kind: str, target: str, advice: str) -> None:
    with pytest.raises(UserError, match=advice):
        runs.make_classifier(task=kind, loss={"_target_": target})


def test_the_mean_of_two_predictions() -> None:
    other = LOGITS.flip(0)
    mean = task().mean_logits(LOGITS, other).sigmoid()
    torch.testing.assert_close(mean, (LOGITS.sigmoid() + other.sigmoid()) / 2)


def test_thresholds_give_the_best_f1_and_are_used_from_then_on() -> None:
    found = task()
    gathered = found.evaluation_metrics()
    scores = torch.tensor([[0.9, 0.3, 0.2], [0.6, 0.2, 0.1], [0.1, 0.25, 0.7], [0.2, 0.9, 0.1]])
    targets = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    gathered.update(scores.logit(), targets, torch.ones(4))
    before = found.results(gathered, fitting=False)
    after = found.results(gathered, fitting=True)
    assert found.thresholds.tolist() == pytest.approx([0.4, 0.225, 0.5])  # red has no positive
    assert before["f1"] < after["f1"] == pytest.approx((1 + 0.8 + 0) / 3)
    table = found.predictions(scores, top_k=1)
    assert list(table.columns) == found.prediction_columns(1) == ["labels", "p_blue", "p_green", "p_red"]
    assert table["labels"].tolist() == ["blue|green", "blue", "green|red", "green"]
    assert found.predictions(torch.empty(0, 3), top_k=5).shape == (0, 4)


def test_mixing_takes_sets_of_labels() -> None:
    torch.manual_seed(1)
    images = torch.zeros(3, 3, 8, 8)
    _, mixed = BatchMix(3, mixup=0.4)(images, TARGETS)
    assert mixed.shape == (3, 3)
    assert not torch.equal(mixed, TARGETS)
    assert 0 <= float(mixed.min()) <= float(mixed.max()) <= 1
