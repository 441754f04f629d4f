"""Builds Lightning's Trainer, and refuses what it or the machine cannot do; the strategy `sharded`."""

import logging
import re
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.warnings import disable_possible_user_warnings
from pytorch_lightning.callbacks import Checkpoint, DeviceStatsMonitor, LearningRateMonitor, ModelSummary, ProgressBar
from pytorch_lightning.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from pytorch_lightning.profilers import PassThroughProfiler
from pytorch_lightning.strategies import StrategyRegistry
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from classifier.errors import UserError, require_number, require_whole
from classifier.instantiate import build
from classifier.runs import SHARDED
from classifier.training.checkpoints import AtomicCheckpointIO
from classifier.training.lightning_private import DataParallelStrategy

log = logging.getLogger(__name__)

NOISE = (  # seen in ordinary runs, where each is meant to be so
    "Checkpoint directory .* exists and is not empty",
    "Precision .* is not supported by the model summary",
    "predict returned None",
    "Total length of `list` across ranks is zero",
    "The ``compute`` method of metric .* was called before the ``update``",
    "Grad strides do not match bucket view strides",
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated",
)


class NoProfiler(PassThroughProfiler):
    """Lightning's own, at a fifth of the cost of its sixty calls a step."""

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]
        return nullcontext()


def quiet() -> None:
    """Keep from the terminal what is not for the user."""
    # the loaders shard and choose workers on their own, metrics are summed over processes, the loss of a short epoch is
    # logged too, and modules in evaluation mode are frozen on purpose
    disable_possible_user_warnings()
    for message in NOISE:
        warnings.filterwarnings("ignore", message=message)
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # tips, and lines that the verbs say better


def build_trainer(settings: dict[str, Any], run_dir: Path, extra_callbacks: list[pl.Callback]) -> pl.Trainer:
    """Build the Trainer of a run, with its callbacks and loggers.

    Raises:
        UserError: This machine lacks the devices or the precision asked for, or a key does not fit.
    """
    trainer = settings["trainer"]
    if trainer["strategy"] == SHARDED and settings["speed"]["channels_last"]:
        raise UserError(f"trainer.strategy={SHARDED} divides weights in torch's order: use speed.channels_last=false")
    clipping, precision = trainer["gradient_clip_val"], trainer["precision"]
    if str(precision).startswith("16") and clipping and settings["optimizer"].get("fused"):
        # a fused optimiser takes scaled gradients, which cannot be clipped before
        raise UserError(
            f"trainer.gradient_clip_val={clipping} with trainer.precision={precision}: use optimizer.fused=false"
        )
    loggers, callbacks = (
        [build(config, f"{section}.{name}") for name, config in (settings[section] or {}).items() if config is not None]
        for section in ("logger", "callbacks")
    )
    kinds = {"checkpointing": Checkpoint, "progress_bar": ProgressBar, "model_summary": ModelSummary}
    unwanted = [kind for name, kind in kinds.items() if not trainer.get(f"enable_{name}", True)]
    unwanted += [] if loggers else [LearningRateMonitor, DeviceStatsMonitor]  # which refuse to do without
    callbacks = [callback for callback in callbacks if not isinstance(callback, tuple(unwanted))]
    # of a kind that was switched off, Lightning would bring its own
    enabled = {f"enable_{name}": any(isinstance(found, kind) for found in callbacks) for name, kind in kinds.items()}
    return make_trainer({**trainer, **enabled}, run_dir, callbacks=[*callbacks, *extra_callbacks], logger=loggers)


