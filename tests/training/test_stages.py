from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

from classifier.errors import UserError
from classifier.models import ResNet9, SimpleCNN
from classifier.training.parameter_groups import head_parameters, stages


def modules(names: set[str] | list[str]) -> set[str]:
    return {name.rpartition(".")[0] for name in names}


def create(name: str) -> nn.Module:
    with torch.device("meta"):  # shapes are enough
        network: nn.Module = timm.create_model(name, pretrained=False, num_classes=7)
    return network


@pytest.mark.parametrize(
    ("name", "head", "first", "count"),
    [
        ("resnet18", {"fc"}, "conv1.weight", 5),
        ("efficientnet_b0", {"classifier"}, "conv_stem.weight", 8),
        ("mobilenetv3_small_050", {"classifier"}, "conv_stem.weight", 7),
        ("convnext_atto", {"head.fc"}, "stem.0.weight", 5),
        ("vit_tiny_patch16_224", {"head"}, "cls_token", 13),
        ("deit_tiny_distilled_patch16_224", {"head", "head_dist"}, "cls_token", 13),
        ("caformer_s18", {"head.fc.fc1", "head.fc.norm", "head.fc.fc2"}, "stem.conv.weight", 5),  # timm does not group
        ("rdnet_tiny", {"head.fc"}, "stem.0.weight", 8),  # timm groups by block alone
    ],
)
def test_networks_of_timm(name: str, head: set[str], first: str, count: int) -> None:
    network = create(name)
    found = stages(network)
    assert modules(head_parameters(network)) == head
    assert found[0][0] == first
    assert len(found) == count


def test_what_is_before_the_head_belongs_to_the_last_stage() -> None:
    assert "head.norm.weight" in stages(create("convnext_atto"))[-1]
    assert "conv_head.weight" in stages(create("mobilenetv3_small_050"))[-1]


@pytest.mark.parametrize(
    ("network", "head", "count"),
    [
        (SimpleCNN(num_classes=3, widths=[4, 8], depth=2), {"head.0", "head.3"}, 2),
        (ResNet9(num_classes=3, width=4), {"head"}, 6),
        (torchvision.models.resnet18(), {"fc"}, 10),
        (torchvision.models.VisionTransformer(32, 16, 3, 2, 12, 24), {"heads.head"}, 2),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2), nn.ReLU()), {"2"}, 1),
        (nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), {"1"}, 0),
    ],
    ids=lambda value: type(value).__name__,
)
def test_stages_of_other_networks_are_their_children(network: nn.Module, head: set[str], count: int) -> None:
    assert modules(head_parameters(network)) == head
    found = stages(network)
    assert len(found) == count
    below = [name for names in found for name in names]
    assert below == [name for name, _ in network.named_parameters() if name not in head_parameters(network)]


@pytest.mark.parametrize("network", [nn.Linear(4, 2), nn.Sequential(nn.Flatten())])
def test_network_without_a_head(network: nn.Module) -> None:
    with pytest.raises(UserError, match="finetune=full"):
        head_parameters(network)


@pytest.mark.slow
@pytest.mark.parametrize("family", timm.list_modules())
def test_every_family_of_timm(family: str) -> None:
    """Each parameter is in the head or in one stage, and there are several stages."""
    names: list[Any] = sorted(timm.list_models(module=family), key=lambda name: (len(name), name))
    network = create(names[0])
    head = head_parameters(network)
    for coarse in (True, False):
        found = stages(network, coarse)
        assert sorted([*head, *(name for names in found for name in names)]) == sorted(
            name for name, _ in network.named_parameters()
        )
        assert len(found) >= 4
