from typing import Any

import pytest
import timm
import timm.optim
import torch
from torch import nn

from classifier.errors import UserError
from classifier.models import SimpleCNN
from classifier.training.parameter_groups import parameter_groups


def network(name: str = "resnet18") -> nn.Module:
    with torch.device("meta"):
        created: nn.Module = timm.create_model(name, pretrained=False, num_classes=7)
    return created


def settings(model: nn.Module, groups: list[dict[str, Any]], key: str, default: float) -> dict[str, float]:
    """Name of a parameter -> what its group has under `key`."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(parameter)]: group.get(key, default) for group in groups for parameter in group["params"]}
    assert len(found) == len(names)
    return found


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_weight_decay_is_that_of_timm(name: str) -> None:
    model = network(name)
    ours = parameter_groups(model, lr=0.1, weight_decay=True)
    named: Any = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()  # type: ignore[operator]
    theirs = timm.optim.param_groups_weight_decay(model, 0.05, no_weight_decay_list=named)
    decays = settings(model, ours, "weight_decay", 0.05)
    assert decays == settings(model, theirs, "weight_decay", -1)
    assert set(decays.values()) == {0.0, 0.05}
    assert [group["name"] for group in ours] == ["network", "network_no_decay"]
    assert not any("lr" in group for group in ours)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "vit_tiny_patch16_224", "convnext_atto"])
@pytest.mark.parametrize("decay", [0.75, 0.5])
def test_layer_decay_is_that_of_timm(name: str, decay: float) -> None:
    model = network(name)
    ours = settings(model, parameter_groups(model, lr=0.1, weight_decay=True, layer_decay=decay), "lr", 0.1)
    theirs = timm.optim.param_groups_layer_decay(model, layer_decay=decay)
    expected = {key: 0.1 * scale for key, scale in settings(model, theirs, "lr_scale", -1).items()}
    if name == "convnext_atto":  # its last norm is a part of its last layer here, and of the head there
        assert ours.pop("head.norm.weight") == pytest.approx(expected.pop("head.norm.weight") * decay)
        assert ours.pop("head.norm.bias") == pytest.approx(expected.pop("head.norm.bias") * decay)
    assert ours == pytest.approx(expected)


def test_layer_decay_of_a_network_that_timm_does_not_know() -> None:
    model = SimpleCNN(num_classes=3, widths=[4, 8, 8])
    groups = parameter_groups(model, lr=0.8, weight_decay=True, layer_decay=0.5)
    rates = settings(model, groups, "lr", 0.8)
    weights = [rate for name, rate in rates.items() if name.startswith("features") and name.endswith(".weight")]
    assert sorted(set(weights)) == pytest.approx([0.1, 0.2, 0.4])
    assert {rate for name, rate in rates.items() if name.startswith("head")} == {0.8}


def test_head_and_backbone() -> None:
    model = network()
    groups = parameter_groups(model, lr=0.5, weight_decay=True, backbone_lr=0.1)
    assert [group["name"] for group in groups] == ["head", "head_no_decay", "backbone", "backbone_no_decay"]
    rates = settings(model, groups, "lr", 0.5)
    assert {name for name, rate in rates.items() if rate == 0.5} == {"fc.weight", "fc.bias"}
    assert set(rates.values()) == {0.5, 0.05}


def test_both_multiply() -> None:
    model = network()
    groups = parameter_groups(model, lr=1.0, weight_decay=False, backbone_lr=0.1, layer_decay=0.5)
    assert [group["name"] for group in groups] == ["head", *(f"layer_{number:02d}" for number in reversed(range(9)))]
    rates = settings(model, groups, "lr", 1.0)
    assert rates["layer4.1.conv2.weight"] == pytest.approx(0.05)
    assert rates["layer4.0.conv2.weight"] == pytest.approx(0.025)
    assert rates["fc.weight"] == 1.0


def test_one_group_has_no_name_of_its_own() -> None:
    [group] = parameter_groups(network(), lr=0.1, weight_decay=False)
    assert set(group) == {"params"}


def test_rates_need_one_to_be_a_share_of() -> None:
    with pytest.raises(UserError, match=r"optimizer\.lr"):
        parameter_groups(network(), lr=None, weight_decay=True, backbone_lr=0.1)
