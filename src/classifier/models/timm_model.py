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

MOST_STRAY = 0.1  # share of the layers that may be missing in a file of weights, or be there in vain


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
        reason = _reason(error)
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
    """The network with the weights of a file, and an account of them; those of another network are refused.

    (timm takes a file of which nothing fits, or half of it, without a word.)
    """
    state = torch.get_rng_state()
    plain: nn.Module = timm.create_model(name, pretrained=False, **options)
    torch.set_rng_state(state)
    network: nn.Module = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": weights}, **options)
    before, after = _matrices(plain.state_dict()), _matrices(network.state_dict())
    stored = {} if weights.endswith(".npz") else _matrices(timm.models.load_state_dict(weights))
    # what is as it began was not loaded, unless the file has it so
    new = [key for key in after if torch.equal(before[key], after[key]) and not _same(stored.get(key), after[key])]
    if set(after) - set(new) - set(stored):  # timm has renamed them, and their names tell nothing
        stored = {}
    config: dict[str, Any] = network.pretrained_cfg  # type: ignore[assignment]
    ends = tuple(f"{layer}." for key in ("first_conv", "classifier") for layer in _names(config.get(key)))
    missing = [key for key in new if not key.startswith(ends)]
    unused = [key for key in stored if key not in after and not key.startswith(ends)]
    if max(len(missing), len(unused)) > MOST_STRAY * len(after):
        raise UserError(
            f"model.weights={weights} is of another network than model.name={name}: {len(after) - len(new)} of the "
            f"network's {len(after)} layers matched, and {len(unused)} of the file's are not used"
        )
    log.info("%s: %d of %d layers matched%s", weights, len(after) - len(new), len(after), _listed("; new: ", new))
    if unused:
        log.warning("%s: %d layers are not used%s", weights, len(unused), _listed(": ", unused))
    return network


def _matrices(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in state.items() if value.dim() > 1}


def _same(one: torch.Tensor | None, other: torch.Tensor) -> bool:
    return one is not None and one.shape == other.shape and torch.equal(one.to(other.dtype), other)


def _names(layers: str | Sequence[str] | None) -> Sequence[str]:
    return (layers,) if isinstance(layers, str) else layers or ()


def _listed(what: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{what}{', '.join(name.removesuffix('.weight') for name in names[:5])}{more}" if names else ""


def _reason(error: Exception) -> str:
    """The first line, with the second where that is behind a colon: torch heads its lists of mismatches so."""
    lines = [line.strip() for line in (str(error) or type(error).__name__).splitlines()]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
