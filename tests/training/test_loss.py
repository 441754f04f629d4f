from typing import Any

import pytest
import torch
from torch.nn import functional

from classifier.errors import UserError
from classifier.training.loss import BatchMix, TrainingLoss

CLASSES = ("blue", "green", "red")


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weight", [None, [0.5, 1.0, 3.0]])
@pytest.mark.parametrize("mixed", [False, True])
def test_smoothing_weights_and_mixing_compose(smoothing: float, weight: list[float] | None, mixed: bool) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(7, 3, dtype=torch.float64).float(), torch.tensor([0, 1, 2, 2, 1, 0, 0])
    shares = functional.one_hot(labels, 3).float()
    if mixed:
        shares = 0.7 * shares + 0.3 * shares.roll(1, 0)
    target = (1 - smoothing) * shares + smoothing / 3
    by_hand = -(target * logits.log_softmax(1) * torch.tensor(weight or [1.0, 1.0, 1.0])).sum(1)
    losses = TrainingLoss(CLASSES, smoothing, weight)(logits, shares if mixed else labels)
    torch.testing.assert_close(losses, by_hand)


def test_weights_give_two_processes_the_gradient_of_one() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(8, 3, requires_grad=True), torch.tensor([0, 0, 0, 1, 2, 2, 2, 2])
    loss = TrainingLoss(CLASSES, 0.1, [0.2, 5.0, 1.0])
    (whole,) = torch.autograd.grad(loss(logits, labels).mean(), logits)
    halves = [loss(logits[part], labels[part]).mean() for part in (slice(0, 4), slice(4, 8))]
    (divided,) = torch.autograd.grad(torch.stack(halves).mean(), logits)
    torch.testing.assert_close(whole, divided)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_smoothing": 1.5}, r"loss\.label_smoothing=1\.5"),
        ({"label_smoothing": "much"}, r"loss\.label_smoothing=much"),
        ({"class_weight": [1.0, 2.0]}, r"loss\.class_weight has 2 numbers for 3 classes \(blue, green, red\)"),
        ({"class_weight": [1.0, -2.0, 1.0]}, r"loss\.class_weight=\[1\.0, -2\.0, 1\.0\] must be numbers from 0 on"),
        ({"class_weight": [1.0, "x", 1.0]}, r"must be numbers from 0 on"),
        ({"class_weight": "equal"}, r"loss\.class_weight=equal must be none, balanced"),
        ({"class_weight": 2}, r"loss\.class_weight=2 must be none, balanced"),
    ],
)
def test_a_bad_value_names_its_key(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainingLoss(CLASSES, **settings)


@pytest.mark.parametrize("settings", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_mixing_at_any_batch_size(settings: dict[str, float], batch_size: int) -> None:
    torch.manual_seed(1)
    images = torch.arange(batch_size).float().view(-1, 1, 1, 1).expand(-1, 3, 16, 20).clone()
    labels = torch.arange(batch_size) % 3
    before = images.clone()
    for _ in range(20):
        mixed, shares = BatchMix(3, **settings)(images, labels)
        assert mixed.shape == images.shape
        assert shares.shape == (batch_size, 3)
        torch.testing.assert_close(shares.sum(1), torch.ones(batch_size))
        # an image's mean is the mean of the two that it is made of, in the shares of their labels
        partner = before.roll(1, 0)[:, 0, 0, 0]
        own = before[:, 0, 0, 0]
        share = torch.where(own == partner, 1.0, (mixed.mean((1, 2, 3)) - partner) / (own - partner))
        expected = share[:, None] * functional.one_hot(labels, 3) + (1 - share)[:, None] * functional.one_hot(
            labels.roll(1), 3
        )
        torch.testing.assert_close(shares, expected, atol=1e-5, rtol=0)
    assert torch.equal(images, before), "the batch itself was changed"


def test_both_kinds_are_drawn() -> None:
    torch.manual_seed(0)
    images = torch.arange(4).float().view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    mix = BatchMix(4, mixup=1.0, cutmix=1.0)
    whole = [bool((mix(images, torch.arange(4))[0] % 1 == 0).all()) for _ in range(40)]
    assert 5 < sum(whole) < 35, "cutmix keeps the values of pixels, mixup does not"


def test_without_a_setting_nothing_is_mixed() -> None:
    images, labels = torch.randn(4, 3, 8, 8), torch.arange(4) % 3
    mixed, targets = BatchMix(3)(images, labels)
    assert mixed is images
    assert targets is labels


@pytest.mark.parametrize("settings", [{"mixup": -1.0}, {"cutmix": "yes"}, {"mixup": float("nan")}])
def test_a_bad_alpha(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"mix\.(mixup|cutmix)="):
        BatchMix(3, **settings)
