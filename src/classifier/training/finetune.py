"""What of a network is trained, and when."""

import logging
from collections.abc import Iterable

import pytorch_lightning as pl
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from classifier.errors import UserError, require_whole
from classifier.training.parameter_groups import ParameterGroups
from classifier.training.parameter_groups import stages as stages_of

log = logging.getLogger(__name__)


class FineTuning:
    """Trains the head from the start, and the stages below it from a certain epoch on.

    A frozen stage is in evaluation mode: neither its parameters nor the statistics of its BatchNorms move, and its
    dropout is off. What is frozen is a function of the epoch alone, so a run that is resumed needs no memory of it.
    The optimiser holds all parameters from the start; it passes over those without a gradient.

    Args:
        network: Whose parameters are meant. Those that it holds fixed itself stay so.
        stages: How many, from the head down, are trained in the end; None for all.
        head_epochs: In which the head alone is trained.
        stage_epochs: After those, one more stage each so many epochs; 0 for all at once.
        backbone_lr, layer_decay: Of `ParameterGroups`.

    Raises:
        UserError: A value out of range, or a network without a head that can be told from the rest.
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
        if stages is not None:
            require_whole("finetune.stages", stages, 0)
        require_whole("finetune.head_epochs", head_epochs, 0)
        require_whole("finetune.stage_epochs", stage_epochs, 0)
        self.network = network
        self.head_epochs, self.stage_epochs = head_epochs, stage_epochs
        self.freezes = stages is not None or head_epochs > 0 or stage_epochs > 0
        self.stages = _stages_with_buffers(network) if self.freezes else []
        if stages is not None and stages > len(self.stages):
            raise UserError(
                f"finetune.stages={stages}: {type(network).__name__} has {len(self.stages)} stages below its head: "
                f"use finetune.stages={len(self.stages)} or fewer, or finetune=full"
            )
        self.most = len(self.stages) if stages is None else stages
        self.fixed = {name for name, value in network.named_parameters() if not value.requires_grad}
        self.groups = ParameterGroups(network, backbone_lr=backbone_lr, layer_decay=layer_decay)
        self.frozen: set[str] = set()  # parameters and buffers
        self.told: set[str] = set()  # of these the log has told

    def trained(self, epoch: int) -> int:
        """How many stages are trained in an epoch (from 0)."""
        if epoch < self.head_epochs:
            return 0
        if self.stage_epochs == 0:
            return self.most
        return min(self.most, 1 + (epoch - self.head_epochs) // self.stage_epochs)

    def stay(self, stages: int) -> None:
        """Train so many stages in every epoch."""
        self.most, self.head_epochs, self.stage_epochs = stages, 0, 0

    def prepare(self, trainer: pl.Trainer) -> None:
        """Freeze what the first epoch does not train, before the strategy takes the model over.

        Raises:
            UserError: The strategy cannot freeze.
        """
        if self.freezes and not isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
            raise UserError(
                f"{type(trainer.strategy).__name__} divides parameters among processes, and cannot freeze some of "
                "them: use finetune=full, or trainer.strategy=ddp"
            )
        self.freeze(trainer.current_epoch)

    def begin_epoch(self, trainer: pl.Trainer) -> None:
        """Freeze and release what the Trainer's epoch asks for, and tell of it."""
        if self.freeze(trainer.current_epoch):
            _wrap_again(trainer.strategy)
        if self.frozen != self.told:
            self.told = self.frozen
            log.info(self.account(trainer.current_epoch))

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
        tensors = {**dict(self.network.named_parameters()), **dict(self.network.named_buffers())}
        holds_frozen = _ancestors(self.frozen)
        holds_trained = _ancestors(name for name in tensors if name not in self.frozen)
        for name, module in self.network.named_modules():
            if name in holds_frozen and name not in holds_trained:
                module.eval()

    def account(self, epoch: int) -> str:
        """What is trained in an epoch, in words."""
        sizes = {name: parameter.numel() for name, parameter in self.network.named_parameters()}
        trained = sum(size for name, size in sizes.items() if name not in self.frozen)
        number = self.trained(epoch)
        what = f"the head and {number} of {len(self.stages)} stages" if number else "the head alone"
        return f"epoch {epoch + 1}: training {what} ({trained:,} of {sum(sizes.values()):,} parameters)"


def _wrap_again(strategy: Strategy) -> None:
    """Let DDP know of a change in what is trained: what was frozen when it wrapped it would never sum."""
    if isinstance(strategy, DDPStrategy) and isinstance(strategy.model, DistributedDataParallel):
        strategy.model = strategy.lightning_module
        strategy.configure_ddp()


def _stages_with_buffers(network: nn.Module) -> list[list[str]]:
    """Stages with their buffers. One of a module without parameters belongs to the parameters before it."""
    groups = [list(names) for names in stages_of(network)]
    stage_of = {name: number for number, names in enumerate(groups) for name in names}
    head = len(groups)
    current = 0
    for prefix, module in network.named_modules():
        for name, _ in module.named_parameters(prefix, recurse=False):
            current = stage_of.get(name, head)
        if current < head:
            groups[current] += [name for name, _ in module.named_buffers(prefix, recurse=False)]
    return groups


def _ancestors(names: Iterable[str]) -> set[str]:
    """The modules that hold these tensors, as `named_modules` calls them."""
    found = set()
    for name in names:
        while name:
            name = name.rpartition(".")[0]
            found.add(name)
    return found
