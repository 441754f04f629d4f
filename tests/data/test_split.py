import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from classifier.data.samples import SPLITS, group_ids, image_ids, labels_of
from classifier.data.split import Splitting, grouped, read_split, write_split
from classifier.errors import UserError, as_typed
from tests.data.tables import make_table


def images(per_class: Sequence[int], boxes_each: int = 1, splits: Sequence[str | None] | None = None) -> pd.DataFrame:
    """Class `k` has per_class[k] images of `boxes_each` boxes; `splits` repeat over the images."""
    rows = [
        (f"{label}/{image:03d}.jpg", label, (number, 0, number + 5, 5), (splits or [None])[image % len(splits or [0])])
        for label, count in enumerate(per_class)
        for image in range(count)
        for number in range(boxes_each)
    ]
    paths, labels, boxes, parts = zip(*rows, strict=True)
    more = {"boxes": boxes if boxes_each > 1 else None, "splits": parts if splits else None}
    return make_table(paths, labels, [str(label) for label in range(len(per_class))], **more)


def in_groups(count: int, members: int, seed: int = 0) -> pd.DataFrame:
    """`count` groups of about `members` images of one of three classes."""
    random = np.random.default_rng(seed)
    groups = [group for group in range(count) for _ in range(int(random.integers(1, 2 * members)))]
    names = [f"patient_{group}" for group in groups]
    paths = [f"{name}/{row}.jpg" for row, name in enumerate(names)]
    return make_table(paths, [group % 3 for group in groups], "abc", groups=names)


def rows_of(parts: pd.Series) -> dict[str, list[int]]:
    found = {name: np.flatnonzero(parts == name).tolist() for name in SPLITS}
    assert parts.isna().sum() + sum(map(len, found.values())) == len(parts)
    return {name: rows for name, rows in found.items() if rows}


def divide(table: pd.DataFrame, **settings: Any) -> dict[str, list[int]]:
    return rows_of(Splitting(**settings).split(table))


def sides(split: dict[str, list[int]], ids: np.ndarray) -> set[int]:
    """On how many sides the units lie."""
    places = [part for part, rows in split.items() for part in set(ids[rows].tolist())]
    return set(np.unique(places, return_counts=True)[1].tolist())


@pytest.mark.parametrize("per_class", [(20, 20, 20), (100, 10, 37), (1, 2, 3, 5), (1,), (2,), (3,), (5,), (0, 8)])
@pytest.mark.parametrize("boxes_each", [1, 3])
def test_disjoint_exhaustive_and_stratified(per_class: Sequence[int], boxes_each: int) -> None:
    table = images(per_class, boxes_each)
    ids, labels = image_ids(table), labels_of(table)
    for val, test in [(0.1, 0.2), (0.3, 0.3), (0.0, 0.25), (0.25, 0.0), (0.05, 0.05), (0.0, 0.0)]:
        split = divide(table, val_fraction=val, test_fraction=test)
        assert sorted(itertools.chain(*split.values())) == list(range(len(table)))
        assert sides(split, ids) == {1}
        assert val or "val" not in split
        assert test or "test" not in split
        found = {
            name: np.bincount(labels[split.get(name, [])], minlength=len(per_class)) / boxes_each for name in SPLITS
        }
        counts = np.array(per_class)
        assert (np.abs(found["test"] - counts * test) <= 1).all()
        assert (np.abs(found["val"] - (counts - found["test"]) * val) <= 1).all()
        if test:
            assert found["test"][counts >= 3].all()
        if val:
            assert found["val"][(counts - found["test"] >= 3)].all()
        assert found["train"][counts > 0].all()


def test_the_division_is_the_same_on_every_machine() -> None:
    digests = []
    for table in (images((30, 20, 9)), in_groups(20, 3)):
        for fold in (None, 1):
            split = divide(table, fold=fold)
            rows = np.concatenate([split[name] for name in SPLITS]).astype("<i8")
            digests.append(hashlib.sha256(rows.tobytes()).hexdigest()[:12])
    assert digests == ["00d419446736", "651cc50c5f90", "aee3c99d93e0", "9fadeca50c47"]


