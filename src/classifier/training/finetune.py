"""What of a network is trained, and when."""

import logging
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from classifier.errors import UserError, require_number, require_whole
from classifier.training.parameter_groups import stages as stages_of

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
        require_whole("finetune.head_epochs", head_epochs, 0)
        require_whole("finetune.stage_epochs", stage_epochs, 0)
        # above 1, the first layers would learn faster than the head
        require_number("finetune.backbone_lr", backbone_lr, above=0, most=1)
        require_number("finetune.layer_decay", 1.0 if layer_decay is None else layer_decay, above=0, most=1)
        self.rates: dict[str, Any] = {"backbone_lr": backbone_lr, "layer_decay": layer_decay}
        self.network = network
        self.head_epochs, self.stage_epochs = head_epochs, stage_epochs
        self.freezes = stages is not None or head_epochs > 0 or stage_epochs > 0
        self.stages = _with_buffers(network, stages_of(network)) if self.freezes else []
        self.most = len(self.stages)
        if stages is not None:
            advice = f": {type(network).__name__} has {self.most} stages below its head"
            require_whole("finetune.stages", stages, 0, self.most, advice)
            self.most = stages
        self.fixed = {name for name, value in network.named_parameters() if not value.requires_grad}
        self.frozen: set[str] = set()  # names of parameters and buffers
        self.logged: set[str] = set()  # what was frozen at the last line in the log

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
        """Freeze what the first epoch does not train, before the strategy wraps the model.

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
        """Freeze what the Trainer's epoch does not train, release the rest, and log a change."""
        strategy, epoch = trainer.strategy, trainer.current_epoch
        if self.freeze(epoch) and isinstance(strategy.model, DistributedDataParallel):
            assert isinstance(strategy, DDPStrategy)
            # wrap it again: DDP never sums gradients of what was frozen when it wrapped the module
            strategy.model = strategy.lightning_module
            strategy.configure_ddp()
        if self.frozen != self.logged:
            self.logged = self.frozen
            sizes = {name: parameter.numel() for name, parameter in self.network.named_parameters()}
            trained = sum(size for name, size in sizes.items() if name not in self.frozen)
            number = self.trained(epoch)
            what = f"the head and {number} of {len(self.stages)} stages" if number else "the head alone"
            log.info("epoch %d: training %s (%s of %s parameters)", epoch + 1, what, f"{trained:,}",
                     f"{sum(sizes.values()):,}")  # fmt: skip

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
