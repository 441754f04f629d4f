"""In which order, and on which process, samples are read; and how a run comes back to its place."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler, SequentialSampler

from classifier.data.dataset import ImageDataset


class EpochSampler(Sampler[tuple[int, int]]):
    """(epoch, position) pairs in an order that is a function of (seed, epoch), shared out over processes.

    The processes together take each sample once an epoch, and the same global batches whatever their number: of
    every `batch_size * world_size` positions, process `rank` takes each `world_size`-th. A remainder too small to
    give each process two images is left out (another one each epoch): BatchNorm cannot train on one.

    Args:
        length: Number of training samples.
        batch_size: Images per process and step.
        drop_last: Leave out any remainder that does not fill a batch on each process.
    """

    def __init__(
        self, length: int, batch_size: int, *, seed: int, rank: int = 0, world_size: int = 1, drop_last: bool = False
    ) -> None:
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.length = length
        remainder = length % (batch_size * world_size)
        if remainder and (drop_last or (remainder < 2 * world_size and batch_size > 1)):
            self.used = length - remainder
        else:
            self.used = length - length % world_size if batch_size == 1 else length
        self.epoch = 0
        self.skip_batches = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Samples of an epoch on this process."""
        whole, rest = divmod(self.used, self.world_size * self.batch_size)
        return whole * self.batch_size + (rest - self.rank + self.world_size - 1) // self.world_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)[: self.used]
        global_batches = range(0, self.used, self.batch_size * self.world_size)
        ends = [*global_batches[1:], self.used]
        share = np.concatenate(
            [order[start + self.rank : end : self.world_size] for start, end in zip(global_batches, ends, strict=True)]
        )
        for position in share[self.skip_batches * self.batch_size :].tolist():
            yield self.epoch, position


class ShardSampler(SequentialSampler):
    """Every `world_size`-th position from `rank` on, in order and without padding.

    Padding, as DistributedSampler does it, counts some images twice. (A SequentialSampler, so that Lightning knows it
    does not shuffle.)
    """

    def __init__(self, length: int, *, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(range(length))
        self.positions = range(rank, length, world_size)

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[int]:
        return iter(self.positions)


class ResumableLoader(DataLoader[dict[str, torch.Tensor]]):
    """A training loader that knows its place: a resumed epoch goes on where it stopped."""

    def __init__(self, dataset: ImageDataset, sampler: EpochSampler, **settings: Any) -> None:
        super().__init__(dataset, batch_size=sampler.batch_size, sampler=sampler, **settings)
        self.epoch_sampler = sampler
        self._resume_at: dict[str, int] | None = None
        # epoch, and batches handed out in it, which is not what the workers have read ahead
        self.position = {"epoch": 0, "batches": 0}

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:  # type: ignore[override]
        # A generator, so that nothing is drawn before the first batch is asked for: on resume Lightning makes the
        # iterator before it tells the sampler the epoch, and workers would start to read the wrong one.
        epoch = self.epoch_sampler.epoch
        resumed = self._resume_at if self._resume_at is not None and self._resume_at["epoch"] == epoch else None
        self._resume_at = None
        self.position = resumed or {"epoch": epoch, "batches": 0}
        self.epoch_sampler.skip_batches = self.position["batches"]
        for batch in super().__iter__():
            self.position = {"epoch": epoch, "batches": self.position["batches"] + 1}
            yield batch

    def state_dict(self) -> dict[str, int]:
        return dict(self.position)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there, if the sampler is still in that epoch when the next iteration begins."""
        self._resume_at = self.position = dict(state)
