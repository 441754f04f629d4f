from typing import Any

import pytest
import torch
from torch.nn import functional

from classifier.errors import UserError
from classifier.training.mix import BatchMix


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
        torch.testing.assert_close(shares.sum(1), torch.ones(batch_size))
        # an image's mean is the mean of the two that it is made of, in the shares of their labels
        own, partner = before[:, 0, 0, 0], before.roll(1, 0)[:, 0, 0, 0]
        share = torch.where(own == partner, 1.0, (mixed.mean((1, 2, 3)) - partner) / (own - partner))[:, None]
        one, other = (functional.one_hot(classes, 3) for classes in (labels, labels.roll(1)))
        torch.testing.assert_close(shares, share * one + (1 - share) * other, atol=1e-5, rtol=0)
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
    assert (mixed is images, targets is labels) == (True, True)


@pytest.mark.parametrize("settings", [{"mixup": -1.0}, {"cutmix": "yes"}, {"mixup": float("nan")}])
def test_a_bad_alpha(settings: dict[str, Any]) -> None:
    [(key, value)] = settings.items()
    with pytest.raises(UserError, match=rf"mix\.{key}={value}"):
        BatchMix(3, **settings)
