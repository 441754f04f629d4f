import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from classifier.data.samples import SPLITS, UNASSIGNED, Samples
from classifier.data.split import Split, Splitting, grouped
from classifier.errors import UserError

ROOT = Path("/photos")


def table(per_class: Sequence[int], boxes_each: int = 1, splits: Sequence[str | None] | None = None) -> Samples:
    """Class `k` has per_class[k] images of `boxes_each` boxes; `splits` repeat over the images."""
    paths, labels, boxes, parts = [], [], [], []
    for label, count in enumerate(per_class):
        for image in range(count):
            part = splits[image % len(splits)] if splits else None
            for number in range(boxes_each):
                paths.append(f"{label}/{image:03d}.jpg")
                labels.append(label)
                boxes.append((number, 0, number + 5, 5))
                parts.append(UNASSIGNED if part is None else SPLITS.index(part))
    names = [str(label) for label in range(len(per_class))]
    return Samples.build(ROOT, names, paths, labels, boxes=boxes if boxes_each > 1 else None, splits=parts)


def parts(samples: Samples, split: Split) -> dict[str, list[tuple[str, object]]]:
    return {name: sorted((samples.relative_path(r), samples.box(r)) for r in rows) for name, rows in split.items()}


@pytest.mark.parametrize("per_class", [(20, 20, 20), (100, 10, 37), (1, 2, 3, 5), (1,), (2,), (3,), (5,), (0, 8)])
@pytest.mark.parametrize("boxes_each", [1, 3])
@pytest.mark.parametrize(("val", "test"), [(0.1, 0.2), (0.3, 0.3), (0.0, 0.25), (0.25, 0.0), (0.05, 0.05), (0.0, 0.0)])
def test_disjoint_exhaustive_and_stratified(per_class: Sequence[int], boxes_each: int, val: float, test: float) -> None:
    samples = table(per_class, boxes_each)
    split = Splitting(val, test, split_seed=0).split(samples)
    assert sorted(np.concatenate(list(split.values())).tolist()) == list(range(len(samples)))
    assert all((np.diff(rows) > 0).all() for rows in split.values())
    images = {name: set(samples.image_ids()[rows].tolist()) for name, rows in split.items()}
    assert sum(map(len, images.values())) == sum(per_class), "an image lies on two sides"
    assert val or "val" not in split
    assert test or "test" not in split
    label_of_image = dict(zip(samples.image_ids().tolist(), samples.labels.tolist(), strict=True))
    for label, count in enumerate(per_class):
        found = {name: sum(label_of_image[image] == label for image in ids) for name, ids in images.items()}
        assert abs(found.get("test", 0) - count * test) <= 1
        assert abs(found.get("val", 0) - (count - found.get("test", 0)) * val) <= 1
        if count >= 3 and test:
            assert found["test"] >= 1
            assert not val or found.get("val", 0) >= 1 or found["train"] < 3
        if count:
            assert found["train"] >= 1


def test_the_seed_decides() -> None:
    samples = table((30, 30))
    first, again, other = (parts(samples, Splitting(0.2, 0.2, seed).split(samples)) for seed in (3, 3, 4))
    assert first == again
    assert first["test"] != other["test"]
    assert first["val"] != other["val"]
    assert (
        Splitting(0.2, 0.0, 3).split(samples)["val"].tolist() != Splitting(0.2, 0.0, 4).split(samples)["val"].tolist()
    )


def test_an_image_with_objects_of_two_classes_stays_whole() -> None:
    paths = [f"{image}.jpg" for image in range(20) for _ in range(2)]
    samples = Samples.build(ROOT, ["a", "b"], paths, [0, 1] * 20, boxes=[(0, 0, 1, 1), (1, 1, 2, 2)] * 20)
    split = Splitting(0.2, 0.2, split_seed=0).split(samples)
    sides = Counter(image for rows in split.values() for image in set(samples.image_ids()[rows].tolist()))
    assert set(sides.values()) == {1}
    assert [len(split[name]) for name in SPLITS] == [26, 6, 8]  # boxes: 13, 3 and 4 images


@pytest.mark.parametrize("rest", ["train", None])
def test_an_official_test_part_is_untouched(rest: str | None) -> None:
    samples = table((20, 20), splits=[rest, rest, rest, "test"])
    split = Splitting(0.2, 0.5, split_seed=0).split(samples)
    assert split["test"].tolist() == np.flatnonzero(samples.splits == 2).tolist()
    assert len(split["val"]) == 6
    assert sorted([*split["train"], *split["val"]]) == np.flatnonzero(samples.splits != 2).tolist()


