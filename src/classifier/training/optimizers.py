"""The optimiser of a config, and the groups of parameters that it trains at one rate and with one weight decay."""

import math
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from typing import Any

import timm.optim
from torch import nn
from torch.optim import Optimizer

from classifier.errors import UserError, require_choice, require_number
from classifier.instantiate import build
from classifier.training.finetune import head_parameters, stages_of


def build_optimizer(
    config: Mapping[str, Any], network: nn.Module, backbone_lr: float = 1.0, layer_decay: float | None = None
) -> Optimizer:
    """Build `_target_` with its arguments over the `parameter_groups` of a network.

    Raises:
        UserError: No such optimiser, it does not take one of the arguments, or there is no rate to take a share of.
    """
    lr = config.get("lr")
    if "lr" in config:
        require_number("optimizer.lr", lr, least=0)
    elif backbone_lr != 1.0 or layer_decay is not None:
        raise UserError("finetune.backbone_lr and finetune.layer_decay need a learning rate: optimizer.lr")
    decays = config.get("weight_decay") != 0  # without the key, the optimiser's own default counts
    groups = parameter_groups(network, lr=lr, weight_decay=decays, backbone_lr=backbone_lr, layer_decay=layer_decay)
    optimizer: Optimizer = build(config, "optimizer", groups)
    return optimizer


def timm_optimizer(
    groups: Any, *, name: str, lr: float, weight_decay: float, momentum: float, betas: Any, eps: Any, arguments: Any
) -> Optimizer:
    """Create an optimiser of timm.

    Args:
        groups: Of parameters.
        name: As in `timm.optim.list_optimizers()`, with `lookahead_` before it to wrap it.
        momentum, betas, eps: For those that have them; None for the optimiser's own.
        arguments: Others, of this optimiser alone, as a dict; or None.

    Raises:
        UserError: No such optimiser, or one that cannot be used here.
    """
    require_choice("optimizer.name", name.lower().removeprefix("lookahead_"), timm.optim.list_optimizers())  # type: ignore[arg-type]
    given = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "betas": betas, "eps": eps}
    given = {key: value for key, value in given.items() if value is not None}
    try:
        return timm.optim.create_optimizer_v2(list(groups), opt=name, **given, **(arguments or {}))
    except (ImportError, AssertionError) as error:  # so Apex and bitsandbytes report what they lack
        raise UserError(f"optimizer.name={name} cannot be used here ({error}): use another") from error


def parameter_groups(
    network: nn.Module, *, lr: float | None, weight_decay: bool, backbone_lr: float, layer_decay: float | None
) -> list[dict[str, Any]]:
    """Groups for an optimiser: head and backbone, or layer by layer; norms and biases apart, without weight decay.

    All parameters are in them, frozen ones too; those with the highest rate come first.

    Args:
        lr: The optimiser's learning rate; None for its default.
        weight_decay: Whether the optimiser may have any.
        backbone_lr: Learning rate of all but the head, as a multiple of `lr`.
        layer_decay: Factor on the rate from each layer to the one below it; None for equal rates.

    Raises:
        UserError: The network has no head.

    Source of the decay by layer: H. Bao et al., BEiT, arXiv:2106.08254; the layers are timm's.
    """
    # name of a parameter -> name of its group, and its share of the learning rate
    rates = {name: ("network", 1.0) for name, _ in network.named_parameters()}
    if backbone_lr != 1.0 or layer_decay is not None:
        rates = dict.fromkeys(rates, ("backbone", backbone_lr)) | dict.fromkeys(head_parameters(network), ("head", 1.0))
    layers = stages_of(network, coarse=False) if layer_decay is not None else []
    for number, layer in enumerate(layers):
        share = backbone_lr * (layer_decay or 0.0) ** (len(layers) - number)
        rates |= dict.fromkeys(layer, (f"layer_{number:02d}", share))
    undecayed: Iterable[str] = network.no_weight_decay() if hasattr(network, "no_weight_decay") else ()  # type: ignore[operator]
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        group, share = rates[name]
        settings: dict[str, Any] = {"params": [], "name": group}
        if lr is not None and share != 1.0:
            settings["lr"] = lr * share
        still = parameter.ndim <= 1 or name.endswith(".bias") or any(fnmatch(name, pattern) for pattern in undecayed)
        if weight_decay and still:
            settings |= {"name": f"{group}_no_decay", "weight_decay": 0.0}
        groups.setdefault(settings["name"], settings)["params"].append(parameter)
    ordered = sorted(groups.values(), key=lambda group: (-group.get("lr", math.inf), group["name"]))
    if len(ordered) == 1:
        del ordered[0]["name"]  # its curve is then named by the optimiser
    return ordered
