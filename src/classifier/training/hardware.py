"""What the machine is given and what it lacks: compiled networks, their order in memory, and memory that runs out."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.memory import is_oom_error
from torch import nn

from classifier.errors import UserError, require_choice

MODES = ("True", "False", "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")  # of torch
# of torch, where /dev/shm is full
NO_SHARED_MEMORY = re.compile(r".*(shared memory\(shm\)|</torch_|Bus error).*")
OTHER_SIGNS = ("MPS backend out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "std::bad_alloc")  # that Lightning misses


class Compile(pl.Callback):
    """Compiles the network before the first batch, after the summary and TensorBoard's graph were made.

    In place: the names in checkpoints stay, and the checkpoint of a compiled network opens without a compiler.

    Args:
        mode: Of torch.compile.
    """

    def __init__(self, mode: str = "default") -> None:
        self.mode = mode
        self.done = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.done:  # as it may be for the test after the fit
            # finetune=gradual and data.train_size have torch compile again; after the limit it would run uncompiled
            torch.compiler.config.recompile_limit = max(torch.compiler.config.recompile_limit, 64)
            pl_module.get_submodule("network").compile(mode=self.mode)
        self.done = True

    on_test_start = on_predict_start = on_train_start


def speed_up(network: nn.Module, *, channels_last: bool, compile: bool | str) -> list[pl.Callback]:
    """Prepare a network; return what the Trainer needs for the rest.

    Args:
        channels_last: Keep convolutions' weights in memory as batches are, (out, height, width, in).
        compile: Whether to, or the mode of torch.compile.

    Raises:
        UserError: There is no such mode.
    """
    require_choice("speed.compile", str(compile), MODES)
    if channels_last:
        network.to(memory_format=torch.channels_last)
    return [Compile("default" if compile is True else str(compile))] if compile else []


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device or the host had no room for a tensor."""
    lack = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or is_oom_error(error)
    return lack or any(sign in str(error) for sign in OTHER_SIGNS)


@contextmanager
def report_out_of_memory(what: str, advice: str, workers: str = "data.num_workers") -> Iterator[None]:
    """Turn an out-of-memory error into a `UserError`.

    Args:
        what: What took the memory, such as `data.batch_size=64`.
        advice: What to type instead.
        workers: The setting of reading processes, which hand batches over in shared memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if found := NO_SHARED_MEMORY.search(f"{error}\n{error.__cause__}"):
            what = f"reading processes hand batches over in shared memory, /dev/shm, which failed ({found[0].strip()})"
            raise UserError(f"{what}: use {workers}=0, or make it larger (docker run --shm-size=8g)") from error
        if not is_out_of_memory(error):
            raise
        raise UserError(f"out of memory with {what}: {advice}") from error


def smaller_batch(batch_size: int, accumulate: int) -> str:
    """What to type in training where `batch_size` images did not fit."""
    if batch_size == 1:
        return "not even one image fits: use a smaller data.image_size, or a smaller network"
    size, times = same_effective_batch(batch_size * accumulate, at_most=batch_size // 2)
    return f"use data.batch_size={size} trainer.accumulate_grad_batches={times} for the same effective batch"


def same_effective_batch(effective: int, at_most: int) -> tuple[int, int]:
    """The largest batch of `at_most` images that divides `effective`, and how many of them make it up."""
    size = next(size for size in range(min(effective, at_most), 0, -1) if effective % size == 0)
    return size, effective // size
