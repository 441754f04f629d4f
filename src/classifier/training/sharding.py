"""Networks that are too large for one GPU: weights, gradients and optimiser state are divided among the processes."""

from typing import Any

from pytorch_lightning.strategies import ModelParallelStrategy, StrategyRegistry
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.modules.batchnorm import _BatchNorm

from classifier.errors import UserError
from classifier.runs import SHARDED

MIN_PARAMETERS = 1_000_000  # of a block that is gathered on its own


class ShardedStrategy(ModelParallelStrategy):
    """Torch's fully sharded data parallelism (FSDP2), whose checkpoints are whole files, as those of one process.

    (Lightning's own FSDPStrategy is that of the older FSDP: it cannot clip gradients by their norm.)
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, **settings)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


StrategyRegistry.register(SHARDED, ShardedStrategy)


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Divide the parameters of `network` among the processes; where they are divided already, do nothing.

    A block, an element of an nn.Sequential or nn.ModuleList with a million parameters, is gathered when its turn comes,
    and released again.

    Raises:
        UserError: The network has BatchNorm, whose statistics would differ between processes.
    """
    if isinstance(network, FSDPModule):
        return
    if any(isinstance(module, _BatchNorm) for module in network.modules()):
        raise UserError(
            f"trainer.strategy={SHARDED} is for networks without BatchNorm, and {type(network).__name__} has it: "
            "use trainer=ddp"
        )
    _shard_blocks(network, mesh)
    fully_shard(network, mesh=mesh)


def _shard_blocks(module: nn.Module, mesh: DeviceMesh) -> int:
    """Shard the blocks within `module`, the innermost first; return how many parameters are left."""
    left = sum(parameter.numel() for parameter in module.parameters(recurse=False))
    for child in module.children():
        inside = _shard_blocks(child, mesh)
        is_block = isinstance(module, (nn.Sequential, nn.ModuleList)) and not isinstance(child, nn.ModuleList)
        if is_block and inside >= MIN_PARAMETERS:
            fully_shard(child, mesh=mesh)
            inside = 0
        left += inside
    return left