@pytest.mark.parametrize("rest", ["train", None])
def test_a_prescribed_test_part_is_untouched(rest: str | None) -> None:
    table = images((20, 20), splits=[rest, rest, rest, "test"])
    split = divide(table, val_fraction=0.2, test_fraction=0.5)
    assert split["test"] == np.flatnonzero(table["split"] == "test").tolist()
    assert len(split["val"]) == 6
    assert len(split["train"]) == 24
    folds = [divide(table, fold=fold, num_folds=3) for fold in range(3)]
    assert all(fold["test"] == split["test"] for fold in folds)
    assert sorted(itertools.chain(*(fold["val"] for fold in folds))) == sorted(split["train"] + split["val"])


@pytest.mark.parametrize("given", [["train", "val", "test"], ["train", "val"]])
def test_all_prescribed_parts_are_taken_as_they_are(given: list[str]) -> None:
    table = images((12, 12), splits=given)
    assert divide(table) == {name: np.flatnonzero(table["split"] == name).tolist() for name in given}


@pytest.mark.parametrize("per_class", [(20, 20, 20), (100, 11, 37), (5, 7), (1, 2, 9)])
@pytest.mark.parametrize("boxes_each", [1, 3])
def test_folds_are_disjoint_exhaustive_and_stratified(per_class: Sequence[int], boxes_each: int) -> None:
    table = images(per_class, boxes_each)
    for num_folds in (2, 3, 5):
        folds = [divide(table, fold=fold, num_folds=num_folds) for fold in range(num_folds)]
        assert sorted(itertools.chain(*(fold["test"] for fold in folds))) == list(range(len(table)))
        for split in folds:
            assert sorted(itertools.chain(*split.values())) == list(range(len(table)))
            assert sides(split, image_ids(table)) == {1}
            counts = np.bincount(labels_of(table)[split["test"]], minlength=len(per_class)) / boxes_each
            assert (np.abs(counts - np.array(per_class) / num_folds) <= 1).all()


@pytest.mark.parametrize(("val", "test"), [(0.1, 0.2), (0.3, 0.3), (0.15, 0.0)])
@pytest.mark.parametrize("count", [12, 90])
def test_groups_stay_on_one_side(count: int, val: float, test: float) -> None:
    table = in_groups(count, 6)
    split = divide(table, val_fraction=val, test_fraction=test)
    assert sorted(itertools.chain(*split.values())) == list(range(len(table)))
    assert sides(split, group_ids(table)) == {1}
    assert split["val"]
    if count == 90:
        assert abs(len(split.get("test", ())) / len(table) - test) < 0.06
        for rows in split.values():  # stratified as far as whole groups can be
            shares = np.bincount(labels_of(table)[rows], minlength=3) / len(rows)
            assert np.abs(shares - np.bincount(labels_of(table)) / len(table)).max() < 0.12


@pytest.mark.parametrize(("pattern", "place"), [(r"^\d+", 0), (r"/(\d)\d+", 2)])
def test_groups_by_a_pattern_in_the_path(pattern: str, place: int) -> None:
    table = grouped(images((12, 12)), pattern)
    found, wanted = group_ids(table).tolist(), table["path"].str[place].tolist()
    assert len(set(zip(found, wanted, strict=True))) == len(set(found)) == len(set(wanted))
    broken = images((3, 3)).assign(problem=pd.Series([None] * 5 + ["empty"], dtype="str"))
    broken.loc[5, "path"] = "line five"
    assert grouped(broken, pattern)["group"].notna().tolist() == [True] * 5 + [False]


@pytest.mark.parametrize("pattern", ["(", "dog", "", "x*", r"^(x*)\d", "0/|(1)/"])
def test_a_pattern_that_does_not_fit(pattern: str) -> None:
    with pytest.raises(UserError) as error:
        grouped(images((3, 3)), pattern)
    assert f"data.group_pattern={pattern}" in str(error.value)
    assert pattern == "(" or "0/000.jpg" in str(error.value)


@pytest.mark.parametrize("limit", [1, 3, 50])
def test_a_limit_takes_from_every_class(limit: int) -> None:
    table = images((40, 30, 4))
    whole, limited, smaller = (divide(table, limit_per_class=most) for most in (None, limit, max(1, limit - 1)))
    assert list(whole) == list(limited)
    for name, rows in limited.items():
        assert set(smaller[name]) <= set(rows) <= set(whole[name])
        counts = np.bincount(labels_of(table)[whole[name]], minlength=3)
        assert np.bincount(labels_of(table)[rows], minlength=3).tolist() == np.minimum(counts, limit).tolist()


