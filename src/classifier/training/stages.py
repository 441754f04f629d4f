"""The parameters of a network by depth: its stages from the input on, and its head."""

from typing import Any

from timm.models import group_parameters
from torch import nn

from classifier.errors import UserError

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
