from collections.abc import Sequence
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from classifier.errors import UserError
from classifier.models import SimpleCNN
from classifier.runs import CONFIG_DIR


def parameter_counts(network: SimpleCNN) -> list[int]:
    return [parameter.numel() for parameter in network.parameters()]


def test_tutorial_network_has_the_layers_of_the_tutorials() -> None:
    settings = OmegaConf.to_container(OmegaConf.load(CONFIG_DIR / "model" / "simple_cnn.yaml"))
    assert isinstance(settings, dict)
    arguments = {str(key): value for key, value in settings.items() if key not in ("_target_", "mean", "std")}

    network = SimpleCNN(num_classes=10, in_chans=1, image_size=(28, 28), **arguments)

    conv_1, conv_2 = [1 * 32 * 9, 32], [32 * 64 * 9, 64]
    dense, last = [64 * 7 * 7 * 100, 100], [100 * 10, 10]
    assert parameter_counts(network) == [*conv_1, *conv_2, *dense, *last]
    kinds = [type(module).__name__ for module in network.modules() if not list(module.children())]
    stage = ["Conv2d", "ReLU", "MaxPool2d"]
    assert kinds == [*stage, *stage, "Flatten", "Linear", "ReLU", "Dropout", "Linear"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # BatchNorm brings scale and shift, and the convolution loses its bias
        ({"widths": [8], "hidden": []}, [3 * 8 * 9, 8, 8, 8 * 5 * 4 * 7, 7]),
        ({"widths": [8], "hidden": [], "batch_norm": False}, [3 * 8 * 9, 8, 8 * 5 * 4 * 7, 7]),
        ({"widths": [8], "hidden": [], "head": "avg"}, [3 * 8 * 9, 8, 8, 8 * 7, 7]),
        ({"widths": [8], "hidden": [], "depth": 2, "head": "avg"}, [216, 8, 8, 8 * 8 * 9, 8, 8, 8 * 7, 7]),
        ({"widths": [8], "hidden": [6, 5], "head": "avg"}, [216, 8, 8, 8 * 6, 6, 6 * 5, 5, 5 * 7, 7]),
    ],
)
def test_parameter_counts(changes: dict[str, Any], expected: list[int]) -> None:
    assert parameter_counts(SimpleCNN(num_classes=7, image_size=(10, 8), **changes)) == expected


@pytest.mark.parametrize("head", ["flatten", "avg"])
@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize("image_size", [(4, 4), (7, 5), (16, 48)])
def test_logits_have_one_row_an_image(image_size: tuple[int, int], in_chans: int, head: str) -> None:
    network = SimpleCNN(num_classes=5, in_chans=in_chans, image_size=image_size, widths=[4, 6], head=head)
    logits = network(torch.rand(3, in_chans, *image_size))
    assert logits.shape == (3, 5)
    assert logits.dtype == torch.float32


@pytest.mark.parametrize(
    ("image_size", "widths", "enough"), [((3, 8), [4, 4], 4), ((8, 3), [4, 4], 4), ((31, 31), [4] * 5, 32)]
)
def test_too_small_images_are_refused(image_size: tuple[int, int], widths: Sequence[int], enough: int) -> None:
    with pytest.raises(UserError, match=rf"data\.image_size=\[{image_size[0]}, .*use data\.image_size={enough} "):
        SimpleCNN(num_classes=5, image_size=image_size, widths=widths)
    SimpleCNN(num_classes=5, image_size=(enough, enough), widths=widths)


@pytest.mark.parametrize(("key", "value"), [("head", "max"), ("pretrained", True)])
def test_wrong_arguments_name_the_override(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"model.{key}="):
        SimpleCNN(num_classes=5, **{key: value})