@pytest.mark.parametrize(
    ("settings", "table", "remedy"),
    [
        ({"fold": 0, "num_folds": 9}, images((3, 3)), "data.num_folds=3"),
        ({"fold": 0, "num_folds": 9}, in_groups(5, 9), "data.num_folds=5"),
        ({"fold": 0, "num_folds": 2}, images((1, 1, 1)), "data.fold=null"),
        (
            {"val_fraction": 0.3, "test_fraction": 0.0},
            make_table(list("wxyz"), range(4), "abcd", groups=["one", "one", "two", "three"]),
            "data.val_fraction=0",
        ),
    ],
)
def test_too_few_to_divide(settings: dict[str, Any], table: pd.DataFrame, remedy: str) -> None:
    with pytest.raises(UserError, match=rf"use {remedy}$"):
        divide(table, **settings)


@pytest.mark.parametrize("boxes_each", [1, 2])
def test_a_split_is_written_and_read_back(tmp_path: Path, boxes_each: int) -> None:
    table = images((9, 11), boxes_each)
    parts = Splitting(0.2, 0.2, split_seed=1, limit_per_class=6).split(table)
    write_split(tmp_path / "split.csv", table.assign(split=parts))
    pd.testing.assert_series_equal(read_split(tmp_path / "split.csv", table), parts, check_names=False)
    written = pd.read_csv(tmp_path / "split.csv")
    assert list(written) == ["path", "label", "split", "box"]
    assert written["split"].tolist() == sorted(parts.dropna(), key=SPLITS.index)
    later = images((13, 14), boxes_each)  # new files move nothing
    again = read_split(tmp_path / "split.csv", later)
    assert again[later["path"].isin(table["path"])].tolist() == pytest.approx(parts.tolist(), nan_ok=True)
    assert again[~later["path"].isin(table["path"])].isna().all()


def test_samples_that_are_gone_are_named(tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    write_split(path, images((10, 10)).assign(split="train"))
    with pytest.raises(UserError, match=r"2 of the 20 .* 1/00[89]\.jpg .*data\.split_file=null"):
        read_split(path, images((10, 8)))
    # beside a box that is there twice
    boxes = make_table(["0.jpg", "0.jpg", "1.jpg"], [0, 0, 1], boxes=[(0, 0, 5, 5)] * 3)
    write_split(path, boxes.assign(split="train"))
    with pytest.raises(UserError, match=r"1\.jpg"):
        read_split(path, boxes.head(2))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, ""),
        (b"", "path"),
        (b"path,splits\n0/000.jpg,train\n", "splits"),
        (b"path,label,split,box\n0/000.jpg,0\n", "line 2"),
        (b"path,split\n\n0/000.jpg,trian\n", "line 3"),
        (b"path,split\n0/000.jpg,train\n0/000.jpg,val\n", "line 3"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\r\0", ""),
    ],
)
def test_a_malformed_split_file_is_a_user_error(tmp_path: Path, content: bytes | None, named: str) -> None:
    path = tmp_path / "split.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"split\.csv.*data\.split_file=null") as error:
        read_split(path, images((3, 3)))
    assert named in str(error.value)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_an_own_split_file(separator: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As a spreadsheet saves it, with the usual names of parts, for whole images; not for all."""
    lines = [["path", "note", "split"], ["0/000.jpg", "", "TRAIN"], [], ["0/001.jpg", "", "validation"]]
    lines.append(["1/001.jpg", "x", " Testing"])
    path = tmp_path / "mine.csv"
    path.write_text("\r\n".join(map(separator.join, lines)), encoding="utf-8-sig", newline="")
    with caplog.at_level("INFO"):
        found = rows_of(read_split(path, images((3, 3), boxes_each=2)))
    assert found == {"train": [0, 1], "val": [2, 3], "test": [8, 9]}
    assert "6 of the 12" in caplog.text


def test_the_seed_decides() -> None:
    first, again, other = (divide(images((30, 30)), split_seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first["test"] != other["test"]


BAD: dict[str, tuple[Any, ...]] = {
    "fold": (5, -1, "many"),
    "num_folds": (1, 2.5),
    "limit_per_class": (0, True),
    "split_seed": (-1, 2**32 - 1),
    "val_fraction": (-0.1, None),
    "test_fraction": (float("nan"), "some"),
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in BAD.items() for value in values])
def test_settings_out_of_range(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"data.{key}={as_typed(value)}"):
        Splitting(**{key: value})
    with pytest.raises(UserError, match=r"data\.val_fraction=0\.6 .*data\.test_fraction=0\.5"):
        Splitting(0.6, 0.5)