@pytest.mark.parametrize("given", [["train", "val", "test"], ["train", "val"]])
def test_all_prescribed_parts_are_taken_as_they_are(given: list[str]) -> None:
    samples = table((12, 12), splits=given)
    split = Splitting(0.3, 0.3, split_seed=0).split(samples)
    assert list(split) == given
    for name in given:
        assert split[name].tolist() == np.flatnonzero(samples.splits == SPLITS.index(name)).tolist()


@pytest.mark.parametrize("per_class", [(20, 20, 20), (100, 11, 37), (5, 7), (1, 2, 9)])
@pytest.mark.parametrize("boxes_each", [1, 3])
@pytest.mark.parametrize("num_folds", [2, 3, 5])
def test_folds_are_disjoint_exhaustive_and_stratified(
    per_class: Sequence[int], boxes_each: int, num_folds: int
) -> None:
    samples = table(per_class, boxes_each)
    folds = [Splitting(0.2, fold=fold, num_folds=num_folds).split(samples) for fold in range(num_folds)]
    held_out = np.concatenate([split["test"] for split in folds])
    assert sorted(held_out.tolist()) == list(range(len(samples)))
    images = samples.image_ids()
    for split in folds:
        assert sorted(np.concatenate(list(split.values())).tolist()) == list(range(len(samples)))
        assert sum(len(np.unique(images[rows])) for rows in split.values()) == sum(per_class)
        counts = np.bincount(samples.labels[split["test"]], minlength=len(per_class)) / boxes_each
        assert (np.abs(counts - np.array(per_class) / num_folds) <= 1).all()


def test_a_fold_is_the_validation_part_beside_an_official_test_part() -> None:
    samples = table((20, 20), splits=["train", "val", "train", "test"])
    folds = [Splitting(fold=fold, num_folds=3).split(samples) for fold in range(3)]
    official = np.flatnonzero(samples.splits == 2).tolist()
    assert all(split["test"].tolist() == official for split in folds)
    held_out = np.concatenate([split["val"] for split in folds])
    assert sorted(held_out.tolist()) == np.flatnonzero(samples.splits != 2).tolist()


def in_groups(count: int, members: int, seed: int = 0) -> Samples:
    """`count` groups of about `members` images of one of three classes."""
    random = np.random.default_rng(seed)
    paths: list[str] = []
    labels, groups = [], []
    for group in range(count):
        for _ in range(int(random.integers(1, 2 * members))):
            paths.append(f"patient_{group}/{len(paths)}.jpg")
            labels.append(group % 3)
            groups.append(f"patient_{group}")
    return Samples.build(ROOT, ["a", "b", "c"], paths, labels, groups=groups)


@pytest.mark.parametrize(("val", "test"), [(0.1, 0.2), (0.3, 0.3), (0.15, 0.0)])
@pytest.mark.parametrize("count", [12, 90])
def test_groups_stay_on_one_side(count: int, val: float, test: float) -> None:
    samples = in_groups(count, 6)
    split = Splitting(val, test).split(samples)
    assert sorted(np.concatenate(list(split.values())).tolist()) == list(range(len(samples)))
    sides = Counter(group for rows in split.values() for group in set(samples.group_ids()[rows].tolist()))
    assert set(sides.values()) == {1}
    assert len(split["val"]) > 0
    if count == 90:
        assert abs(len(split.get("test", ())) / len(samples) - test) < 0.06
        for rows in split.values():  # stratified as far as whole groups can be
            shares = np.bincount(samples.labels[rows], minlength=3) / len(rows)
            assert np.abs(shares - np.bincount(samples.labels) / len(samples)).max() < 0.12


def test_folds_share_no_group() -> None:
    samples = in_groups(30, 4)
    folds = [Splitting(fold=fold, num_folds=4).split(samples) for fold in range(4)]
    assert sorted(np.concatenate([split["test"] for split in folds]).tolist()) == list(range(len(samples)))
    for split in folds:
        sides = Counter(group for rows in split.values() for group in set(samples.group_ids()[rows].tolist()))
        assert set(sides.values()) == {1}


def test_an_image_in_two_groups_joins_them() -> None:
    paths = ["a.jpg", "b.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg"]
    boxes = [(0, 0, 1, 1)] * 6
    groups = ["one", "one", "two", "two", "", ""]
    samples = Samples.build(ROOT, ["x", "y"], paths, [0] * 6, boxes=boxes, groups=groups)
    assert samples.group_ids().tolist() == [0, 0, 0, 0, 1, 2]


