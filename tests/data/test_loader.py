import copy
import multiprocessing
import os
import signal
from itertools import chain
from pathlib import Path

import pytest
import torch

from classifier.data.image_folder import FolderSource
from classifier.data.loader import EpochSampler, ImageDataset, ResumableLoader, ShardSampler, outlive_signals
from classifier.data.samples import Samples
from classifier.data.transforms import Augmentation, Preprocessing
from classifier.errors import UserError

Batches = list[list[tuple[int, int]]]


def batches_of(
    length: int,
    batch_size: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    epoch: int = 0,
    seed: int = 0,
    skip: int = 0,
    drop_last: bool = False,
) -> Batches:
    sampler = EpochSampler(length, batch_size, seed=seed, rank=rank, world_size=world_size, drop_last=drop_last)
    sampler.set_epoch(epoch)
    sampler.skip_batches = skip
    batches = list(sampler)
    assert len(batches) == len(sampler) - skip
    assert all(len(batch) <= batch_size for batch in batches)
    assert all((found, repeat) == (epoch, 0) for batch in batches for found, _, repeat in batch)
    return [[(found, position) for found, position, _ in batch] for batch in batches]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 7])
def test_each_sample_once_but_the_documented_remainder(batch_size: int, world_size: int, drop_last: bool) -> None:
    step = batch_size * world_size
    for length in range(step, 3 * step + 2):
        ranks = [
            batches_of(length, batch_size, rank=rank, world_size=world_size, drop_last=drop_last)
            for rank in range(world_size)
        ]
        items = [item for rank in ranks for batch in rank for item in batch]
        assert len(set(items)) == len(items)
        assert {position for _, position in items} <= set(range(length))
        remainder = length % step
        too_few = batch_size < 3 or (batch_size == 3 and remainder < world_size)
        assert len(items) == length - (remainder if drop_last or too_few else 0)
        assert len({len(rank) for rank in ranks}) == 1, "a process with fewer batches leaves the others waiting"
        assert min(len(batch) for rank in ranks for batch in rank) >= min(batch_size, 2)


@pytest.mark.parametrize("batch_size", [4, 5, 12])
def test_any_number_of_processes_takes_the_same_global_batches(batch_size: int) -> None:
    for length in range(12 * batch_size, 25 * batch_size):
        epochs = []
        for world_size in (1, 2, 3, 4):
            size = 12 * batch_size // world_size
            ranks = [batches_of(length, size, rank=rank, world_size=world_size, epoch=2) for rank in range(world_size)]
            epochs.append([sorted(chain.from_iterable(parts)) for parts in zip(*ranks, strict=True)])
        assert all(epoch == epochs[0] for epoch in epochs)
        assert len(epochs[0]) == -(-length // (12 * batch_size))
        assert sorted(position for batch in epochs[0] for _, position in batch) == list(range(length))


def test_a_remainder_is_shared_with_the_batch_before() -> None:
    assert [len(batch) for batch in batches_of(26, 8)] == [8, 8, 5, 5]
    assert [len(batch) for batch in batches_of(31, 8)] == [8, 8, 8, 7]


def test_another_epoch_or_seed_is_another_order() -> None:
    orders = [batches_of(50, 8, epoch=epoch, seed=seed) for epoch, seed in ((0, 0), (1, 0), (2, 0), (0, 1))]
    positions = [tuple(position for batch in order for _, position in batch) for order in orders]
    assert len(set(positions)) == 4
    assert list(positions[0]) != sorted(positions[0])
    assert batches_of(50, 8, epoch=1) == orders[1]


def test_another_remainder_is_left_out_each_epoch() -> None:
    used = [{position for batch in batches_of(17, 2, epoch=epoch) for _, position in batch} for epoch in range(20)]
    left = [set(range(17)) - positions for positions in used]
    assert all(len(positions) == 1 for positions in left)
    assert len(set.union(*left)) > 5


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("skip", range(7))
def test_a_skip_leaves_exactly_the_rest(world_size: int, skip: int) -> None:
    for rank in range(world_size):
        whole = batches_of(26 * world_size, 4, rank=rank, world_size=world_size, epoch=3)
        assert len(whole) == 7
        rest = batches_of(26 * world_size, 4, rank=rank, world_size=world_size, epoch=3, skip=skip)
        assert rest == whole[skip:]


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("length", [5, 6, 17])
def test_shards_are_ordered_and_unpadded(length: int, world_size: int) -> None:
    samplers = [ShardSampler(length, rank=rank, world_size=world_size) for rank in range(world_size)]
    shards = [list(sampler) for sampler in samplers]
    assert [len(sampler) for sampler in samplers] == [len(shard) for shard in shards]
    assert sorted(chain.from_iterable(shards)) == list(range(length))
    assert all(shard == sorted(shard) for shard in shards)


@pytest.fixture(scope="module")
def samples(folder: Path) -> Samples:
    return FolderSource(folder).read()[0]


def loader(samples: Samples, num_workers: int = 0, seed: int = 0) -> ResumableLoader:
    """58 of 60 samples in batches of 8, augmented at random."""
    augmentation = Augmentation(
        Preprocessing((16, 16)),
        {"scale": [0.3, 1.0], "ratio": [0.75, 1.33]},
        {"flip": {"_target_": "torchvision.transforms.v2.RandomHorizontalFlip"}},
    )
    rows = torch.arange(2, 60).numpy()
    sampler = EpochSampler(len(rows), 8, seed=seed)
    return ResumableLoader(
        ImageDataset(samples, rows, augmentation, seed),
        sampler,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        worker_init_fn=outlive_signals,
    )


def read(made: ResumableLoader, epoch: int) -> list[dict[str, torch.Tensor]]:
    made.epoch_sampler.set_epoch(epoch)
    return list(made)


def equal(left: list[dict[str, torch.Tensor]], right: list[dict[str, torch.Tensor]]) -> bool:
    return len(left) == len(right) and all(
        a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) for a, b in zip(left, right, strict=True)
    )


