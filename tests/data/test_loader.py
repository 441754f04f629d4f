import copy
import multiprocessing
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from classifier.data.loader import (
    EpochSampler,
    ImageDataset,
    Images,
    ResumableLoader,
    ShardSampler,
    end_with_main,
    training_weights,
)
from classifier.data.samples import labels_of
from classifier.data.transforms import Augmentation, Preprocessing
from classifier.errors import UserError
from tests.data.tables import make_table


def batches_of(
    length: int, batch_size: int, *, epoch: int = 0, seed: int = 0, skip: int = 0, **place: Any
) -> list[list[tuple[int, int]]]:
    sampler = EpochSampler(length, batch_size, seed=seed, **place)
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
def images(folder: Path) -> Images:
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg"))
    return Images.of(make_table(paths, [ord(path[0]) % 3 for path in paths], "abc"), folder)


@contextmanager
def loader(images: Images, num_workers: int = 0, seed: int = 0) -> Iterator[ResumableLoader]:
    """58 of 60 samples in batches of 8, augmented at random; its processes end with the block."""
    rotate = {"_target_": "albumentations.Rotate", "limit": 20}
    transforms: dict[str, Any] = {
        "flip": {"_target_": "torchvision.transforms.v2.RandomHorizontalFlip"},
        "rotate": {"_target_": "classifier.data.transforms.Albumentations", "transform": rotate},
    }
    augmentation = Augmentation(Preprocessing((16, 16)), {"scale": [0.3, 1.0], "ratio": [0.75, 1.33]}, transforms)
    dataset, sampler = ImageDataset(images, np.arange(2, 60), augmentation, seed), EpochSampler(58, 8, seed=seed)
    workers = {"num_workers": num_workers, "persistent_workers": num_workers > 0}
    made = ResumableLoader(dataset, sampler, worker_init_fn=end_with_main, **workers)
    try:
        yield made
    finally:
        children = workers_of(made)
        made._iterator = None
        for child in children:
            child.join(60)
            assert child.exitcode == 0


def workers_of(made: ResumableLoader) -> list[multiprocessing.Process]:
    return list(getattr(made._iterator, "_workers", []))


def read(made: ResumableLoader, epoch: int) -> list[dict[str, torch.Tensor]]:
    made.epoch_sampler.set_epoch(epoch)
    return list(made)


def equal(left: list[dict[str, torch.Tensor]], right: list[dict[str, torch.Tensor]]) -> bool:
    return len(left) == len(right) and all(
        a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) for a, b in zip(left, right, strict=True)
    )


def test_workers_change_no_bit(images: Images) -> None:
    with loader(images) as alone, loader(images, num_workers=2) as helped:
        for epoch in range(2):
            torch.manual_seed(epoch)  # what the process drew before must not matter
            assert equal(read(alone, epoch), read(helped, epoch))


def test_epochs_and_seeds_augment_differently(images: Images) -> None:
    seen = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        with loader(images, seed=seed) as made:
            found = read(made, epoch)
        index, image = (torch.cat([batch[key] for batch in found]) for key in ("index", "image"))
        seen.append(dict(zip(index.tolist(), image, strict=True)))
    both = set(seen[0]) & set(seen[1]) & set(seen[2])
    assert len(both) > 50
    # small images have few crops, so that two draws may be alike
    assert sum(torch.equal(seen[0][number], seen[1][number]) for number in both) <= 2
    assert sum(torch.equal(seen[0][number], seen[2][number]) for number in both) <= 2


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resumed_at_any_batch(images: Images, num_workers: int) -> None:
    with loader(images) as made:
        whole = [read(made, epoch) for epoch in (4, 5)]
    assert [len(batch["index"]) for batch in whole[0]] == [8] * 6 + [5, 5]
    for done in range(len(whole[0])) if num_workers == 0 else (3,):
        with loader(images, num_workers) as first:
            assert first.state_dict() == {"epoch": 0, "batches": 0, "images": 8}
            first.epoch_sampler.set_epoch(4)
            batches = iter(first)
            for number in range(done):
                next(batches)
                # what was handed out, not what the workers have read ahead
                assert first.state_dict() == {"epoch": 4, "batches": number + 1, "images": 8}
            state = copy.deepcopy(first.state_dict())
            batches.close()  # type: ignore[attr-defined]
        with loader(images, num_workers) as resumed:
            resumed.load_state_dict(state)
            assert resumed.state_dict() == state, "a run that is stopped before its first batch saves it again"
            later = iter(resumed)  # Lightning makes the iterator before it sets the epoch
            resumed.epoch_sampler.set_epoch(4 if done else 0)
            if done:
                assert equal(list(later), whole[0][done:])
            assert equal(read(resumed, 5), whole[1]), "only the first epoch is shortened"


