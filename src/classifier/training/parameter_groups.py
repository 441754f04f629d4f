"""The parameters of a network: head, stages, and the groups of one learning rate and one weight decay."""

from collections.abc import Iterable
from fnmatch import fnmatch
from typing import Any

from timm.models import group_parameters
from torch import nn

from classifier.errors import UserError

HEADS = ("head", "fc", "classifier", "heads")  # names of the last layers outside of timm


def head_parameters(network: nn.Module) -> set[str]:
    """Names of the parameters that are new for each task: timm's classifier, or the child named as one, or the last.

    Raises:
        UserError: The network has no such part.
    """
    if hasattr(network, "get_classifier"):
        classifier = network.get_classifier()  # type: ignore[operator]
        heads = [classifier] if isinstance(classifier, nn.Module) else list(classifier)
    else:
        children = {name: child for name, child in network.named_children() if any(True for _ in child.parameters())}
        heads = [children[name] for name in HEADS if name in children][:1] or list(children.values())[-1:]
    of_heads = {id(parameter) for head in heads for parameter in head.parameters()}
    if not of_heads:
        raise UserError(f"{type(network).__name__} has no head: use finetune=full, or call its last layer `head`")
    return {name for name, parameter in network.named_parameters() if id(parameter) in of_heads}


def stages(network: nn.Module, coarse: bool = True) -> list[list[str]]:
    """Names of the parameters below the head, in groups from the input on.

    The groups are those of the network's `group_matcher`, as timm's networks have it. Other networks are divided into
    their children, and an nn.Sequential or nn.ModuleList among these into its own.

    Args:
        coarse: By stage (ResNet: stem and four) instead of by block, where timm knows the difference.
    """
    head = head_parameters(network)
    if hasattr(network, "group_matcher"):
        try:
            matcher = network.group_matcher(coarse=coarse)  # type: ignore[operator]
        except AssertionError:  # rdnet has no coarse groups
            matcher = network.group_matcher(coarse=False)  # type: ignore[operator]
        ordinals: dict[str, int] = group_parameters(network, matcher, reverse=True)
        # what timm leaves unmatched lies between the last stage and the head, and belongs to that stage
        top = max(ordinals.values())
        last = max((ordinal for ordinal in ordinals.values() if ordinal < top), default=top)
        stage_of = {name: min(ordinal, last) for name, ordinal in ordinals.items()}
    else:
        tops = {name.partition(".")[0] for name in head}
        children = [prefix for prefix in _children(network) if prefix.partition(".")[0] not in tops]
        stage, stage_of = 0, {}
        for name, _ in network.named_parameters():
            # parameters outside of any child, or beside the head, belong to the stage before them
            stage = next((number for number, prefix in enumerate(children) if name.startswith(prefix)), stage)
            stage_of[name] = stage
    groups: dict[int, list[str]] = {}
    for name, stage in stage_of.items():
        if name not in head:
            groups.setdefault(stage, []).append(name)
    return [groups[stage] for stage in sorted(groups)]


def _children(network: nn.Module) -> Iterable[str]:
    for name, child in network.named_children():
        inner = child.named_children() if isinstance(child, (nn.Sequential, nn.ModuleList)) else ()
        yield from (f"{name}.{number}." for number, _ in inner)
        yield f"{name}."


def parameter_groups(
    network: nn.Module,
    *,
    lr: float | None,
    weight_decay: bool,
    backbone_lr: float = 1.0,
    layer_decay: float | None = None,
) -> list[dict[str, Any]]:
    """Groups for an optimiser: head and backbone, or layer by layer; norms and biases apart, without weight decay.

    All parameters are in them, frozen ones too; those of the head come first.

    Args:
        lr: The optimiser's learning rate; None for its default.
        weight_decay: Whether the optimiser has any.
        backbone_lr: Learning rate of all but the head, as a multiple of `lr`.
        layer_decay: Factor on the rate from each layer to the one below it; None for equal rates.

    Raises:
        UserError: The network has no head, or there is no rate to take a share of.

    Source of the decay by layer: H. Bao et al., BEiT, arXiv:2106.08254; the layers are timm's.
    """
    if lr is None and (backbone_lr != 1.0 or layer_decay is not None):
        raise UserError("finetune.backbone_lr and finetune.layer_decay need a learning rate: optimizer.lr")
    undecayed: Iterable[str] = network.no_weight_decay() if hasattr(network, "no_weight_decay") else ()  # type: ignore[operator]
    rates = _rates(network, backbone_lr, layer_decay)
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
    ordered = sorted(
        groups.values(), key=lambda group: (group["name"][:4] != "head", -group.get("lr", 0.0), group["name"])
    )
    if len(ordered) == 1:
        del ordered[0]["name"]  # its curve is then named by the optimiser
    return ordered


def _rates(network: nn.Module, backbone_lr: float, layer_decay: float | None) -> dict[str, tuple[str, float]]:
    """Name of a parameter -> name of its group, and its share of the learning rate."""
    names = [name for name, _ in network.named_parameters()]
    if layer_decay is None and backbone_lr == 1.0:
        return dict.fromkeys(names, ("network", 1.0))
    rates = dict.fromkeys(names, ("backbone", backbone_lr)) | dict.fromkeys(head_parameters(network), ("head", 1.0))
    if layer_decay is not None:
        layers = stages(network, coarse=False)
        for number, layer in enumerate(layers):
            share = backbone_lr * layer_decay ** (len(layers) - number)
            rates |= dict.fromkeys(layer, (f"layer_{number:02d}", share))
    return rates
