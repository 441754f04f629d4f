import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.transforms import v2

from classifier.errors import UserError
from classifier.models import Normalize, SimpleCNN, register_network, timm_model
from classifier.models.network import IMAGENET_MEAN, IMAGENET_STD, build_model, require_image_size
from classifier.untrusted import known_targets

CNN = {"_target_": "classifier.models.SimpleCNN", "widths": [4]}
VIT = {"_target_": "classifier.models.timm_model", "name": "vit_tiny_patch16_224", "pretrained": False}
HALF = (0.5, 0.5, 0.5)


def build(config: dict[str, Any], in_chans: int = 3, trusted: bool = True) -> tuple[Normalize, nn.Module]:
    return build_model(config, num_classes=5, in_chans=in_chans, image_size=[16, 16], trusted=trusted)


def test_a_broken_config_is_in_nobodys_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    for name, content in {"mine": b"_target_: my_project.Net", "draft": b"a: [", "latin": b"a: \xff"}.items():
        (tmp_path / "model" / f"{name}.yaml").write_bytes(content)
    monkeypatch.setattr("classifier.untrusted.CONFIG_DIR", tmp_path)
    assert known_targets.__wrapped__("model") == {"my_project.Net"}


@pytest.mark.parametrize(("mean", "std"), [(IMAGENET_MEAN, IMAGENET_STD), ((0.2,), (0.4,))])
def test_normalize_equals_torchvision(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).repeat(2, len(mean), 1, 1)
    reference = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])
    ours = Normalize(mean, std)(values)
    torch.testing.assert_close(ours, reference(values), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("config", "in_chans", "mean", "std"),
    [
        (CNN, 3, IMAGENET_MEAN, IMAGENET_STD),
        (CNN, 1, [sum(IMAGENET_MEAN) / 3], [sum(IMAGENET_STD) / 3]),
        ({**CNN, "mean": [0.1, 0.2, 0.3], "std": None}, 3, [0.1, 0.2, 0.3], IMAGENET_STD),
        (VIT, 3, HALF, HALF),  # not ImageNet's: its weights were trained with these
    ],
)
def test_statistics_of_the_input(config: dict[str, Any], in_chans: int, mean: list[float], std: list[float]) -> None:
    for found, expected in zip(build(config, in_chans)[0].buffers(), Normalize(mean, std).buffers(), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"no_such_key": 1}, "no_such_key"),
        ({"_target_": "classifier.models.SimpleCN"}, "classifier.models.SimpleCN"),
        ({"_target_": "no_such_package.Network"}, "no_such_package"),
        ({"mean": [0.5, 0.5]}, "model.mean=[0.5,0.5] must be 3 "),
        ({"std": [0.5, 0.0, 0.5]}, "model.std"),
    ],
)
def test_bad_keys_are_wrong_input(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refusal:
        build({**CNN, **changes})
    assert message in str(refusal.value)


class Own(SimpleCNN):
    """A user's network, without a config in configs/model/."""


def test_a_checkpoint_may_name_the_networks_of_the_configs_and_registered_ones() -> None:
    build(CNN, trusted=False)
    own: dict[str, Any] = {"_target_": f"{__name__}.Own", "widths": [4]}
    assert isinstance(build(own)[1], Own)
    with pytest.raises(UserError) as refusal:
        build(own, trusted=False)
    assert f'register_network("{own["_target_"]}")' in str(refusal.value)
    register_network(own["_target_"])
    assert isinstance(build(own, trusted=False)[1], Own)


TRAP = {"_target_": "builtins.open", "file": "sprung", "mode": "x"}


@pytest.mark.parametrize(
    "planted",
    [
        TRAP,
        {"_target_": "timm.models.load_checkpoint", "model": "x", "checkpoint_path": "y"},
        {"_target_": "torch.nn.functional.torch.utils.collect_env.run", "command": "touch sprung"},
        {"_target_": "torch.nn.Sequential", "_args_": [TRAP]},
        {**CNN, "widths": [4, TRAP]},
        {**CNN, "hidden": [[{"deep": TRAP}]]},
        {**CNN, "_args_": [TRAP]},
        {**CNN, "_partial_": True},
        {**CNN, "head": "${oc.env:HOME}"},
        {**CNN, "mean": TRAP},
        {"widths": [4]},
        {"_target_": {"_target_": "builtins.open"}},
    ],
)
def test_what_a_stranger_planted_in_a_checkpoint_is_refused(
    planted: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^model.*(refused|not built from a checkpoint)"):
        build(planted, trusted=False)
    assert list(tmp_path.iterdir()) == []


def test_trying_a_size_leaves_no_trace() -> None:
    network = timm_model("levit_128s", num_classes=5, pretrained=False)
    network.get_submodule("stages.0").eval()  # as who freezes BatchNorm does
    modes = [module.training for module in network.modules()]
    before = copy.deepcopy(network.state_dict())
    require_image_size(network, 3, (224, 224))
    with pytest.raises(UserError, match=r"Levit.* 50x50 .*data\.image_size"):
        require_image_size(network, 3, (50, 50))
    assert [module.training for module in network.modules()] == modes
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