def test_a_place_among_batches_of_another_size_is_refused(images: Images) -> None:
    with loader(images) as made, pytest.raises(UserError, match=r"=8.*use data.batch_size=16"):
        made.load_state_dict({"epoch": 0, "batches": 3, "images": 16})


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_reading_processes_outlive_a_signal_to_all(signum: signal.Signals, images: Images) -> None:
    with loader(images, num_workers=2) as made:
        batches = iter(made)
        next(batches), next(batches)  # one of each process, which then has its handlers
        for child in workers_of(made):
            subprocess.run(["kill", f"-{signum.value}", str(child.pid)], check=True)
        assert len(list(batches)) == len(made) - 2
        for child in workers_of(made):
            child.terminate()  # by the main process, which does not wait for them
            child.join(60)
            assert child.exitcode == 0


def classes(per_class: Sequence[int]) -> pd.DataFrame:
    labels = np.repeat(np.arange(len(per_class)), per_class)
    paths = [f"{label}/{row}.jpg" for row, label in enumerate(labels)]
    return make_table(paths, labels, [str(label) for label in range(len(per_class))])


def weights_of(table: pd.DataFrame, sampler: str = "balanced", file: str | None = None) -> np.ndarray:
    weights = training_weights(table, np.arange(len(table)), sampler, file)
    assert weights is not None
    return weights


def drawn(table: pd.DataFrame, weights: np.ndarray, epoch: int, world_size: int = 1) -> list[int]:
    """Positions in the order of the global batches of 8."""
    ranks = []
    for rank in range(world_size):
        place: dict[str, Any] = {"seed": 0, "rank": rank, "world_size": world_size}
        sampler = EpochSampler(len(table), 8 // world_size, weights=weights, labels=labels_of(table), **place)
        sampler.set_epoch(epoch)
        ranks.append(list(chain.from_iterable(sampler)))
        keys = [(position, repeat) for _, position, repeat in ranks[-1]]
        assert len(set(keys)) == len(keys), "the same draw twice would be augmented the same"
    return [position for step in zip(*ranks, strict=True) for _, position, _ in step]


@pytest.mark.parametrize("per_class", [(90, 6), (40, 40, 16), (3, 3, 90), (32, 32, 32)])
def test_balanced_draws_as_many_of_each_class(per_class: Sequence[int]) -> None:
    table, labels = classes(per_class), labels_of(classes(per_class))
    weights = weights_of(table)
    totals = np.zeros(len(table), dtype=int)
    for epoch in range(12):
        positions = drawn(table, weights, epoch)
        assert drawn(table, weights, epoch, world_size=2) == positions
        assert len(positions) == len(table) == 96
        counts = np.bincount(labels[positions], minlength=len(per_class))
        assert np.abs(counts - 96 / len(per_class)).max() <= 1
        times = np.bincount(positions, minlength=len(table))
        expected = 96 / len(per_class) / np.array(per_class)[labels]
        assert (np.abs(times - expected) < 1).all()
        totals += times
    assert totals.min() > 0, "an image that is never drawn"
    assert drawn(table, weights, 3) != drawn(table, weights, 4)


def test_weights_from_a_file(tmp_path: Path) -> None:
    table = classes((40, 40))
    path = tmp_path / "weights.csv"
    pd.DataFrame({"path": table["path"], "weight": [row % 3 for row in range(80)]}).to_csv(path, index=False)
    weights = weights_of(table, "weighted", str(path))
    times = np.bincount(np.concatenate([drawn(table, weights, epoch) for epoch in range(60)]), minlength=80) / 60
    assert (times[weights == 0] == 0).all()
    assert np.abs(times - weights * 80 / weights.sum()).max() < 0.25


@pytest.mark.parametrize(("sampler", "file"), [("balance", None), ("weighted", None), ("shuffle", "w.csv")])
def test_samplers_that_do_not_fit(sampler: str, file: str | None) -> None:
    with pytest.raises(UserError, match=f"data.sampler={sampler}.*({file or 'balanced|null'})"):
        weights_of(classes((2, 1)), sampler, file)


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        (["0/0.jpg,many"], "line 2.*many"),
        (["0/0.jpg,-1"], "line 2.*-1"),
        (["0/0.jpg"], "line 2"),
        (["0/0.jpg,1", "0/0.jpg,2"], "line 3.*0/0.jpg"),
        (["0/0.jpg,1"], "0/1.jpg and 1 more.*data.sampler=shuffle data.weights_file=null"),
        (["0/0.jpg,0", "0/1.jpg,0", "1/2.jpg,0"], "data.sampler=shuffle data.weights_file=null"),
    ],
)
def test_a_file_of_weights_that_does_not_fit(tmp_path: Path, lines: list[str], named: str) -> None:
    path = tmp_path / "weights.csv"
    path.write_text("\n".join(["path,weight", *lines, ""]))
    with pytest.raises(UserError, match=f"{path}.*{named}"):
        weights_of(classes((2, 1)), "weighted", str(path))
