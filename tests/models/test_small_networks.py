from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from classifier.errors import UserError
from classifier.models import ResNet9, SimpleCNN
from classifier.runs import CONFIG_DIR


def parameter_counts(network: nn.Module) -> list[int]:
    return [parameter.numel() for parameter in network.parameters()]


def test_tutorial_network_has_the_layers_of_the_tutorials() -> None:
    settings: Any = OmegaConf.to_container(OmegaConf.load(CONFIG_DIR / "model" / "simple_cnn.yaml"))
    arguments = {key: value for key, value in settings.items() if key not in ("_target_", "mean", "std")}
    network = SimpleCNN(num_classes=10, in_chans=1, image_size=(28, 28), **arguments)
    assert parameter_counts(network) == [32 * 9, 32, 32 * 64 * 9, 64, 64 * 7 * 7 * 100, 100, 100 * 10, 10]
    kinds = [type(module).__name__ for module in network.modules() if not list(module.children())]
    stage = ["Conv2d", "ReLU", "MaxPool2d"]
    assert kinds == [*stage, *stage, "Flatten", "Linear", "ReLU", "Dropout", "Linear"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # BatchNorm brings scale and shift, and the convolution loses its bias
        ({"hidden": []}, [3 * 8 * 9, 8, 8, 8 * 5 * 4 * 7, 7]),
        ({"hidden": [], "batch_norm": False}, [3 * 8 * 9, 8, 8 * 5 * 4 * 7, 7]),
        ({"hidden": [6], "depth": 2, "head": "avg"}, [216, 8, 8, 8 * 8 * 9, 8, 8, 8 * 6, 6, 6 * 7, 7]),
    ],
)
def test_parameter_counts(changes: dict[str, Any], expected: list[int]) -> None:
    assert parameter_counts(SimpleCNN(num_classes=7, image_size=(10, 8), widths=[8], **changes)) == expected


def test_resnet9_has_the_size_of_the_source() -> None:
    assert sum(parameter_counts(ResNet9(num_classes=10))) == 6_573_120


@pytest.mark.parametrize(
    ("kind", "settings"), [(SimpleCNN, {"head": "flatten"}), (SimpleCNN, {"head": "avg"}), (ResNet9, {"width": 8})]
)
@pytest.mark.parametrize(("in_chans", "image_size"), [(1, (8, 8)), (3, (33, 9))])
def test_logits_have_one_row_an_image(
    kind: type[nn.Module], settings: dict[str, Any], in_chans: int, image_size: tuple[int, int]
) -> None:
    network = kind(num_classes=5, in_chans=in_chans, image_size=image_size, **settings)
    assert network(torch.rand(3, in_chans, *image_size)).shape == (3, 5)


def test_residuals_carry_their_input() -> None:
    features = torch.rand(2, 16, 8, 8)
    residual = ResNet9(num_classes=3, width=8).features[2].eval()
    nn.init.zeros_(residual.get_submodule("block.1.0").weight)  # type: ignore[arg-type]
    torch.testing.assert_close(residual(features), features)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (SimpleCNN, {"image_size": (31, 31), "widths": [4] * 5}, "data.image_size=32"),
        (SimpleCNN, {"head": "max"}, "model.head=max"),
        (SimpleCNN, {"pretrained": True}, "model.pretrained=false"),
        (ResNet9, {"image_size": (7, 32)}, "data.image_size=8"),
        (ResNet9, {"pretrained": True}, "model.pretrained=false"),
    ],
)
def test_what_they_do_not_take(kind: type[nn.Module], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        kind(num_classes=5, **settings)
