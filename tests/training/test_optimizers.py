from typing import Any

import pytest
import timm
import timm.optim
import torch
from torch import nn

from classifier.errors import UserError
from classifier.models import SimpleCNN
from classifier.training.optimizers import build_optimizer, parameter_groups

OPTIONS = {"lr": 0.01, "weight_decay": 0.05, "momentum": 0.9, "betas": None, "eps": None, "arguments": None}
TIMM = {"_target_": "classifier.training.optimizers.timm_optimizer", **OPTIONS}
# of packages that are not here, or for CUDA alone, or with second derivatives
ELSEWHERE = {*timm.optim.list_optimizers(["bnb*", "fused*"]), "adahessian"}
HERE = [str(name) for name in timm.optim.list_optimizers() if name not in ELSEWHERE]
# kron asks torch's compiler for help, which takes long to import
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in HERE if name.startswith("kron")]
FAST = [name for name in HERE if not name.startswith("kron")]
TORCH = [f"torch.optim.{name}" for name in ("AdamW", "Adagrad", "NAdam", "RMSprop", "Rprop", "Adafactor", "SGD")]


@pytest.mark.parametrize("name", [*FAST, *SLOW, "lookahead_adamw", "LaProp", *TORCH])
def test_every_optimizer_trains(name: str) -> None:
    torch.manual_seed(0)
    network = SimpleCNN(num_classes=3, widths=[4, 8], image_size=[8, 8], drop_rate=0.0)
    config = {"_target_": name, "lr": 0.01} if name in TORCH else {**TIMM, "name": name}
    optimizer = build_optimizer(config, network, backbone_lr=0.5)
    images, labels, losses = torch.randn(9, 3, 8, 8), torch.arange(9) % 3, []
    for _ in range(3):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.item())
        optimizer.step()
    assert all(weight.isfinite().all() for weight in network.parameters())
    assert losses[-1] != losses[0]


def test_options_reach_the_optimizer() -> None:
    config = {**TIMM, "name": "lamb", "betas": [0.8, 0.9], "eps": None, "arguments": {"trust_clip": True}}
    found = build_optimizer(config, nn.Linear(2, 2)).defaults
    assert (found["lr"], found["weight_decay"], found["betas"], found["trust_clip"]) == (0.01, 0.05, [0.8, 0.9], True)
    assert build_optimizer({**TIMM, "name": "lars", "momentum": 0.8}, nn.Linear(2, 2)).defaults["momentum"] == 0.8


@pytest.mark.parametrize(
    ("config", "decays"), [({}, [0.01, 0.0]), ({"weight_decay": 0.5}, [0.5, 0.0]), ({"weight_decay": 0}, [0])]
)
def test_biases_do_not_decay(config: dict[str, Any], decays: list[float]) -> None:
    groups = build_optimizer({"_target_": "torch.optim.AdamW", **config}, nn.Linear(2, 2)).param_groups
    assert [group["weight_decay"] for group in groups] == decays


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_target_": "torch.optim.SGD", "lr": -1}, "optimizer.lr=-1"),
        ({"_target_": "torch.optim.SGD", "lr": 0.1, "betas": [0.9, 0.99]}, "betas"),
        ({"lr": 0.1}, "optimizer._target_"),
        ({**TIMM, "name": "lookahead_lamd"}, "lamb"),
        ({**TIMM, "name": "fusedadam"}, "optimizer.name=fusedadam"),
        ({**TIMM, "name": "lion", "arguments": {"trust": 1}}, "trust"),
    ],
)
def test_bad_optimizers_are_wrong_input(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refusal:
        build_optimizer(config, nn.Linear(2, 2))
    assert message in str(refusal.value)
    assert "optimizer." in str(refusal.value)


def network(name: str = "resnet18") -> nn.Module:
    with torch.device("meta"):
        created: nn.Module = timm.create_model(name, pretrained=False, num_classes=7)
    return created


def groups(model: nn.Module, backbone_lr: float = 1.0, layer_decay: float | None = None) -> list[dict[str, Any]]:
    return parameter_groups(model, lr=1.0, weight_decay=True, backbone_lr=backbone_lr, layer_decay=layer_decay)


def settings(model: nn.Module, of: list[dict[str, Any]], key: str, default: float) -> dict[str, float]:
    """Name of a parameter -> what its group has under `key`."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(parameter)]: group.get(key, default) for group in of for parameter in group["params"]}
    assert len(found) == len(names)
    return found


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_weight_decay_is_that_of_timm(name: str) -> None:
    model = network(name)
    ours = groups(model)
    named: Any = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()  # type: ignore[operator]
    theirs = timm.optim.param_groups_weight_decay(model, 0.05, no_weight_decay_list=named)
    assert settings(model, ours, "weight_decay", 0.05) == settings(model, theirs, "weight_decay", -1)
    assert [group["name"] for group in ours] == ["network", "network_no_decay"]


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "vit_tiny_patch16_224", "convnext_atto"])
def test_layer_decay_is_that_of_timm(name: str) -> None:
    model = network(name)
    ours = settings(model, groups(model, layer_decay=0.75), "lr", 1.0)
    expected = settings(model, timm.optim.param_groups_layer_decay(model, layer_decay=0.75), "lr_scale", -1)
    if name == "convnext_atto":  # its last norm is a part of its last layer here, and of the head there
        expected |= {key: 0.75 * expected[key] for key in ("head.norm.weight", "head.norm.bias")}
    assert ours == pytest.approx(expected)


def test_layer_decay_of_a_network_that_timm_does_not_know() -> None:
    model = SimpleCNN(num_classes=3, widths=[4, 8, 8])
    rates = settings(model, groups(model, layer_decay=0.5), "lr", 1.0)
    assert {rate for name, rate in rates.items() if name.startswith("features")} == {0.125, 0.25, 0.5}
    assert {rate for name, rate in rates.items() if name.startswith("head")} == {1.0}


def test_head_and_backbone() -> None:
    model = network()
    found = groups(model, backbone_lr=0.1)
    assert [group["name"] for group in found] == ["head", "head_no_decay", "backbone", "backbone_no_decay"]
    rates = settings(model, found, "lr", 1.0)
    assert {name for name, rate in rates.items() if rate == 1.0} == {"fc.weight", "fc.bias"}
    assert set(rates.values()) == {1.0, 0.1}
    both = settings(model, groups(model, backbone_lr=0.1, layer_decay=0.5), "lr", 1.0)
    assert [both["layer4.1.conv2.weight"], both["fc.weight"]] == pytest.approx([0.05, 1.0])


def test_rates_need_one_to_be_a_share_of() -> None:
    with pytest.raises(UserError, match=r"optimizer\.lr"):
        build_optimizer({"_target_": "torch.optim.AdamW"}, network(), backbone_lr=0.1)
