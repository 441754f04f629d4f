"""Build a network from a config, and the normalisation of its input."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from hydra.utils import get_object
from torch import nn

from classifier.errors import UserError, as_typed
from classifier.instantiate import build
from classifier.untrusted import known_targets, require_plain

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Normalize(nn.Module):
    """uint8 (B, C, H, W) in 0..255 -> float (B, C, H, W), (x / 255 - mean) / std for each channel.

    Args:
        mean, std: One number a channel, of pixels in 0..1.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        # folded into one multiply-add
        self.register_buffer("scale", 1 / (255 * torch.tensor(std)).view(1, -1, 1, 1))
        self.register_buffer("shift", -(torch.tensor(mean) / torch.tensor(std)).view(1, -1, 1, 1))
        self.scale: torch.Tensor
        self.shift: torch.Tensor

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.to(self.scale.dtype) * self.scale + self.shift


LOADING = {"pretrained": False, "weights": None, "checkpoint_path": None}  # the values that load nothing

_registered: set[str] = set()


def without_weights(model: Mapping[str, Any]) -> dict[str, Any]:
    """A network's config that loads nothing: a checkpoint brings its own weights, and opening one needs no hub."""
    return {**model, **{key: value for key, value in LOADING.items() if key in model}}


def register_network(target: str) -> None:
    """Let checkpoints name a network of your own.

    Args:
        target: What `model._target_` names, such as `my_project.Net`.
    """
    _registered.add(target)


def build_model(
    config: Mapping[str, Any], *, num_classes: int, in_chans: int, image_size: Sequence[int], trusted: bool = True
) -> tuple[Normalize, nn.Module]:
    """Build a network and the normalisation that belongs before it.

    Args:
        config: `_target_` and arguments of a network; `mean` and `std` (one number a channel, or null for those the
            weights were trained with, ImageNet's where there are none).
        num_classes, in_chans, image_size: Of the data; the network's last and first layers are made for them.
        trusted: Whether the user wrote the config. One from a checkpoint may only name a known network and give it
            plain values, and loads no weights.

    Raises:
        UserError: The network does not exist, does not take the arguments, or is refused.
    """
    settings = dict(config)
    if not trusted:
        _require_known(settings)
        # by name: what a config leaves out could be true by default
        parameters = inspect.signature(get_object(settings["_target_"])).parameters
        settings = without_weights({**dict.fromkeys(LOADING.keys() & parameters.keys()), **settings})
    mean, std = settings.pop("mean", None), settings.pop("std", None)
    made_for: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_chans, "image_size": list(image_size)}
    network: nn.Module = build(settings, "model", **made_for)
    published = getattr(network, "pretrained_cfg", {})
    mean = _per_channel(mean or published.get("mean", IMAGENET_MEAN), in_chans, "mean")
    std = _per_channel(std or published.get("std", IMAGENET_STD), in_chans, "std")
    return Normalize(mean, std), network


def _require_known(config: Mapping[str, Any]) -> None:
    """Refuse a config that could call anything but a known network with plain values.

    `torch.nn.functional.torch.utils.collect_env.run`, for one, runs commands.
    """
    target = config.get("_target_")
    if str(target) not in known_targets("model") | _registered:
        raise UserError(
            f"model._target_={target} is not built from a checkpoint: for your own network, write a configs/model/NAME."
            f'yaml with that _target_, or call classifier.models.register_network("{target}") first'
        )
    require_plain({key: value for key, value in config.items() if key != "_target_"}, "model", most=10_000)


def _per_channel(values: Any, channels: int, key: str) -> list[float]:
    numbers = list(values) if isinstance(values, (list, tuple)) else []
    fits = all(isinstance(number, (int, float)) and (key == "mean" or number > 0) for number in numbers)
    if not fits or len(numbers) not in ((1, 3) if channels == 1 else (channels,)):
        raise UserError(f"model.{key}={as_typed(values)} must be {channels} numbers, one a channel; of std above 0")
    return numbers if len(numbers) == channels else [sum(numbers) / 3]


@torch.no_grad()
def require_image_size(
    network: nn.Module, in_chans: int, image_size: Sequence[int], advice: str = "use another data.image_size"
) -> None:
    """Try the network on one empty image.

    Args:
        advice: End of the message.

    Raises:
        UserError: It does not take this size.
    """
    training = {module: module.training for module in network.modules()}
    parameter = next(network.parameters())
    image = torch.zeros(1, in_chans, *image_size, device=parameter.device, dtype=parameter.dtype)
    try:
        network.eval()(image)
    except (RuntimeError, AssertionError, ValueError) as error:
        refused = f"{type(network).__name__} does not take images of {image_size[0]}x{image_size[1]} pixels"
        raise UserError(f"{refused} ({(str(error) or type(error).__name__).splitlines()[0]}): {advice}") from error
    finally:
        for module, mode in training.items():
            module.training = mode
