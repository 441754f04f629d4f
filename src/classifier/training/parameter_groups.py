"""The parameters of a network as an optimiser takes them: in groups of one learning rate and one weight decay."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from typing import Any

from torch import nn

from classifier.errors import UserError, require_number
from classifier.training.stages import head_parameters, stages


class ParameterGroups:
    """Head and backbone, or layer by layer; norms and biases apart, without weight decay.

    What group a parameter is in is settled here and now: strategies such as FSDP rename and flatten parameters later.

    Args:
        network: Whose parameters are meant.
        backbone_lr: Learning rate of all but the head, as a multiple of the optimiser's.
        layer_decay: Factor on the rate from each layer to the one before it; None for equal rates.

    Raises:
        UserError: A value out of range, or a network without a head that can be told from the rest.
    """

    def __init__(self, network: nn.Module, *, backbone_lr: float = 1.0, layer_decay: float | None = None) -> None:
        for key, value in (("backbone_lr", backbone_lr), ("layer_decay", 1.0 if layer_decay is None else layer_decay)):
            # a larger one would train the first layers faster than the head: another meaning is meant
            require_number(f"finetune.{key}", value, most=1)
            if value <= 0:
                raise UserError(f"finetune.{key}={value} must be more than 0: finetune=head trains the head alone")
        self.network = network
        self.rates = _rates(network, backbone_lr, layer_decay)
        self.undecayed = _undecayed(network)

    def build(self, lr: float | None, weight_decay: bool) -> list[dict[str, Any]]:
        """All parameters, frozen ones too, those of the head first.

        Args:
            lr: The optimiser's learning rate; None for its default.
            weight_decay: Whether the optimiser has any.
        """
        groups: dict[str, dict[str, Any]] = {}
        for wrapped_name, parameter in self.network.named_parameters():
            name = wrapped_name.replace("_fsdp_wrapped_module.", "")
            group, rate = self.rates[name]
            undecayed = weight_decay and name in self.undecayed
            settings: dict[str, Any] = {"params": [], "name": f"{group}_no_decay" if undecayed else group}
            if undecayed:
                settings["weight_decay"] = 0.0
            if rate != 1.0:
                if lr is None:
                    raise UserError("finetune.backbone_lr and finetune.layer_decay need a learning rate: optimizer.lr")
                settings["lr"] = lr * rate
            groups.setdefault(settings["name"], settings)["params"].append(parameter)
        ordered = sorted(
            groups.values(), key=lambda group: (group["name"][:4] != "head", -group.get("lr", 0.0), group["name"])
        )
        if len(ordered) == 1:
            del ordered[0]["name"]  # its curve is then named by the optimiser
        return ordered


def require_same_rates(before: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> None:
    """Refuse to resume with other shares of the learning rate: the optimiser goes on in the groups that it has.

    Args:
        before, now: Arguments of `finetune.FineTuning`, in the checkpoint and as given.

    Raises:
        UserError: With what was changed.
    """
    for key, default in (("backbone_lr", 1.0), ("layer_decay", None)):
        old, new = ((settings or {}).get(key, default) for settings in (before, now))
        if old != new:
            raise UserError(
                f"finetune.{key}={new}: the run to go on with has {old}: leave it as it is, or use init_from=..."
            )


def _rates(network: nn.Module, backbone_lr: float, layer_decay: float | None) -> dict[str, tuple[str, float]]:
    """Name of a parameter -> name of its group, and its share of the learning rate.

    Source of the decay by layer: H. Bao et al., BEiT, arXiv:2106.08254; the layers are timm's.
    """
    names = [name for name, _ in network.named_parameters()]
    if layer_decay is None and backbone_lr == 1.0:
        return dict.fromkeys(names, ("network", 1.0))
    rates = dict.fromkeys(head_parameters(network), ("head", 1.0))
    if layer_decay is None:
        return {**dict.fromkeys(names, ("backbone", backbone_lr)), **rates}
    layers = stages(network, coarse=False)
    for number, layer in enumerate(layers):
        rate = backbone_lr * layer_decay ** (len(layers) - number)
        rates |= dict.fromkeys(layer, (f"layer_{number:02d}", rate))
    return rates


def _undecayed(network: nn.Module) -> set[str]:
    """Norms, biases, and what the network itself names."""
    named: Iterable[str] = network.no_weight_decay() if hasattr(network, "no_weight_decay") else ()  # type: ignore[operator]
    return {
        name
        for name, parameter in network.named_parameters()
        if parameter.ndim <= 1 or name.endswith(".bias") or any(fnmatch(name, pattern) for pattern in named)
    }