@pytest.mark.parametrize("pattern", [r"^\d+", r"/(\d)\d+"])
def test_groups_by_a_pattern_in_the_path(pattern: str) -> None:
    samples = grouped(table((12, 12)), pattern)
    found = samples.group_ids().tolist()
    place = 0 if pattern == r"^\d+" else 2  # of the class, or of the number's first digit
    wanted = [samples.relative_path(row)[place] for row in range(24)]
    assert len(set(zip(found, wanted, strict=True))) == len(set(found)) == len(set(wanted))


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", "no regular expression"),
        ("dog", r"finds nothing in 0/000"),
        ("", r"finds nothing in 0/000"),
        ("x*", r"finds nothing in 0/000"),
        (r"^(x*)\d", r"finds nothing in 0/000"),
        (r"0/|(1)/", r"finds nothing in 0/000"),
    ],
)
def test_a_pattern_that_does_not_fit(pattern: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"data\.group_pattern=.*{message}"):
        grouped(table((3, 3)), pattern)


@pytest.mark.parametrize("limit", [1, 3, 50])
def test_a_limit_takes_from_every_class(limit: int) -> None:
    samples = table((40, 30, 4))
    whole, limited = Splitting().split(samples), Splitting(limit_per_class=limit).split(samples)
    assert list(whole) == list(limited)
    for name, rows in limited.items():
        assert set(rows.tolist()) <= set(whole[name].tolist())
        assert (np.diff(rows) > 0).all()
        counts = np.bincount(samples.labels[whole[name]], minlength=3)
        assert np.bincount(samples.labels[rows], minlength=3).tolist() == np.minimum(counts, limit).tolist()
    smaller = Splitting(limit_per_class=max(1, limit - 1)).split(samples)
    assert all(set(smaller[name].tolist()) <= set(limited[name].tolist()) for name in limited)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fold": 5}, r"data\.fold=5 must be a whole number from 0 to 4, as data\.num_folds=5"),
        ({"fold": -1}, r"data\.fold=-1 must be a whole number from 0 to 4"),
        ({"num_folds": 1}, r"data\.num_folds=1 must be a whole number of at least 2"),
        ({"limit_per_class": 0}, r"data\.limit_per_class=0"),
        ({"split_seed": -1}, r"data\.split_seed=-1 must be a whole number from 0"),
        ({"split_seed": 2**32 - 1}, r"data\.split_seed=4294967295 must be a whole number from 0 to 4294967294"),
        *(
            ({key: value}, rf"data\.{key}={value} must be a whole number")
            for key in ("fold", "num_folds", "limit_per_class", "split_seed")
            for value in ("many", 2.5, True)
        ),
        *(
            ({key: value}, rf"data\.{key}={value} must be a number")
            for key in ("val_fraction", "test_fraction")
            for value in ("some", float("nan"), None)
        ),
        ({"val_fraction": 0.6, "test_fraction": 0.5}, r"data\.val_fraction=0\.6"),
    ],
)
def test_settings_out_of_range(settings: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Splitting(**settings)  # type: ignore[arg-type]


def test_more_folds_than_images_or_groups() -> None:
    with pytest.raises(UserError, match=r"data\.num_folds=9 is more than the 6 images: use data\.num_folds=6"):
        Splitting(fold=0, num_folds=9).split(table((3, 3)))
    with pytest.raises(UserError, match=r"data\.num_folds=9 is more than the 5 groups"):
        Splitting(fold=0, num_folds=9).split(in_groups(5, 9))
    with pytest.raises(UserError, match=r"data\.num_folds=5 is more than any class has members"):
        Splitting(fold=0, num_folds=5).split(table((3, 3)))
    with pytest.raises(UserError, match=r"more than any class has members: use data\.num_folds=3$"):
        Splitting(fold=0, num_folds=4).split(table((3, 3)))
    with pytest.raises(UserError, match=r"more than any class has members: use data\.fold=null$"):
        Splitting(fold=0, num_folds=2).split(table((1, 1, 1)))


@pytest.mark.parametrize("part", ["val", "test"])
def test_groups_of_which_no_part_can_be_cut(part: str) -> None:
    samples = Samples.build(ROOT, "abcd", list("wxyz"), range(4), groups=["one", "one", "two", "three"])
    fractions = {"val_fraction": 0.0, "test_fraction": 0.0, f"{part}_fraction": 0.3}
    with pytest.raises(UserError, match=rf"data\.{part}_fraction=0\.3 cannot .* use data\.{part}_fraction=0$"):
        Splitting(**fractions).split(samples)  # type: ignore[arg-type]


def test_the_division_is_the_same_on_every_machine() -> None:
    samples = in_groups(20, 3)
    digests = [
        hashlib.sha256(np.concatenate([split[name] for name in SPLITS]).astype("<i8").tobytes()).hexdigest()[:12]
        for split in (Splitting().split(table((30, 20, 9))), Splitting(fold=1).split(table((30, 20, 9))),
                      Splitting().split(samples), Splitting(fold=1).split(samples))
    ]  # fmt: skip
    assert digests == ["00d419446736", "651cc50c5f90", "aee3c99d93e0", "9fadeca50c47"]
