"""The parameters of a network as an optimiser takes them: in groups of one learning rate and one weight decay."""

from collections.abc import Iterable
from fnmatch import fnmatch
from typing import Any

from timm.models import group_parameters
from torch import nn

from classifier.errors import UserError, require_number

HEADS = ("head", "fc", "classifier", "heads")  # what networks that are not of timm call their last layers
ENOUGH = 4  # stages: with fewer, the largest is divided


def head_parameters(network: nn.Module) -> set[str]:
    """Names of what is new for each task: timm's classifier, or else the child of that name, or the last child.

    Raises:
        UserError: The network has no such part.
    """
    if hasattr(network, "get_classifier"):
        classifier = network.get_classifier()  # type: ignore[operator]
        heads = [classifier] if isinstance(classifier, nn.Module) else list(classifier)
    else:
        children = {name: child for name, child in network.named_children() if any(True for _ in child.parameters())}
        name = next((name for name in HEADS if name in children), next(reversed(children), None))
        heads = [] if name is None else [children[name]]
    of_heads = {id(parameter) for head in heads for parameter in head.parameters()}
    if not of_heads:
        raise UserError(
            f"{type(network).__name__} has no head that can be told from the rest: use finetune=full, "
            "or call its last layer `head`"
        )
    return {name for name, parameter in network.named_parameters() if id(parameter) in of_heads}


def stages(network: nn.Module, coarse: bool = True) -> list[list[str]]:
    """Names of the parameters below the head, in groups from the input on.

    What lies between the last stage and the head (a norm, a convolution) belongs to that stage.

    Args:
        coarse: By stage (ResNet: stem and four) instead of by block, where timm knows the difference.
    """
    head = head_parameters(network)
    matcher = _matcher(network, coarse)
    if matcher is None:
        return _by_name({name: value.ndim for name, value in network.named_parameters() if name not in head})
    ordinals: dict[str, int] = group_parameters(network, matcher, reverse=True)
    top = max(ordinals.values())  # what timm leaves unmatched
    last = max((ordinal for name, ordinal in ordinals.items() if ordinal < top), default=top)
    groups: dict[int, list[str]] = {}
    for name, ordinal in ordinals.items():
        if name not in head:
            groups.setdefault(min(ordinal, last), []).append(name)
    return [groups[ordinal] for ordinal in sorted(groups)]


def _matcher(network: nn.Module, coarse: bool) -> Any:
    """timm's rule for the groups of a network, None where it has none."""
    if not hasattr(network, "group_matcher"):
        return None
    try:
        return network.group_matcher(coarse=coarse)  # type: ignore[operator]
    except AssertionError:  # so rdnet says that it has no coarse groups
        return None


def _by_name(dimensions: dict[str, int]) -> list[list[str]]:
    """Groups of parameters by the modules that their names tell of, the largest divided while there are few.

    A group begins with each module that has a matrix: norms and single parameters join what is before them.
    """
    pieces = list(dict.fromkeys(name.partition(".")[0] for name in dimensions))

    def below(piece: str) -> list[str]:
        return [name for name in dimensions if name == piece or name.startswith(f"{piece}.")]

    def begins(piece: str) -> bool:
        return piece not in dimensions and any(dimensions[name] > 1 for name in below(piece))

    def parts(piece: str) -> list[str]:
        deeper = [name[len(piece) + 1 :].partition(".")[0] for name in below(piece)]
        return [f"{piece}.{part}" for part in dict.fromkeys(deeper)]

    def divisible(piece: str) -> bool:
        return piece not in dimensions and any(begins(part) for part in parts(piece))

    while sum(map(begins, pieces)) < ENOUGH and any(map(divisible, pieces)):
        largest = max((piece for piece in pieces if divisible(piece)), key=lambda piece: len(below(piece)))
        place = pieces.index(largest)
        pieces[place : place + 1] = parts(largest)
    groups: list[list[str]] = []
    begun = True
    for piece in pieces:
        if not groups or (begins(piece) and begun):
            groups.append([])
            begun = False
        begun = begun or begins(piece)
        groups[-1] += below(piece)
    return groups


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
