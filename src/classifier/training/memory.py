"""When memory runs out: an error that names the batch size to type."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from pytorch_lightning.utilities.memory import is_oom_error

from classifier.errors import UserError

OTHER_SIGNS = ("MPS backend out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "std::bad_alloc")  # that Lightning misses


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device or the host had no room for a tensor."""
    return (
        isinstance(error, (torch.OutOfMemoryError, MemoryError))
        or is_oom_error(error)
        or (isinstance(error, RuntimeError) and any(sign in str(error) for sign in OTHER_SIGNS))
    )


@contextmanager
def report_out_of_memory(what: str, advice: str) -> Iterator[None]:
    """Turn an out-of-memory error into a `UserError`.

    Args:
        what: What took the memory, such as `data.batch_size=64`.
        advice: What to type instead.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
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