def make_trainer(config: dict[str, Any], run_dir: Path, **arguments: Any) -> pl.Trainer:
    """Build the Trainer that the section `trainer` describes.

    Raises:
        UserError: As `build_trainer`.
    """
    quiet()
    accelerator = config["accelerator"]
    if accelerator in ("gpu", "cuda", "mps") and not torch.accelerator.is_available():
        raise UserError(f"trainer.accelerator={accelerator}: torch {torch.__version__} sees no GPU, use trainer=cpu")
    # what Lightning takes, and then trains nothing or ends in a traceback
    for key in ("max_epochs", "max_steps"):
        if config.get(key) not in (None, -1):
            require_whole(f"trainer.{key}", config[key], 1, otherwise=", or -1 for no limit")
    require_whole("trainer.accumulate_grad_batches", config.get("accumulate_grad_batches", 1), 1)
    for key, low in (("limit_train_batches", {"above": 0}), ("gradient_clip_val", {"least": 0})):
        if config.get(key) is not None:
            require_number(f"trainer.{key}", config[key], **low)
    limit = config.get("max_time")
    if limit is not None and not re.fullmatch(r"\d+:\d\d:\d\d:\d\d", str(limit)):
        raise UserError(f"trainer.max_time={limit} must be days, hours, minutes, seconds: trainer.max_time=00:00:30:00")
    if config.get("strategy") == SHARDED and config["precision"] == "16-mixed":
        raise UserError(f"trainer.strategy={SHARDED} and trainer.precision=16-mixed: use trainer.precision=bf16-mixed")
    _require_precision(config)
    if config.get("profiler") is None:
        config = {**config, "profiler": NoProfiler()}
    plugins: list[Any] = [AtomicCheckpointIO()]
    if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
        # a requeued job continues by resume=...; Lightning's own way has another signal and another checkpoint
        plugins.append(SLURMEnvironment(auto_requeue=False))
    try:
        trainer: pl.Trainer = build(config, "trainer", plugins=plugins, default_root_dir=str(run_dir), **arguments)
    except UserError as error:
        if not re.search("gpu|cuda|mps|device|accelerator", str(error), re.IGNORECASE):
            raise
        count = torch.cuda.device_count()
        raise UserError(f"{error}; GPUs here: {count}, see trainer.devices, or use trainer=cpu") from error
    if config.get("sync_batchnorm") and trainer.world_size > 1 and trainer.strategy.root_device.type == "cpu":
        raise UserError("trainer.sync_batchnorm=true needs GPUs: on the CPU, use trainer.sync_batchnorm=false")
    return trainer


def _require_precision(config: dict[str, Any]) -> None:
    precision = str(config["precision"])
    on_gpu = config["accelerator"] in ("gpu", "cuda", "auto") and torch.cuda.is_available()
    if precision.startswith("16") and not on_gpu and not torch.backends.mps.is_available():
        # Lightning takes bf16 instead, with no more than a warning
        raise UserError(f"trainer.precision={precision} needs a GPU: use trainer.precision=bf16-mixed or 32-true")
    if precision.startswith("bf16") and on_gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(f"trainer.precision={precision} is not supported by this GPU: use trainer.precision=16-mixed")


def with_usable_precision(config: dict[str, Any]) -> dict[str, Any]:
    """The `trainer` section of an evaluation, in full precision where this machine lacks that of the training."""
    try:
        _require_precision(config)
    except UserError as error:
        log.warning("%s Evaluating with trainer.precision=32-true", error)
        return {**config, "precision": "32-true"}
    return config


class ShardedStrategy(DataParallelStrategy):
    """Divides weights, gradients and optimiser state among the processes, for networks too large for one GPU.

    By torch's FSDP2; checkpoints are whole files, as those of one process. (Lightning's own FSDPStrategy is that of the
    older FSDP: it cannot clip gradients by their norm.)
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, **settings)

    def shard(self, network: nn.Module) -> None:
        """Divide the network that is to be trained or used."""
        shard(network, self.device_mesh["data_parallel"])


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
    modules = list(network.modules())
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    if any(isinstance(module, kinds) for module in modules):
        name = type(network).__name__
        raise UserError(f"trainer.strategy={SHARDED} is for networks without BatchNorm, as {name} has: use trainer=ddp")
    blocks = [
        block for part in modules if isinstance(part, (nn.Sequential, nn.ModuleList)) for block in part.children()
    ]
    for block in reversed(blocks):  # the innermost first: what is divided then does not count in those around it
        left = sum(value.numel() for value in block.parameters() if not isinstance(value, DTensor))
        if left >= 1_000_000 and not isinstance(block, nn.ModuleList):
            fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)
