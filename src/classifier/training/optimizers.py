"""Build an optimiser from a config: any of torch, of timm, or of another package."""

import inspect
import pydoc
from collections.abc import Mapping, Sequence
from typing import Any

import timm.optim
from torch.optim import Optimizer

from classifier.errors import UserError, did_you_mean, require_number
from classifier.instantiate import build


def build_optimizer(config: Mapping[str, Any], groups: Sequence[dict[str, Any]]) -> Optimizer:
    """Build `_target_` with its arguments over groups of parameters.

    Raises:
        UserError: No such optimiser, or it does not take one of the arguments.
    """
    if "lr" in config:
        require_number("optimizer.lr", config["lr"], least=0)
    optimizer: Optimizer = build(config, "optimizer", list(groups))
    return optimizer


def has_weight_decay(config: Mapping[str, Any]) -> bool:
    """Whether an optimiser decays weights, if only by its own default."""
    if "weight_decay" in config:
        return bool(config["weight_decay"])
    target = pydoc.locate(str(config.get("_target_")))
    parameter = inspect.signature(target).parameters.get("weight_decay") if callable(target) else None
    return parameter is not None and bool(parameter.default)


def timm_optimizer(
    groups: Sequence[dict[str, Any]],
    *,
    name: str,
    lr: float,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    betas: Sequence[float] | None = None,
    eps: float | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Optimizer:
    """Create an optimiser of timm.

    Args:
        groups: Of parameters.
        name: As in `timm.optim.list_optimizers()`, with `lookahead_` before it to wrap it.
        momentum, betas, eps: For those that have them; None for the optimiser's own.
        arguments: Others, of this optimiser alone.

    Raises:
        UserError: No such optimiser, or one that cannot run here.
    """
    known = timm.optim.list_optimizers()
    base = name.lower().removeprefix("lookahead_")
    if base not in known:
        raise UserError(f"optimizer.name={name} is no optimiser of timm: {did_you_mean(base, known)}")  # type: ignore[arg-type]
    if timm.optim.get_optimizer_info(base).second_order:
        raise UserError(f"optimizer.name={name} needs second derivatives, which training does not compute: use another")
    options: dict[str, Any] = {key: value for key, value in (("betas", betas), ("eps", eps)) if value is not None}
    try:
        return timm.optim.create_optimizer_v2(
            list(groups), opt=name, lr=lr, weight_decay=weight_decay, momentum=momentum, **options, **(arguments or {})
        )
    except (ImportError, AssertionError) as error:  # so Apex and bitsandbytes report what they lack
        raise UserError(f"optimizer.name={name} cannot be used here ({error}): use another") from error
