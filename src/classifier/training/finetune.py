"""What of a network is trained, and when: its head, and the stages below."""

import logging
from contextlib import suppress
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from timm.models import group_parameters
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from classifier.errors import UserError, require_number, require_whole

log = logging.getLogger(__name__)


class FineTuning:
    """Trains the head from the start, and the stages below it from a certain epoch on.

    A frozen stage is in evaluation mode: neither its parameters nor the statistics of its BatchNorms move, and its
    dropout is off. What is frozen depends on the epoch alone, so a resumed run needs no memory of it. The optimiser
    holds all parameters from the start; it skips those without a gradient.

    Args:
        network: Parameters that do not require a gradient stay so.
        stages: How many, from the head down, are trained in the end; None for all.
        head_epochs: In which the head alone is trained.
        stage_epochs: After those, one more stage each so many epochs; 0 for all at once.
        backbone_lr, layer_decay: Of `parameter_groups`.

    Raises:
        UserError: A value is out of range, or the network has no head.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        stages: int | None = None,
        head_epochs: int = 0,
        stage_epochs: int = 0,
        backbone_lr: float = 1.0,
        layer_decay: float | None = None,
    ) -> None:
        for key, epochs in (("head_epochs", head_epochs), ("stage_epochs", stage_epochs)):
            require_whole(f"finetune.{key}", epochs, 0)
        # above 1, the first layers would learn faster than the head
        require_number("finetune.backbone_lr", backbone_lr, above=0, most=1)
        require_number("finetune.layer_decay", 1.0 if layer_decay is None else layer_decay, above=0, most=1)
        self.rates: dict[str, Any] = {"backbone_lr": backbone_lr, "layer_decay": layer_decay}
        self.network = network
        self.head_epochs, self.stage_epochs = head_epochs, stage_epochs
        self.freezes = stages is not None or head_epochs > 0 or stage_epochs > 0
        self.stages = _with_buffers(network, stages_of(network)) if self.freezes else []
        self.most = len(self.stages) if stages is None else stages
        require_whole("finetune.stages", self.most, 0, len(self.stages))
        self.fixed = {name for name, value in network.named_parameters() if not value.requires_grad}
        self.frozen: set[str] = set()  # names of parameters and buffers
        self.logged: set[str] = set()  # what was frozen at the last line in the log

    def trained(self, epoch: int) -> int:
        """How many stages are trained in an epoch (from 0)."""
        if epoch < self.head_epochs:
            return 0
        return min(self.most, 1 + (epoch - self.head_epochs) // self.stage_epochs) if self.stage_epochs else self.most

    def stay(self, stages: int) -> None:
        """Train so many stages in every epoch."""
        self.most, self.head_epochs, self.stage_epochs = stages, 0, 0

    def prepare(self, trainer: pl.Trainer) -> None:
        """Freeze what the first epoch does not train, before the strategy wraps the model.

        Raises:
            UserError: The strategy cannot freeze.
        """
        if self.freezes and not isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
            raise UserError("divided parameters cannot be frozen: use finetune=full, or trainer.strategy=ddp")
        self.freeze(trainer.current_epoch)

    def begin_epoch(self, trainer: pl.Trainer) -> None:
        """Freeze what the Trainer's epoch does not train, release the rest, and log a change."""
        strategy, epoch = trainer.strategy, trainer.current_epoch
        if self.freeze(epoch) and isinstance(strategy.model, DistributedDataParallel):
            assert isinstance(strategy, DDPStrategy)
            # wrap it again: DDP never sums gradients of what was frozen when it wrapped the module
            strategy.model = strategy.lightning_module
            strategy.configure_ddp()
        if self.frozen != self.logged:
            self.logged, number = self.frozen, self.trained(epoch)
            what = f"the head and {number} of {len(self.stages)} stages" if number else "the head alone"
            count = sum(value.numel() for value in self.network.parameters() if value.requires_grad)
            log.info("epoch %d: training %s (parameters: %s)", epoch + 1, what, f"{count:,}")

    def freeze(self, epoch: int) -> bool:
        """Freeze what is not trained in this epoch and release the rest; return whether that was a change."""
        below = len(self.stages) - self.trained(epoch)
        frozen = {name for names in self.stages[:below] for name in names}
        if frozen == self.frozen:
            return False
        self.frozen = frozen
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(name not in frozen and name not in self.fixed)
            parameter.grad = None
        self.network.train()
        self.hold()
        return True

    def hold(self) -> None:
        """Put modules of which all is frozen into evaluation mode."""
        for prefix, module in self.network.named_modules() if self.frozen else ():
            names = {name for name, _ in [*module.named_parameters(prefix), *module.named_buffers(prefix)]}
            if names and names <= self.frozen:
                module.eval()


def _with_buffers(network: nn.Module, stages: list[list[str]]) -> list[list[str]]:
    """Stages with their buffers. One of a module without parameters belongs to the parameters before it."""
    stage_of = {name: names for names in stages for name in names}
    current: list[str] | None = None  # None: the head
    for prefix, module in network.named_modules():
        for name, _ in module.named_parameters(prefix, recurse=False):
            current = stage_of.get(name)
        if current is not None:
            current += [name for name, _ in module.named_buffers(prefix, recurse=False)]
    return stages


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
        names = ("head", "fc", "classifier", "heads")  # of torchvision and of this project
        heads = [children[name] for name in names if name in children][:1] or list(children.values())[-1:]
    of_heads = {id(parameter) for head in heads for parameter in head.parameters()}
    if not of_heads:
        raise UserError(f"{type(network).__name__} has no head: use finetune=full, or call its last layer `head`")
    return {name for name, parameter in network.named_parameters() if id(parameter) in of_heads}


def stages_of(network: nn.Module, coarse: bool = True) -> list[list[str]]:
    """Names of the parameters below the head, in groups from the input on.

    The groups are those of the network's `group_matcher`, as timm's networks have it. Other networks are divided into
    their children, and an nn.Sequential or nn.ModuleList among these into its own.

    Args:
        coarse: By stage (ResNet: stem and four) instead of by block, where timm knows the difference.
    """
    head = head_parameters(network)
    ordinals: dict[str, int] = {}
    if hasattr(network, "group_matcher"):
        with suppress(AssertionError):  # RDNet has blocks, but no stages
            matcher = network.group_matcher(coarse=coarse)  # type: ignore[operator]
            ordinals = group_parameters(network, matcher, reverse=True)
    if ordinals:
        # what timm leaves unmatched lies between the last stage and the head, and belongs to that stage
        top = max(ordinals.values())
        last = max((ordinal for ordinal in ordinals.values() if ordinal < top), default=top)
        stage_of = {name: min(ordinal, last) for name, ordinal in ordinals.items()}
    else:
        prefixes = []
        for name, child in network.named_children():
            inner = child.named_children() if isinstance(child, (nn.Sequential, nn.ModuleList)) else ()
            prefixes += [*(f"{name}.{number}." for number, _ in inner), f"{name}."]
        tops = {name.partition(".")[0] for name in head}
        prefixes = [prefix for prefix in prefixes if prefix.partition(".")[0] not in tops]
        stage, stage_of = 0, {}
        for name, _ in network.named_parameters():
            # parameters outside of any child, or beside the head, belong to the stage before them
            stage = next((number for number, prefix in enumerate(prefixes) if name.startswith(prefix)), stage)
            stage_of[name] = stage
    groups: dict[int, list[str]] = {}
    for name, stage in stage_of.items():
        if name not in head:
            groups.setdefault(stage, []).append(name)
    return [groups[stage] for stage in sorted(groups)]
