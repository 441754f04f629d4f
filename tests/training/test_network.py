from typing import Any

import pytest
import torch
from torch import nn
from torchvision.transforms import v2

from classifier.errors import UserError
from classifier.models import Normalize, SimpleCNN, timm_model
from classifier.models.network import IMAGENET_MEAN, IMAGENET_STD, build_model, require_image_size

CNN = {"_target_": "classifier.models.SimpleCNN", "widths": [4]}
VIT = {"_target_": "classifier.models.timm_model", "name": "vit_tiny_patch16_224", "pretrained": False}
HALF = (0.5, 0.5, 0.5)


def build(config: dict[str, Any], in_chans: int = 3, side: int = 16) -> tuple[Normalize, nn.Module]:
    return build_model(config, num_classes=5, in_chans=in_chans, image_size=[side, side])


@pytest.mark.parametrize(("mean", "std"), [(IMAGENET_MEAN, IMAGENET_STD), (HALF, HALF), ((0.2,), (0.4,))])
def test_normalize_equals_torchvision(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).repeat(2, len(mean), 1, 1)
    reference = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])
    ours = Normalize(mean, std)(values)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, reference(values), atol=1e-6, rtol=1e-6)


def statistics(normalize: Normalize) -> tuple[list[float], list[float]]:
    """Mean and std, from what becomes of black and white pixels."""
    channels = normalize.scale.shape[1]
    black = normalize(torch.zeros(1, channels, 1, 1, dtype=torch.uint8)).flatten()
    white = normalize(torch.full((1, channels, 1, 1), 255, dtype=torch.uint8)).flatten()
    std = 1 / (white - black)
    return (-black * std).tolist(), std.tolist()


@pytest.mark.parametrize(
    ("config", "in_chans", "mean", "std"),
    [
        (CNN, 3, IMAGENET_MEAN, IMAGENET_STD),
        (CNN, 1, [sum(IMAGENET_MEAN) / 3], [sum(IMAGENET_STD) / 3]),
        ({**CNN, "mean": [0.1, 0.2, 0.3], "std": None}, 3, [0.1, 0.2, 0.3], IMAGENET_STD),
        ({**CNN, "mean": [0.1], "std": [0.2]}, 1, [0.1], [0.2]),
        (VIT, 3, HALF, HALF),  # not ImageNet's: its weights were trained with these
        ({**VIT, "mean": [0.0, 0.0, 0.0]}, 3, [0.0, 0.0, 0.0], HALF),
        (VIT, 1, [0.5], [0.5]),
    ],
)
def test_statistics_of_the_input(config: dict[str, Any], in_chans: int, mean: list[float], std: list[float]) -> None:
    normalize, _ = build(config, in_chans)
    found_mean, found_std = statistics(normalize)
    assert found_mean == pytest.approx(list(mean), abs=1e-6)
    assert found_std == pytest.approx(list(std), abs=1e-6)


def test_config_stays_as_it_was() -> None:
    config = {**CNN, "mean": [0.1, 0.2, 0.3]}
    _, network = build(config)
    assert isinstance(network, SimpleCNN)
    assert config == {**CNN, "mean": [0.1, 0.2, 0.3]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"no_such_key": 1}, "no_such_key"),
        ({"_target_": "classifier.models.SimpleCN"}, "SimpleCNN"),
        ({"_target_": "no_such_package.Network"}, "no_such_package"),
        ({"widths": None}, "model"),
        ({"drop_rate": 2}, "drop"),
        ({"widths": [-3]}, "model"),
        ({"head": "x"}, "model.head=x"),
        ({"mean": [0.5, 0.5]}, "2 numbers for 3 channels"),
        ({"mean": 0.5}, "model.mean=0.5"),
        ({"mean": ["a", "b", "c"]}, "model.mean"),
        ({"std": [0.5, 0.0, 0.5]}, "model.std"),
    ],
)
def test_bad_keys_are_wrong_input(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refusal:
        build({**CNN, **changes})
    assert message in str(refusal.value)


@pytest.mark.parametrize(("name", "side"), [("inception_v3", 32), ("levit_128s", 50), ("vit_tiny_patch16_224", 8)])
def test_image_size_that_a_network_does_not_take(name: str, side: int) -> None:
    network = timm_model(name, num_classes=5, image_size=(side, side), pretrained=False)
    with pytest.raises(UserError, match=rf"{type(network).__name__} .*{side}x{side} pixels .*data\.image_size"):
        require_image_size(network, 3, (side, side))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("in_chans", [1, 3])
def test_trying_a_size_leaves_no_trace(in_chans: int, training: bool) -> None:
    network = timm_model("levit_128s", num_classes=5, in_chans=in_chans, pretrained=False).train(training)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert any(name.endswith("running_mean") for name in before)
    require_image_size(network, in_chans, (224, 224))
    with pytest.raises(UserError):
        require_image_size(network, in_chans, (50, 50))
    assert all(module.training == training for module in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_trying_a_size_keeps_frozen_layers_in_evaluation() -> None:
    """Who froze BatchNorm by `eval()` finds it frozen."""
    network = SimpleCNN(num_classes=5, image_size=(8, 8))
    network.features.eval()
    require_image_size(network, 3, (8, 8))
    assert network.training
    assert not network.features.training
