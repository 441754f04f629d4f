"""Any network of timm, by name.

Source: R. Wightman, PyTorch Image Models, https://github.com/huggingface/pytorch-image-models
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from classifier.errors import UserError, did_you_mean


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
        logging.getLogger(library).setLevel(logging.ERROR)  # each retry, twice; the refusal below says it once
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        hint = did_you_mean(architecture, timm.list_models())
        raise UserError(f"model.name={name} is no network of timm: {hint}")
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
        config = timm.get_pretrained_cfg(name)
        if config is not None and config.fixed_input_size:
            options["img_size"] = tuple(image_size)
        network: nn.Module
        if weights is not None:
            network = _with_weights(name, weights, options)
        else:
            network = timm.create_model(name, pretrained=pretrained, checkpoint_path=checkpoint_path, **options)
        if pretrained and config is not None and config.num_classes != num_classes:
            _make_small(network.get_classifier())  # type: ignore[operator]
        return network
    except UserError:
        raise
    except Exception as error:  # of many kinds, as the file, the arguments or the hub may be at fault
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if weights or checkpoint_path:
            file = f"model.weights={weights}" if weights else f"model.checkpoint_path={checkpoint_path}"
            advice = f"see whether {file} holds weights for this network and number of classes"
        elif isinstance(error, TypeError):
            advice = "set the argument it does not take to null"
        elif pretrained:
            advice = (
                "use model.weights=FILE for a local copy of its weights, or model.pretrained=false to start without"
            )
        else:
            advice = "use another data.image_size or model.name"
        raise UserError(f"cannot build model.name={name} ({reason}): {advice}") from error


def _make_small(head: nn.Module) -> None:
    """Start a new head near zero, so that its first gradients do not throw the pretrained features about.

    (Some of timm's networks draw it with a deviation of 0.2, for few classes.)
    """
    if isinstance(head, (nn.Linear, nn.Conv2d)):
        nn.init.normal_(head.weight, std=0.01)
        if head.bias is not None:
            nn.init.zeros_(head.bias)


def _with_weights(name: str, weights: str, options: dict[str, Any]) -> nn.Module:
    # timm takes a file of which nothing fits without a word: compare with the same network before loading
    state = torch.get_rng_state()
    plain: nn.Module = timm.create_model(name, pretrained=False, **options)
    torch.set_rng_state(state)
    network: nn.Module = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": weights}, **options)
    if all(torch.equal(a, b) for a, b in zip(plain.parameters(), network.parameters(), strict=True)):
        raise UserError(f"model.weights={weights} holds nothing that fits model.name={name}")
    return network
