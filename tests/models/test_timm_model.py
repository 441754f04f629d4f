from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from classifier.errors import UserError
from classifier.models import timm_model
from tests.data.server import running

NETWORKS = pytest.mark.parametrize(
    ("name", "image_size", "stem", "head"),
    [
        ("resnet18", (64, 48), "conv1", "fc"),
        ("mobilenetv3_large_100", (64, 64), "conv_stem", "classifier"),
        ("vit_tiny_patch16_224", (96, 64), "patch_embed.proj", "head"),
    ],
)


@NETWORKS
def test_networks_are_made_for_the_data(name: str, image_size: tuple[int, int], stem: str, head: str) -> None:
    network = timm_model(name, num_classes=5, in_chans=1, image_size=image_size, pretrained=False)
    assert network.get_parameter(f"{stem}.weight").shape[1] == 1
    assert network.eval()(torch.rand(2, 1, *image_size)).shape == (2, 5)


@NETWORKS
def test_published_weights_come_from_a_file(
    name: str, image_size: tuple[int, int], stem: str, head: str, tmp_path: Path
) -> None:
    published = timm.create_model(name).state_dict()
    save_file(published, tmp_path / "published.safetensors")
    weights = str(tmp_path / "published.safetensors")
    loaded = timm_model(name, num_classes=5, image_size=image_size, weights=weights).state_dict()
    assert loaded.keys() == published.keys()
    differing = {key for key in loaded if not torch.equal(loaded[key], published[key])}
    # position embeddings are interpolated to the other image size
    assert differing - {"pos_embed"} == {f"{head}.weight", f"{head}.bias"}
    assert loaded[f"{head}.weight"].shape[0] == 5
    assert loaded[f"{head}.weight"].std() < 0.02


def test_weights_of_this_very_network_are_loaded_whole(tmp_path: Path) -> None:
    trained = timm.create_model("resnet18", num_classes=5).state_dict()
    torch.save(trained, tmp_path / "trained.pth")
    network = timm_model("resnet18", num_classes=5, checkpoint_path=str(tmp_path / "trained.pth"))
    torch.testing.assert_close(network.state_dict(), trained, rtol=0, atol=0)


def test_a_hub_that_is_down_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not needed for what HF_HOME has."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with running() as hub:
        hub.status = 503
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        with pytest.raises(UserError, match=r"timm/resnet18\.a1_in1k .*model\.pretrained=false.*HF_HOME="):
            timm_model("resnet18", num_classes=5)
        assert len(hub.requests) == 1
        kept, published = tmp_path / "models--timm--resnet18.a1_in1k", timm.create_model("resnet18").state_dict()
        for folder in (kept / "refs", kept / "snapshots" / ("0" * 40)):
            folder.mkdir(parents=True)
        (kept / "refs" / "main").write_text("0" * 40)
        save_file(published, kept / "snapshots" / ("0" * 40) / "model.safetensors")
        torch.testing.assert_close(timm_model("resnet18", num_classes=1000).state_dict(), published)


def test_drop_rates_reach_the_network() -> None:
    options: dict[str, Any] = {"drop_rate": 0.3, "drop_path_rate": 0.2, "pretrained": False}
    network = timm_model("vit_tiny_patch16_224", num_classes=5, **options)
    assert network.get_submodule("head_drop").p == 0.3
    depths: list[Any] = [module.drop_prob for module in network.modules() if type(module).__name__ == "DropPath"]
    assert max(depths) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"drop_path_rate": 1.5}, "model.drop_path_rate=1.5"),
        ({"name": "vgg11", "drop_path_rate": 0.1}, "drop_path_rate"),
        ({"name": "resnet81"}, "resnet18"),
        ({"name": "resnet18.no_such_tag"}, "no_such_tag"),
        ({"name": "xcit_nano_12_p16_224", "image_size": (50, 50)}, "data.image_size=[50,50]"),
        ({"weights": "none.pth"}, "model.weights=none.pth"),
        ({"weights": "none.pth", "pretrained": True}, "model.weights=none.pth"),
    ],
)
def test_wrong_arguments_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refusal:
        timm_model(**{"name": "resnet18", "num_classes": 5, "pretrained": False, **settings})
    assert message in str(refusal.value)


