import logging
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from classifier.errors import UserError, as_typed
from classifier.training.task import BatchMix, CrossEntropy, SingleLabel, build_loss
from tests.training import runs

CLASSES = ("blue", "green", "red")
OWN = "tests.training.test_task."


class Focal(nn.Module):
    """An own loss without `reduction`, and with a statistic."""

    seen: torch.Tensor

    def __init__(self, mean: bool = False) -> None:
        super().__init__()
        self.mean = mean
        self.register_buffer("seen", torch.tensor(0))

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        self.seen += len(logits)
        losses = functional.cross_entropy(logits, targets, reduction="none")
        focal = (1 - (-losses).exp()) ** 2 * losses
        return focal.mean() if self.mean else focal


class Learnt(nn.Linear):
    """A loss with parameters."""


@pytest.mark.parametrize(("smoothing", "weight"), [(0.0, "none"), (0.1, [0.5, 1.0, 3.0])])
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
    config = {"_target_": "classifier.training.task.CrossEntropy", "class_weight": "balanced"}
    loss = build_loss(config, classes=CLASSES, class_counts=[30, 10, 0])
    assert loss.get_buffer("weight").tolist() == pytest.approx([40 / (2 * 30), 40 / (2 * 10), 0.0])


def test_weights_by_name(caplog: pytest.LogCaptureFixture) -> None:
    """Numbers are in the order of the labels, which is not that of the text, and is shown."""
    names = [str(number) for number in range(1, 12)]
    by_name = {int(name): 9.0 if len(name) == 2 else 1.0 for name in reversed(names)}
    with caplog.at_level(logging.INFO):
        losses = [CrossEntropy(classes=names, class_weight=weight) for weight in (by_name, [1.0] * 9 + [9.0] * 2)]
    assert [loss.get_buffer("weight").tolist() for loss in losses] == [[1] * 9 + [9, 9]] * 2
    assert caplog.text.count("9 1, 10 9, 11 9") == 2
    for wrong, name in (({"blue": 1, "green": 1, "rad": 1}, "rad"), ({"blue": 1, "green": 1}, "red")):
        with pytest.raises(UserError, match=rf"loss\.class_weight.*{name}"):
            CrossEntropy(classes=CLASSES, class_weight=wrong)


@pytest.mark.parametrize("value", [[1.0, 2.0], [1.0, -2.0, 1.0], [1.0, "x", 1.0], "equal", 2])
def test_a_bad_weight_names_its_key(value: Any) -> None:
    with pytest.raises(UserError) as refusal:
        CrossEntropy(classes=CLASSES, class_weight=value)
    assert f"loss.class_weight={as_typed(value)}" in str(refusal.value)


@pytest.mark.parametrize("name", ["CrossEntropyLoss", "NLLLoss"])
def test_losses_of_torch_are_built_without_reduction(name: str) -> None:
    loss = build_loss({"_target_": f"torch.nn.{name}"}, classes=CLASSES)
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    losses = SingleLabel(CLASSES, loss).losses(logits, labels)
    torch.testing.assert_close(losses.mean(), getattr(nn, name)()(logits, labels))


def test_own_loss_trains_and_its_checkpoint_opens_without_it(tmp_path: Any) -> None:
    model = runs.make_classifier(loss={"_target_": f"{OWN}Focal"}, mix={"mixup": 0.4})
    trainer = runs.trainer(tmp_path, max_epochs=1)
    trainer.fit(model, runs.loader(), runs.loader())
    assert model.get_submodule("task.loss").seen == 12, "trying it before the run left a trace"
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    opened = type(model).load_from_checkpoint(tmp_path / "run.ckpt").eval()
    images = runs.random_images(4)
    assert torch.equal(opened(images), model.eval()(images))
    assert isinstance(opened.task.loss, CrossEntropy)


@pytest.mark.parametrize(("target", "mix", "advice"), [("torch.nn.NLLLoss", {"mixup": 0.2}, "mix.mixup=0")])
def test_a_loss_that_does_not_fit_is_refused(target: str, mix: dict[str, float], advice: str) -> None:
    with pytest.raises(UserError) as refusal:
        runs.make_classifier(loss={"_target_": target}, mix=mix)
    assert f"loss._target_={target}" in str(refusal.value)
    assert advice in str(refusal.value)


@pytest.mark.parametrize("loss", [{"_target_": f"{OWN}Learnt", "in_features": 3, "out_features": 1},
                                  {"_target_": f"{OWN}Focal", "mean": True}])  # fmt: skip
def test_a_loss_with_parameters_or_one_number_for_a_batch_is_refused(loss: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=loss["_target_"]):
        runs.make_classifier(loss=loss)


def test_predictions_are_the_likeliest_in_order() -> None:
    task = SingleLabel(["cat", "dog", "owl"], nn.Identity())
    table = task.predictions(torch.tensor([[0.2, 0.7, 0.1], [0.25, 0.3, 0.45]]), top_k=2)
    assert list(table.columns) == task.prediction_columns(2) == ["label", "confidence", "label_2", "confidence_2"]
    assert table.to_numpy().tolist() == [["dog", 0.7, "cat", 0.2], ["owl", 0.45, "dog", 0.3]]
    assert task.prediction_columns(5) == task.prediction_columns(3)
    assert task.predictions(torch.empty(0, 3), top_k=5).shape == (0, 6)


@pytest.mark.parametrize("settings", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_mixing_at_any_batch_size(settings: dict[str, float], batch_size: int) -> None:
    torch.manual_seed(1)
    images = torch.arange(batch_size).float().view(-1, 1, 1, 1).expand(-1, 3, 16, 20).clone()
    labels = torch.arange(batch_size) % 3
    before = images.clone()
    for _ in range(20):
        mixed, shares = BatchMix(3, **settings)(images, labels)
        torch.testing.assert_close(shares.sum(1), torch.ones(batch_size))
        # an image's mean is the mean of the two that it is made of, in the shares of their labels
        own, partner = before[:, 0, 0, 0], before.roll(1, 0)[:, 0, 0, 0]
        share = torch.where(own == partner, 1.0, (mixed.mean((1, 2, 3)) - partner) / (own - partner))[:, None]
        one, other = (functional.one_hot(classes, 3) for classes in (labels, labels.roll(1)))
        torch.testing.assert_close(shares, share * one + (1 - share) * other, atol=1e-5, rtol=0)
    assert torch.equal(images, before), "the batch itself was changed"


@pytest.mark.parametrize(("key", "value"), [("mixup", -1.0), ("cutmix", "yes")])
def test_a_bad_alpha(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"mix\.{key}={value}"):
        BatchMix(3, **{key: value})
