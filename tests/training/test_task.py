from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from classifier.errors import UserError
from classifier.training.task import CrossEntropy, SingleLabel, build_loss
from tests.training import runs

CLASSES = ("blue", "green", "red")
OWN = "tests.training.test_task."


class Focal(nn.Module):
    """An own loss without `reduction`, and with a statistic."""

    seen: torch.Tensor

    def __init__(self, gamma: float = 2.0) -> None:
        super().__init__()
        self.gamma = gamma
        self.register_buffer("seen", torch.tensor(0))

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        self.seen += len(logits)
        losses = functional.cross_entropy(logits, targets, reduction="none")
        return (1 - (-losses).exp()) ** self.gamma * losses


class Counted(nn.Module):
    """A loss that asks for the classes and their training images."""

    def __init__(self, classes: list[str], class_counts: list[int]) -> None:
        super().__init__()
        self.given = classes, class_counts


class Mean(nn.Module):
    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(logits, targets)


class Learnt(nn.Linear):
    """A loss with parameters."""


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weight", ["none", [0.5, 1.0, 3.0]])
@pytest.mark.parametrize("mixed", [False, True])
def test_smoothing_weights_and_mixing_compose(smoothing: float, weight: Any, mixed: bool) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(7, 3), torch.tensor([0, 1, 2, 2, 1, 0, 0])
    shares = functional.one_hot(labels, 3).float()
    if mixed:
        shares = 0.7 * shares + 0.3 * shares.roll(1, 0)
    target = (1 - smoothing) * shares + smoothing / 3
    numbers = torch.tensor([1.0, 1.0, 1.0] if weight == "none" else weight)
    by_hand = -(target * logits.log_softmax(1) * numbers).sum(1)
    loss = CrossEntropy(classes=CLASSES, label_smoothing=smoothing, class_weight=weight)
    torch.testing.assert_close(loss(logits, shares if mixed else labels), by_hand)
    # the mean over two halves, as of two processes, has the gradient of the whole
    logits.requires_grad_()
    (whole,) = torch.autograd.grad(loss(logits[:6], labels[:6]).mean(), logits)
    halves = [loss(logits[part], labels[part]).mean() for part in (slice(0, 3), slice(3, 6))]
    torch.testing.assert_close(torch.autograd.grad(torch.stack(halves).mean(), logits)[0], whole)


def test_balanced_weights_have_a_mean_of_one_over_the_images() -> None:
    weight = CrossEntropy(classes=CLASSES, class_counts=[30, 10, 0], class_weight="balanced").weight
    assert weight is not None
    assert weight.tolist() == pytest.approx([40 / (2 * 30), 40 / (2 * 10), 0.0])


@pytest.mark.parametrize(
    "settings",
    [
        {"label_smoothing": 1.5},
        {"label_smoothing": "much"},
        {"class_weight": [1.0, 2.0]},
        {"class_weight": [1.0, -2.0, 1.0]},
        {"class_weight": [1.0, "x", 1.0]},
        {"class_weight": "equal"},
        {"class_weight": 2},
    ],
)
def test_a_bad_value_names_its_key(settings: dict[str, Any]) -> None:
    [(key, value)] = settings.items()
    with pytest.raises(UserError) as refusal:
        CrossEntropy(classes=CLASSES, **settings)
    assert f"loss.{key}={value}" in str(refusal.value)


@pytest.mark.parametrize("name", ["CrossEntropyLoss", "NLLLoss", "MultiMarginLoss"])
def test_losses_of_torch_are_built_without_reduction(name: str) -> None:
    loss = build_loss({"_target_": f"torch.nn.{name}"}, classes=CLASSES)
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    losses = SingleLabel(CLASSES, loss).losses(logits, labels)
    assert losses.shape == (5,)
    torch.testing.assert_close(losses.mean(), getattr(nn, name)()(logits, labels))


def test_a_loss_gets_what_it_asks_for() -> None:
    loss = build_loss({"_target_": f"{OWN}Counted"}, classes=CLASSES, class_counts=[3, 4, 5])
    assert isinstance(loss, Counted)
    assert loss.given == ([*CLASSES], [3, 4, 5])


def test_own_loss_trains_and_its_checkpoint_opens_without_it(tmp_path: Any) -> None:
    model = runs.make_classifier(loss={"_target_": f"{OWN}Focal", "gamma": 1.0}, mix={"mixup": 0.4})
    trainer = runs.trainer(tmp_path, max_epochs=1)
    trainer.fit(model, runs.loader(), runs.loader())
    assert model.get_submodule("task.loss").seen == 12, "trying it before the run left a trace"
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    opened = type(model).load_from_checkpoint(tmp_path / "run.ckpt").eval()
    images = runs.random_images(4)
    assert torch.equal(opened(images), model.eval()(images))
    assert isinstance(opened.task.loss, CrossEntropy)


@pytest.mark.parametrize(
    ("target", "mix", "advice"),
    [
        (f"{OWN}Mean", {}, "(2,)"),
        ("torch.nn.BCEWithLogitsLoss", {}, ""),
        ("torch.nn.BCEWithLogitsLoss", {"mixup": 0.2}, "(2, 3)"),
        ("torch.nn.NLLLoss", {"mixup": 0.2}, "mix.mixup=0"),
        ("torch.nn.NoLoss", {}, "NLLLoss"),
    ],
)
def test_a_loss_that_does_not_fit_is_refused(target: str, mix: dict[str, float], advice: str) -> None:
    with pytest.raises(UserError) as refusal:
        runs.make_classifier(loss={"_target_": target}, mix=mix)
    assert f"loss._target_={target}" in str(refusal.value)
    assert advice in str(refusal.value)


def test_a_loss_with_parameters_is_refused() -> None:
    config: dict[str, Any] = {"_target_": f"{OWN}Learnt", "in_features": 3, "out_features": 1}
    with pytest.raises(UserError) as refusal:
        build_loss(config, classes=CLASSES)
    assert config["_target_"] in str(refusal.value)


def test_predictions_are_the_likeliest_in_order() -> None:
    task = SingleLabel(["cat", "dog", "owl"], nn.Identity())
    table = task.predictions(torch.tensor([[0.2, 0.7, 0.1], [0.25, 0.3, 0.45]]), top_k=2)
    assert list(table.columns) == task.prediction_columns(2) == ["label", "confidence", "label_2", "confidence_2"]
    assert table.to_numpy().tolist() == [["dog", 0.7, "cat", 0.2], ["owl", 0.45, "dog", 0.3]]
    assert task.prediction_columns(5) == task.prediction_columns(3)
    assert task.predictions(torch.empty(0, 3), top_k=5).shape == (0, 6)