def test_workers_change_no_bit(samples: Samples) -> None:
    alone, helped = loader(samples), loader(samples, num_workers=2)
    for epoch in range(2):
        torch.manual_seed(epoch)  # what the process drew before must not matter
        assert equal(read(alone, epoch), read(helped, epoch))


def test_epochs_and_seeds_augment_differently(samples: Samples) -> None:
    made, other = loader(samples), loader(samples, seed=1)
    images = []
    for found in (read(made, 0), read(made, 1), read(other, 0)):
        index = torch.cat([batch["index"] for batch in found])
        image = torch.cat([batch["image"] for batch in found])
        where = {int(number): place for place, number in enumerate(index)}
        images.append({number: image[place] for number, place in where.items()})
    both = set(images[0]) & set(images[1]) & set(images[2])
    assert len(both) > 50
    # small images have few crops, so that two draws may be alike
    assert sum(torch.equal(images[0][number], images[1][number]) for number in both) <= 2
    assert sum(torch.equal(images[0][number], images[2][number]) for number in both) <= 2


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resumed_at_any_batch(samples: Samples, num_workers: int) -> None:
    whole = [read(loader(samples), epoch) for epoch in (4, 5)]
    assert [len(batch["index"]) for batch in whole[0]] == [8] * 6 + [5, 5]
    for done in range(len(whole[0])) if num_workers == 0 else (3,):
        first = loader(samples, num_workers)
        first.epoch_sampler.set_epoch(4)
        batches = iter(first)
        for _ in range(done):
            next(batches)
        state = copy.deepcopy(first.state_dict())
        resumed = loader(samples, num_workers)
        resumed.load_state_dict(state)
        later = iter(resumed)  # Lightning makes the iterator before it tells the epoch
        resumed.epoch_sampler.set_epoch(4)
        assert equal(list(later), whole[0][done:])
        assert equal(read(resumed, 5), whole[1]), "only the first epoch is shortened"


def test_the_place_is_what_was_handed_out(samples: Samples) -> None:
    made = loader(samples, num_workers=2)
    assert made.state_dict() == {"epoch": 0, "batches": 0, "images": 8}
    batches = iter(made)
    for number in range(1, len(made)):
        next(batches)
        assert made.state_dict() == {"epoch": 0, "batches": number, "images": 8}


def test_a_place_in_another_epoch_is_none_in_this(samples: Samples) -> None:
    """A checkpoint from the end of an epoch, which a limit can put before its last batch."""
    made = loader(samples)
    made.load_state_dict({"epoch": 4, "batches": 3, "images": 8})
    made.epoch_sampler.set_epoch(5)
    assert len(list(made)) == len(made)


def test_a_place_that_was_loaded_is_saved_again(samples: Samples) -> None:
    """A run that is stopped between its resumption and its first batch."""
    made = loader(samples)
    made.load_state_dict({"epoch": 0, "batches": 3, "images": 8})
    assert made.state_dict() == {"epoch": 0, "batches": 3, "images": 8}
    next(iter(made))
    assert made.state_dict() == {"epoch": 0, "batches": 4, "images": 8}


def test_a_place_among_batches_of_another_size_is_refused(samples: Samples) -> None:
    with pytest.raises(UserError, match=r"takes 16 images at once, .*=8 on 1 process makes 8: use data.batch_size=16"):
        loader(samples).load_state_dict({"epoch": 0, "batches": 3, "images": 16})


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_reading_processes_outlive_a_signal_to_all(signum: int, samples: Samples) -> None:
    made = loader(samples, num_workers=2)
    batches = iter(made)
    next(batches)
    for child in multiprocessing.active_children():
        os.kill(child.pid or 0, signum)
    assert len(list(batches)) == len(made) - 1
