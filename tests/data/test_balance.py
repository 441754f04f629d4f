from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from classifier.data.loader import EpochSampler, balanced_class_weights, require_sampler, training_weights
from classifier.data.samples import Samples
from classifier.errors import UserError


def table(per_class: Sequence[int]) -> Samples:
    labels = np.repeat(np.arange(len(per_class)), per_class)
    names = [str(label) for label in range(len(per_class))]
    return Samples.build(Path("/photos"), names, [f"{label}/{row}.jpg" for row, label in enumerate(labels)], labels)


def drawn(samples: Samples, weights: np.ndarray, epoch: int, world_size: int = 1, batch_size: int = 8) -> list[int]:
    """Positions in the order of the global batches, checked to be the same for any number of processes."""
    ranks = []
    for rank in range(world_size):
        sampler = EpochSampler(
            len(samples), batch_size // world_size, seed=0, rank=rank, world_size=world_size, weights=weights,
            labels=samples.labels,
        )  # fmt: skip
        sampler.set_epoch(epoch)
        ranks.append(list(chain.from_iterable(sampler)))
        keys = [(position, repeat) for _, position, repeat in ranks[-1]]
        assert len(set(keys)) == len(keys), "the same draw twice would be augmented the same"
    return [position for step in zip(*ranks, strict=True) for _, position, _ in step]


@pytest.mark.parametrize("per_class", [(90, 6), (40, 40, 16), (3, 3, 90), (32, 32, 32)])
@pytest.mark.parametrize("world_size", [1, 2])
def test_balanced_draws_as_many_of_each_class(per_class: Sequence[int], world_size: int) -> None:
    samples = table(per_class)
    weights = training_weights(samples, np.arange(len(samples)), "balanced", None)
    assert weights is not None
    totals = np.zeros(len(samples), dtype=int)
    for epoch in range(12):
        positions = drawn(samples, weights, epoch, world_size)
        assert len(positions) == len(samples) == 96
        counts = np.bincount(samples.labels[positions], minlength=len(per_class))
        assert np.abs(counts - 96 / len(per_class)).max() <= 1
        times = np.bincount(positions, minlength=len(samples))
        expected = 96 / len(per_class) / np.array(per_class)[samples.labels]
        assert (np.abs(times - expected) < 1).all()
        totals += times
    assert totals.min() > 0, "an image that is never drawn"


def test_processes_draw_what_one_does() -> None:
    samples = table((80, 16))
    weights = training_weights(samples, np.arange(96), "balanced", None)
    assert weights is not None
    assert drawn(samples, weights, 3, world_size=2) == drawn(samples, weights, 3, world_size=1)
    assert drawn(samples, weights, 3) != drawn(samples, weights, 4)


def test_weights_from_a_file(tmp_path: Path) -> None:
    samples = table((40, 40))
    path = tmp_path / "weights.csv"
    lines = [f"{samples.relative_path(row)},{[0, 1, 3][row % 3]}" for row in range(80)]
    path.write_text("\n".join(["path,weight", *lines]))
    weights = training_weights(samples, np.arange(80), "weighted", str(path))
    assert weights is not None
    times = np.bincount(np.concatenate([drawn(samples, weights, epoch) for epoch in range(60)]), minlength=80) / 60
    expected = weights * 80 / weights.sum()
    assert (times[weights == 0] == 0).all()
    assert np.abs(times - expected).max() < 0.25


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no column 'path', it is empty"),
        ("path,wieght\n", "no column 'weight', .*did you mean wieght"),
        ("path,weight\n0/0.jpg,many\n", "line 2: weight 'many'"),
        ("path,weight\n0/0.jpg,-1\n", "line 2: weight '-1' is not a number from 0 on"),
        ("path,weight\n0/0.jpg,inf\n", "line 2: weight 'inf'"),
        ("path,weight\n0/0.jpg\n", "line 2 has 1 cells"),
        ("path,weight\n0/0.jpg,1\n0/0.jpg,2\n", "line 3: 0/0.jpg has two weights"),
        ("path,weight\n0/0.jpg,1\n", "no weight for 0/1.jpg and 1 more"),
        (
            "path,weight\n0/0.jpg,0\n0/1.jpg,0\n1/2.jpg,0\n",
            r"all weights .* are 0: .*data\.sampler=shuffle",
        ),
    ],
)
def test_a_file_of_weights_that_does_not_fit(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "weights.csv"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        training_weights(table((2, 1)), np.arange(3), "weighted", str(path))


def test_settings_that_do_not_fit() -> None:
    with pytest.raises(UserError, match=r"data\.sampler=balance is unknown: did you mean balanced"):
        require_sampler("balance", None)
    for sampler, file in (("weighted", None), ("shuffle", "w.csv")):
        with pytest.raises(UserError, match="go together"):
            require_sampler(sampler, file)


def test_class_weights_have_a_mean_of_one_over_the_samples() -> None:
    labels = np.array([0] * 12 + [1] * 3 + [3])
    weights = balanced_class_weights(labels, 4)
    assert weights[2] == 0
    assert {type(weight) for weight in weights} == {float}
    assert np.mean([weights[label] for label in labels]) == pytest.approx(1)
    assert [weight * count for weight, count in zip(weights, (12, 3, 0, 1), strict=True)] == pytest.approx(
        [16 / 3, 16 / 3, 0, 16 / 3]
    )