@pytest.mark.parametrize("key", ["weights", "checkpoint_path"])
@pytest.mark.parametrize("name", ["none.pth", "text.safetensors", "empty.pth", "seven.pth"])
def test_file_that_does_not_fit(name: str, key: str, tmp_path: Path) -> None:
    if name == "seven.pth":
        torch.save(timm.create_model("resnet34", num_classes=7).state_dict(), tmp_path / name)
    elif name != "none.pth":
        (tmp_path / name).write_text("" if name == "empty.pth" else "no weights\n")
    arguments: dict[str, Any] = {key: str(tmp_path / name), "pretrained": key == "weights"}
    with pytest.raises(UserError, match=rf"model\.{key}=.*{name}"):
        timm_model("resnet18", num_classes=5, **arguments)


CONTENTS = {
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 56\n", "git lfs pull"),
    "page": (b"<!DOCTYPE html>\n<html></html>\n", "web page"),
    "half": (None, "cut off"),
}


@pytest.mark.parametrize("key", ["weights", "checkpoint_path"])
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("content", CONTENTS)
def test_what_holds_no_weights_is_named(content: str, suffix: str, key: str, tmp_path: Path) -> None:
    path, (start, said) = tmp_path / f"{content}.{suffix}", CONTENTS[content]
    if start is None:
        weights = {"weight": torch.zeros(1000)}
        (save_file if suffix == "safetensors" else torch.save)(weights, path)
        start = path.read_bytes()[:3000]
    path.write_bytes(start)
    arguments: dict[str, Any] = {key: str(path), "pretrained": key == "weights"}
    with pytest.raises(UserError, match=rf"model\.{key}={path} .*{said}"):
        timm_model("resnet18", num_classes=5, **arguments)


@pytest.mark.parametrize("prefix", ["model.", "network.", "module.student.backbone."])
def test_weights_may_have_a_prefix(prefix: str, tmp_path: Path) -> None:
    """As Lightning writes them, beside what is not the network's."""
    published = timm.create_model("resnet18").state_dict()
    prefixed = {f"{prefix}{key}": value for key, value in published.items()}
    torch.save({"state_dict": {"normalize.scale": torch.ones(3), **prefixed}}, tmp_path / "run.ckpt")
    loaded = timm_model("resnet18", num_classes=5, weights=str(tmp_path / "run.ckpt"))
    differing = {key for key, value in loaded.state_dict().items() if not torch.equal(value, published[key])}
    assert differing == {"fc.weight", "fc.bias"}
    assert "state_dict" not in loaded.pretrained_cfg  # type: ignore[operator]
    same: dict[str, Any] = {"pretrained": False, "checkpoint_path": str(tmp_path / "run.ckpt")}
    torch.testing.assert_close(timm_model("resnet18", num_classes=1000, **same).state_dict(), published)


@pytest.mark.parametrize(
    "other",
    [
        "vit_tiny_patch16_224",  # timm loads nothing of it, without an error
        "resnet34",  # has all that a ResNet-18 has, of the same shapes
        "resnet50",
    ],
)
def test_weights_of_another_network_are_refused(other: str, tmp_path: Path) -> None:
    save_file(timm.create_model(other).state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"model\.weights=.*other\.safetensors"):
        timm_model("resnet18", num_classes=5, weights=str(tmp_path / "other.safetensors"))


@pytest.mark.parametrize(("name", "matched"), [("resnet18", "20 of 21"), ("levit_128s", "61 of 63")])
def test_what_matched_is_logged(name: str, matched: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    published = timm.create_model(name).state_dict()
    trained = {key: torch.rand_like(value) if value.dim() > 1 else value for key, value in published.items()}
    save_file(trained, tmp_path / "published.safetensors")
    caplog.set_level("INFO", logger="classifier")
    timm_model(name, num_classes=5, weights=str(tmp_path / "published.safetensors"))
    assert matched in caplog.text
