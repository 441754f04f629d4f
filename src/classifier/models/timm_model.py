"""Any network of timm, by name.

Source: R. Wightman, PyTorch Image Models, https://github.com/huggingface/pytorch-image-models
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from classifier.errors import UserError, did_you_mean

log = logging.getLogger(__name__)

MOST_STRAY = 0.1  # the share of layers that a file of weights may lack, or hold without use


def timm_model(
    name: str,
    *,
    num_classes: int,
    in_chans: int = 3,
    image_size: Sequence[int] = (224, 224),
    pretrained: bool = True,
    weights: str | None = None,
    checkpoint_path: str | None = None,
    drop_rate: float = 0.0,
    drop_path_rate: float | None = None,
) -> nn.Module:
    """Create a timm network with a new head.

    Args:
        name: As in `timm.list_models()`, with an optional tag of the weights: `resnet50.a1_in1k`.
        num_classes: Width of the new head.
        in_chans: Channels of the input; pretrained first layers are adapted.
        image_size: Height and width in pixels, passed on to networks that are built for one size (ViT, Swin, ...).
        pretrained: Load the published weights, from the hub or from `weights`.
        weights: A local file with the published weights (.safetensors, .pth), for machines without a hub.
        checkpoint_path: A local file with weights for this very network and `num_classes`, loaded as they are.
        drop_rate: Dropout before the head.
        drop_path_rate: Stochastic depth, for networks that have it; None for the network's default.

    Raises:
        UserError: No such network, a missing file, a rate out of its range, or a hub that cannot be reached.
    """
    for library in ("huggingface_hub", "httpx", "timm"):
        logging.getLogger(library).setLevel(logging.ERROR)  # they log each retry; the error below says it once
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise UserError(f"model.name={name} is no network of timm: {did_you_mean(architecture, timm.list_models())}")
    if tag and name not in (published := timm.list_pretrained(f"{architecture}.*")):
        raise UserError(f"model.name={name}: timm has no such weights: {did_you_mean(name, published)}")
    for key, path in (("weights", weights), ("checkpoint_path", checkpoint_path)):
        if path is not None and not Path(path).is_file():
            raise UserError(f"model.{key}={path} does not exist")
    if weights is not None and not pretrained:
        raise UserError(f"model.weights={weights} is loaded with model.pretrained=true only")
    for key, rate in (("drop_rate", drop_rate), ("drop_path_rate", drop_path_rate)):
        if rate is not None and not (isinstance(rate, (int, float)) and 0 <= rate < 1):
            raise UserError(f"model.{key}={rate} must be a number from 0 to below 1")
    options: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_chans, "drop_rate": drop_rate}
    if drop_path_rate is not None:
        options["drop_path_rate"] = drop_path_rate
    try:
        published_as = timm.get_pretrained_cfg(name)
        if published_as is not None and published_as.fixed_input_size:
            options["img_size"] = tuple(image_size)
        network: nn.Module
        if weights is not None:
            network = _with_weights(name, weights, options)
        else:
            network = timm.create_model(name, pretrained=pretrained, checkpoint_path=checkpoint_path, **options)
    except UserError:
        raise
    except Exception as error:  # of many kinds, as the file, the arguments or the hub may be at fault
        lines = [line.strip() for line in (str(error) or type(error).__name__).splitlines()]
        reason = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]  # torch lists mismatches below a heading
        if weights or checkpoint_path:
            advice = f"{weights or checkpoint_path} may hold weights of another network or number of classes"
        elif isinstance(error, TypeError):
            advice = "set the argument it does not take to null"
        elif pretrained:
            advice = "use model.weights=FILE for a local copy of its weights, or model.pretrained=false"
        else:
            advice = "use another data.image_size or model.name"
        raise UserError(f"cannot build model.name={name} ({reason}): {advice}") from error
    if pretrained and published_as is not None and published_as.num_classes != num_classes:
        _make_small(network.get_classifier())  # type: ignore[operator]
    return network


def _make_small(head: nn.Module) -> None:
    """Start a new head near zero, so that its first gradients do not spoil the pretrained features.

    (Some of timm's networks draw it with a deviation of 0.2, for few classes.)
    """
    if isinstance(head, (nn.Linear, nn.Conv2d)):
        nn.init.normal_(head.weight, std=0.01)
        if head.bias is not None:
            nn.init.zeros_(head.bias)


def _with_weights(name: str, weights: str, options: dict[str, Any]) -> nn.Module:
    """The network with the weights of a file. How much of it matched is logged, and another network's file is refused.

    (timm loads a file of which half or nothing fits without an error.)
    """
    state = torch.get_rng_state()
    before = _matrices(timm.create_model(name, pretrained=False, **options).state_dict())
    torch.set_rng_state(state)
    network: nn.Module = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": weights}, **options)
    after = _matrices(network.state_dict())
    new = [key for key, value in after.items() if torch.equal(before[key], value)]  # as it was drawn: not loaded
    stored = [] if weights.endswith(".npz") else list(_matrices(timm.models.load_state_dict(weights)))
    if set(after) - set(new) - set(stored):
        stored = []  # timm has renamed them, and their names say nothing about the network
    config: dict[str, Any] = network.pretrained_cfg  # type: ignore[assignment]
    layers = [config.get("first_conv"), config.get("classifier")]  # these depend on the data
    ends = tuple(f"{name}." for layer in layers for name in ([layer] if isinstance(layer, str) else layer or ()))
    missing = [key for key in new if not key.startswith(ends)]
    unused = [key for key in stored if key not in after and not key.startswith(ends)]
    matched = f"{len(after) - len(new)} of {len(after)} layers matched"
    if max(len(missing), len(unused)) > MOST_STRAY * len(after):
        raise UserError(
            f"model.weights={weights} is of another network than model.name={name}: {matched}, and {len(unused)} of "
            "the file's are not used"
        )
    log.info("%s: %s; new: %s", weights, matched, ", ".join(key.removesuffix(".weight") for key in new) or "none")
    if unused:
        log.warning("%s: %d layers are not used: %s", weights, len(unused), ", ".join(unused[:5]))
    return network


def _matrices(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in state.items() if value.dim() > 1}
