from typing import Any

import pytest
import timm.optim
import torch
from torch import nn

from classifier.errors import UserError
from classifier.models import SimpleCNN
from classifier.training.optimizers import build_optimizer, has_weight_decay
from classifier.training.parameter_groups import parameter_groups

TIMM = {"_target_": "classifier.training.optimizers.timm_optimizer", "lr": 0.01, "weight_decay": 0.05}
# of packages that are not here, or for CUDA alone, or with second derivatives
ELSEWHERE = {*timm.optim.list_optimizers(["bnb*", "fused*"]), "adahessian"}
# kron asks torch's compiler for help, which takes long to import
HERE = [
    pytest.param(name, marks=[pytest.mark.slow] if str(name).startswith("kron") else [])
    for name in timm.optim.list_optimizers()
    if name not in ELSEWHERE
]


def train(config: dict[str, Any], steps: int = 3) -> tuple[list[torch.Tensor], list[float]]:
    """Weights and losses."""
    torch.manual_seed(0)
    network = SimpleCNN(num_classes=3, widths=[4, 8], image_size=[8, 8], batch_norm=True)
    groups = parameter_groups(network, lr=config.get("lr"), weight_decay=has_weight_decay(config), backbone_lr=0.5)
    optimizer = build_optimizer(config, groups)
    images, labels = torch.randn(9, 3, 8, 8), torch.arange(9) % 3
    losses = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        torch.manual_seed(0)
        loss = nn.functional.cross_entropy(network(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.item())
        return loss

    for _ in range(steps):
        optimizer.step(closure)  # type: ignore[arg-type]
    return list(network.parameters()), losses


TORCH = [f"torch.optim.{name}" for name in ("AdamW", "Adagrad", "NAdam", "RMSprop", "Rprop", "Adafactor", "SGD")]


@pytest.mark.parametrize("name", [*HERE, "lookahead_adamw", "LaProp", *TORCH])
def test_every_optimizer_trains(name: str) -> None:
    weights, losses = train({"_target_": name, "lr": 0.01} if name in TORCH else {**TIMM, "name": name})
    assert all(weight.isfinite().all() for weight in weights)
    assert losses[-1] != losses[0]


def test_options_reach_the_optimizer() -> None:
    groups = [{"params": [nn.Parameter(torch.zeros(2, 2))]}]
    config = {**TIMM, "name": "lamb", "betas": [0.8, 0.9], "eps": 0.1, "arguments": {"trust_clip": True}}
    found = build_optimizer(config, groups).defaults
    assert (found["lr"], found["weight_decay"], found["betas"], found["eps"]) == (0.01, 0.05, [0.8, 0.9], 0.1)
    assert found["trust_clip"] is True
    assert build_optimizer({**TIMM, "name": "lars", "momentum": 0.8}, groups).defaults["momentum"] == 0.8


def test_lbfgs_takes_one_group_and_gets_one() -> None:
    config = {"_target_": "torch.optim.LBFGS", "lr": 0.1}
    groups = parameter_groups(nn.Linear(2, 2), lr=0.1, weight_decay=has_weight_decay(config))
    assert len(build_optimizer(config, groups).param_groups) == 1


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"_target_": "torch.optim.AdamW"}, True),  # by its own default
        ({"_target_": "torch.optim.AdamW", "weight_decay": 0}, False),
        ({"_target_": "torch.optim.SGD"}, False),
        ({"_target_": "torch.optim.SGD", "weight_decay": 0.1}, True),
        ({"_target_": "torch.optim.LBFGS"}, False),
        ({"_target_": "no_such.Optimizer"}, False),
    ],
)
def test_whether_weights_decay(config: dict[str, Any], expected: bool) -> None:
    assert has_weight_decay(config) is expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_target_": "torch.optim.AdamWW"}, "AdamW"),
        ({"_target_": "no_such_package.SGD"}, "no_such_package"),
        ({"_target_": "torch.optim.SGD", "lr": -1}, "optimizer.lr=-1"),
        ({"_target_": "torch.optim.SGD", "lr": 0.1, "betas": [0.9, 0.99]}, "betas"),
        ({"lr": 0.1}, "optimizer._target_"),
        ({**TIMM, "name": "lamd"}, "lamb"),
        ({**TIMM, "name": "lookahead_lamd"}, "lamb"),
        ({**TIMM, "name": "adahessian"}, "optimizer.name=adahessian"),
        ({**TIMM, "name": "fusedadam"}, "optimizer.name=fusedadam"),
        ({**TIMM, "name": "lion", "arguments": {"trust": 1}}, "trust"),
    ],
)
def test_bad_optimizers_are_wrong_input(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refusal:
        build_optimizer(config, [{"params": [nn.Parameter(torch.zeros(1))]}])
    assert message in str(refusal.value)
    assert "optimizer." in str(refusal.value)
