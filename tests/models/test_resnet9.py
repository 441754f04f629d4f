import pytest
import torch

from classifier.errors import UserError
from classifier.models import ResNet9


@pytest.mark.parametrize("size", [(32, 32), (8, 8), (24, 40), (33, 9)])
@pytest.mark.parametrize("in_chans", [1, 3])
def test_shapes(size: tuple[int, int], in_chans: int) -> None:
    network = ResNet9(num_classes=7, in_chans=in_chans, image_size=size, width=8)
    assert network(torch.randn(2, in_chans, *size)).shape == (2, 7)


def test_the_size_of_the_source() -> None:
    """6,573,120 parameters, as in the source: the eight convolutions, their BatchNorms and a linear layer."""
    assert sum(parameter.numel() for parameter in ResNet9(num_classes=10).parameters()) == 6_573_120


def test_residuals_carry_their_input() -> None:
    network = ResNet9(num_classes=3, width=8).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if ".block." in name:
                parameter.zero_()
        stem, residual = network.features[0:2], network.features[2]
        features = stem(torch.randn(2, 3, 16, 16))
        torch.testing.assert_close(residual(features), features)


def test_what_it_does_not_take() -> None:
    with pytest.raises(UserError, match=r"data\.image_size=\[7, 32\].* data\.image_size=8"):
        ResNet9(num_classes=3, image_size=(7, 32))
    with pytest.raises(UserError, match=r"model\.pretrained=false"):
        ResNet9(num_classes=3, pretrained=True)
