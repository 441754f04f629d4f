import logging
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from classifier.errors import UserError
from classifier.models import timm_model

# network, image size, first convolution, head
NETWORKS = [
    ("resnet18", (64, 48), "conv1", "fc"),
    ("mobilenetv3_large_100", (64, 64), "conv_stem", "classifier"),
    ("vit_tiny_patch16_224", (96, 64), "patch_embed.proj", "head"),
]


def weight(network: nn.Module, layer: str) -> torch.Tensor:
    found: torch.Tensor = network.state_dict()[f"{layer}.weight"]
    return found


@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize(("name", "image_size", "stem", "head"), NETWORKS)
def test_networks_are_made_for_the_data(
    name: str, image_size: tuple[int, int], stem: str, head: str, in_chans: int
) -> None:
    network = timm_model(name, num_classes=5, in_chans=in_chans, image_size=image_size, pretrained=False)
    assert weight(network, stem).shape[1] == in_chans
    assert weight(network, head).shape[0] == 5
    with torch.no_grad():
        assert network.eval()(torch.rand(2, in_chans, *image_size)).shape == (2, 5)


@pytest.mark.parametrize(("name", "image_size", "stem", "head"), NETWORKS)
def test_published_weights_come_from_a_local_file(
    name: str, image_size: tuple[int, int], stem: str, head: str, tmp_path: Path
) -> None:
    published = timm.create_model(name).state_dict()
    file = tmp_path / "published.safetensors"
    save_file(published, file)

    network = timm_model(name, num_classes=5, image_size=image_size, weights=str(file))

    loaded = network.state_dict()
    assert loaded.keys() == published.keys()
    differing = {key for key in loaded if not torch.equal(loaded[key], published[key])}
    # position embeddings are interpolated to the other image size
    assert differing - {"pos_embed"} == {f"{head}.weight", f"{head}.bias"}
    assert loaded[f"{head}.weight"].shape[0] == 5


def test_weights_of_this_very_network_are_loaded_whole(tmp_path: Path) -> None:
    trained = timm.create_model("resnet18", num_classes=5).state_dict()
    torch.save(trained, tmp_path / "trained.pth")
    network = timm_model("resnet18", num_classes=5, pretrained=False, checkpoint_path=str(tmp_path / "trained.pth"))
    loaded = network.state_dict()
    assert loaded.keys() == trained.keys()
    assert all(torch.equal(loaded[key], trained[key]) for key in trained)


def test_drop_rates_reach_the_network() -> None:
    options = {"num_classes": 5, "image_size": (64, 64), "pretrained": False}
    network = timm_model("vit_tiny_patch16_224", drop_rate=0.3, drop_path_rate=0.2, **options)  # type: ignore[arg-type]
    dropout = network.get_submodule("head_drop")
    assert isinstance(dropout, nn.Dropout)
    assert dropout.p == 0.3
    depths = [module.drop_prob for module in network.modules() if type(module).__name__ == "DropPath"]
    assert max(depths) == pytest.approx(0.2)  # type: ignore[type-var]

    plain = timm_model("vit_tiny_patch16_224", **options)  # type: ignore[arg-type]
    assert not any(type(module).__name__ == "DropPath" for module in plain.modules())


@pytest.mark.parametrize("rate", [-0.1, 1.0, "some"])
@pytest.mark.parametrize("key", ["drop_rate", "drop_path_rate"])
def test_a_bad_drop_rate(key: str, rate: Any) -> None:
    with pytest.raises(UserError, match=rf"model\.{key}={rate} must"):
        timm_model("resnet18", num_classes=5, pretrained=False, **{key: rate})


def test_stochastic_depth_that_a_network_lacks() -> None:
    with pytest.raises(UserError, match=r"model\.name=vgg11 .*drop_path_rate.*null"):
        timm_model("vgg11", num_classes=5, pretrained=False, drop_path_rate=0.1)
    # without it the network is made; on no device, as it is large
    with torch.device("meta"):
        timm_model("vgg11", num_classes=5, pretrained=False)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnet81", "resnet18"),
        ("efficientnet_b00", "efficientnet_b0"),
        ("resnet18.no_such_tag", "tv_in1k"),
    ],
)
def test_unknown_names_come_with_near_ones(name: str, hint: str) -> None:
    with pytest.raises(UserError) as refusal:
        timm_model(name, num_classes=5, pretrained=False)
    assert f"model.name={name}" in str(refusal.value)
    assert hint in str(refusal.value)


@pytest.mark.parametrize("key", ["weights", "checkpoint_path"])
def test_missing_file(key: str, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {key: str(tmp_path / "none.pth")}
    with pytest.raises(UserError, match=rf"model\.{key}=.*none\.pth"):
        timm_model("resnet18", num_classes=5, pretrained=False, **arguments)


@pytest.mark.parametrize("key", ["weights", "checkpoint_path"])
@pytest.mark.parametrize("name", ["text.safetensors", "empty.pth"])
def test_damaged_file(name: str, key: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("" if name == "empty.pth" else "no weights\n")
    arguments: dict[str, Any] = {key: str(tmp_path / name), "pretrained": key == "weights"}
    with pytest.raises(UserError, match=name):
        timm_model("resnet18", num_classes=5, **arguments)


def test_checkpoint_of_other_classes_is_refused(tmp_path: Path) -> None:
    torch.save(timm.create_model("resnet18", num_classes=7).state_dict(), tmp_path / "seven.pth")
    with pytest.raises(UserError, match=r"seven\.pth"):
        timm_model("resnet18", num_classes=5, pretrained=False, checkpoint_path=str(tmp_path / "seven.pth"))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ("vit_tiny_patch16_224", "model.name=resnet18"),  # timm itself loads nothing of it, without an error
        ("resnet34", "20 of 21 layers"),  # all that a ResNet-18 has, of the same shapes
        ("resnet50", "size mismatch for layer"),
    ],
)
def test_weights_of_another_network_are_refused(other: str, said: str, tmp_path: Path) -> None:
    save_file(timm.create_model(other).state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(UserError) as refusal:
        timm_model("resnet18", num_classes=5, weights=str(tmp_path / "other.safetensors"))
    assert said in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "account"),
    [("resnet18", r"20 of 21 .* fc$"), ("levit_128s", r"61 of 63 .* head.linear, head_dist.linear$")],
)
def test_what_matched_is_logged(name: str, account: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    published = timm.create_model(name).state_dict()
    trained = {key: torch.rand_like(value) if value.dim() > 1 else value for key, value in published.items()}
    save_file(trained, tmp_path / "published.safetensors")
    with caplog.at_level(logging.INFO):
        timm_model(name, num_classes=5, weights=str(tmp_path / "published.safetensors"))
    (message,) = [record.getMessage() for record in caplog.records if record.name.startswith("classifier")]
    assert re.search(account, message)


def test_image_size_that_a_network_cannot_be_made_for() -> None:
    with pytest.raises(UserError, match=r"xcit_nano_12_p16_224.*data\.image_size"):
        timm_model("xcit_nano_12_p16_224", num_classes=5, pretrained=False, image_size=(50, 50))
