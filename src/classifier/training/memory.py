"""A limit on the memory of this process, where the kernel would end it without a word."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from pytorch_lightning.utilities.memory import garbage_collection_cuda, is_oom_error
from torch import nn

from classifier.errors import UserError

log = logging.getLogger(__name__)


Forward = Callable[[slice], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
"""A part of the batch -> its share of the step (mean loss, scalar), logits float (B, K) and losses float (B,)."""

OTHER_SIGNS = ("MPS backend out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "std::bad_alloc")  # that Lightning misses


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device or the host had no room for a tensor."""
    return (
        isinstance(error, (torch.OutOfMemoryError, MemoryError))
        or is_oom_error(error)
        or (isinstance(error, RuntimeError) and any(sign in str(error) for sign in OTHER_SIGNS))
    )


@contextmanager
def out_of_memory_told(what: str, advice: str) -> Iterator[None]:
    """Turn an out-of-memory error into a `UserError`: "out of memory with `what`: `advice`"."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"out of memory with {what}: {advice}") from error


def described(batch_size: int, image_size: Sequence[int], precision: object) -> str:
    """What takes the memory, such as `data.batch_size=64 (224x224 pixels, 32-true)`."""
    return f"data.batch_size={batch_size} ({image_size[0]}x{image_size[1]} pixels, {precision})"


def smaller_batch(batch_size: int, accumulate: int) -> str:
    """What to type where `batch_size` images did not fit."""
    if batch_size == 1:
        return "not even one image fits: use a smaller data.image_size, or a smaller network"
    size, times = same_effective_batch(batch_size * accumulate, at_most=batch_size // 2)
    return f"use data.batch_size={size} trainer.accumulate_grad_batches={times} for the same effective batch"


def same_effective_batch(effective: int, at_most: int) -> tuple[int, int]:
    """The largest batch of `at_most` images that divides `effective`, and how many of them make it up."""
    size = next(size for size in range(min(effective, at_most), 0, -1) if effective % size == 0)
    return size, effective // size


class MicroBatches:
    """The gradients of each batch, computed in parts once a whole batch did not fit into memory.

    The sum over the parts is the gradient of the whole batch, but for rounding; BatchNorm sees the parts, and dropout
    draws for each of them. When memory runs out, the step begins again with parts half as large: weights, optimiser,
    buffers and random state are then as the last step left them. A process decides for itself, as what it computes
    is handed to the optimiser, or to DistributedDataParallel, when all of it is there.

    Attributes:
        size: The most images of a part; None until memory has run out.
    """

    def __init__(self) -> None:
        self.size: int | None = None
        self._found: list[tuple[nn.Parameter, torch.Tensor]] = []

    def differentiate(
        self, module: pl.LightningModule, forward: Forward, count: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Loss, logits and losses of a batch of `count` images, detached; its gradients wait for `hand_over`.

        Raises:
            UserError: Not even one image fits.
        """
        while True:
            parts = math.ceil(count / (self.size or count))
            try:
                return self._try(module, forward, count, parts)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # not in the handler: the error's traceback holds on to the tensors
            garbage_collection_cuda()
            failed = math.ceil(count / parts)
            if failed == 1:
                raise UserError(
                    "out of memory with a single image: use a smaller data.image_size, or a smaller network"
                )
            self.size = math.ceil(failed / 2)
            log.warning(
                "out of memory with %d images at a time: going on with %d, and the same effective batch",
                failed,
                self.size,
            )

    def _try(
        self, module: pl.LightningModule, forward: Forward, count: int, parts: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        gradients: list[torch.Tensor | None] = [None] * len(parameters)
        results = []
        bounds = [count * number // parts for number in range(parts + 1)]
        with _undone_on_error(module):
            for start, stop in pairwise(bounds):
                mean, logits, losses = forward(slice(start, stop))
                loss = mean * ((stop - start) / count)
                with torch.autocast(loss.device.type, enabled=False):  # as Lightning's backward
                    new = torch.autograd.grad(_scaled(loss, module.trainer), parameters, allow_unused=True)
                gradients = [_sum(old, part) for old, part in zip(gradients, new, strict=True)]
                results.append((loss.detach(), logits.detach(), losses.detach()))
        pairs = zip(parameters, gradients, strict=True)
        self._found = [(parameter, gradient) for parameter, gradient in pairs if gradient is not None]
        means, logits_of_parts, losses_of_parts = zip(*results, strict=True)
        return torch.stack(means).sum(), torch.cat(logits_of_parts), torch.cat(losses_of_parts)

    def hand_over(self) -> None:
        """Add the gradients to `.grad`, as a backward pass does; DistributedDataParallel takes them from there."""
        parameters, gradients = zip(*self._found, strict=True)
        self._found = []
        torch.autograd.backward(parameters, gradients)


@contextmanager
def _undone_on_error(module: nn.Module) -> Iterator[None]:
    """Put buffers and random state back where the block fails. (Behind the block, the state is put back as well.)"""
    buffers = list(module.buffers())
    before = [buffer.clone() for buffer in buffers]
    cuda = {buffer.device for buffer in buffers if buffer.device.type == "cuda"}
    with torch.random.fork_rng(devices=cuda):
        try:
            yield
        except Exception:
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)
            raise


def _scaled(loss: torch.Tensor, trainer: pl.Trainer) -> torch.Tensor:
    """What Lightning differentiates: the loss over the batches that are accumulated, times the scale of fp16."""
    loss = loss / trainer.accumulate_grad_batches
    scaler: torch.amp.GradScaler | None = getattr(trainer.precision_plugin, "scaler", None)
    return loss if scaler is None else scaler.scale(loss)


def _sum(old: torch.Tensor | None, new: torch.Tensor | None) -> torch.Tensor | None:
    return new if old is None else old if new is None else old.add_(new)


def require_divisible(trainer: pl.Trainer) -> None:
    """Raise a UserError where one process alone cannot divide its batch."""
    strategy, model = trainer.strategy, trainer.model
    searches = any(getattr(model, name, False) for name in ("find_unused_parameters", "static_graph"))
    # subclasses of DDPStrategy share out what gradients are added to
    if not isinstance(strategy, SingleDeviceStrategy) and (type(strategy) is not DDPStrategy or searches):
        raise UserError(
            f"on_oom=accumulate does not go with {type(strategy).__name__}{' of this kind' if searches else ''}: use "
            "trainer.strategy=ddp, or on_oom=raise"
        )
    if any(isinstance(part, nn.SyncBatchNorm) for part in trainer.lightning_module.modules()):
        raise UserError(
            "on_oom=accumulate does not go with trainer.sync_batchnorm=true, where each process waits for the others "
            "in mid-batch: use trainer.sync_batchnorm=false, or on_oom=raise"
        )


LIMITS_OF_CONTAINERS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
SHARE = 0.9  # of what is free; the rest is for others


def can_be_limited() -> bool:
    """Whether this is Linux."""
    return Path("/proc/meminfo").exists()


@contextmanager
def limited_to_free_memory() -> Iterator[None]:
    """Refuse this process more memory than the machine, or the container, has free: torch then raises an error."""
    import resource  # Unix alone has it

    before = resource.getrlimit(resource.RLIMIT_DATA)
    limit = _of("/proc/self/status", "VmData") + int(SHARE * _free())
    resource.setrlimit(resource.RLIMIT_DATA, (min((limit, *(old for old in before if old >= 0))), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _free() -> int:
    free = _of("/proc/meminfo", "MemAvailable")
    for path in map(Path, LIMITS_OF_CONTAINERS):
        if path.is_file() and (text := path.read_text().strip()).isdigit():
            free = min(free, int(text) - _of("/proc/self/status", "VmRSS"))
    return free


def _of(path: str, key: str) -> int:
    """Bytes of a line such as `VmData:  1234 kB`."""
    [value] = [line.split()[1] for line in Path(path).read_text().splitlines() if line.startswith(f"{key}:")]
    return int(value) * 1024
