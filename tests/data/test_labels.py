"""Several labels an image: how they are read, counted, divided and drawn."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from classifier.data import AnnotationCropDataModule, ClassificationDataModule, ImageFolderDataModule, TableDataModule
from classifier.data.labels import MULTI, classes_of, strata, with_label_sets
from classifier.data.loader import training_weights
from classifier.data.samples import group_ids
from classifier.data.split import Splitting
from classifier.errors import UserError
from tests import generate

TABLE = {"table": "labels.csv", "label_column": "labels", "label_separator": "|", "num_workers": 0, "image_size": 32}


def opened(root: Path, **settings: Any) -> ClassificationDataModule:
    datamodule = TableDataModule(root, **{**TABLE, "task": MULTI, **settings})
    datamodule.setup()
    return datamodule


def listed(root: Path, text: str, **settings: Any) -> pd.DataFrame:
    for name in "abc":
        generate.save(generate.picture("white"), root / f"{name}.png")
    (root / "labels.csv").write_text(text)
    return TableDataModule(root, **{"table": "labels.csv", "task": MULTI, **settings}).read()


def test_a_batch_has_a_row_of_targets_for_each_image(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = generate.tagged(tmp_path, 60)
    with caplog.at_level(logging.WARNING):
        datamodule = opened(tmp_path, batch_size=8)
    bare = sum(not names for names in found.values())
    assert f"{bare} of 60 images" in caplog.text
    assert datamodule.classes == generate.CLASSES
    names = [found[path] for path in datamodule.samples["path"]]
    assert datamodule.samples["label"].tolist() == ["|".join(of_image) for of_image in names]
    for batch in (next(iter(datamodule.train_dataloader())), next(iter(datamodule.val_dataloader()))):
        assert batch["label"].dtype == torch.float32
        expected = [[float(name in names[row]) for name in generate.CLASSES] for row in batch["index"].tolist()]
        assert batch["label"].tolist() == expected
    counts = datamodule.class_counts("train")
    assert counts.to_dict() == {
        name: sum(name in names[row] for row in datamodule.rows("train")) for name in generate.CLASSES
    }


@pytest.mark.parametrize(
    ("text", "settings", "problem"),
    [
        ("path,cat,dog\na.png,1,0\nb.png,1,2\nc.png,-1,0\n", {"label_columns": "all"}, "'2' in the column dog"),
        ("path,cat,dog\na.png,1,0\nb.png,-1,1\nc.png,0,1\n", {"label_columns": ["cat", "dog"]}, "'-1'"),
        ("path,cat,dog\na.png,1,0\nb.png,,1\nc.png,0,1\n", {"label_columns": "all"}, "'' in the column cat"),
        ("path,label\na.png,cat\nb.png,cat|dog\nc.png,dog\n", {}, "data.label_separator"),
        ('path,label\na.png,"[""cat""]"\nb.png,cat\nc.png,[]\n', {"label_separator": "json"}, "data.label_separator"),
        ("path,label\na.png,cat dog\nb.png,a|b\nc.png,\n", {"label_separator": ""}, "'a|b' holds |"),
        ("path,cat,dog\na.png,1,0\nb.png,1,1\nc.png,0,1\n",
         {"label_columns": "all", "task": "single_label"}, "task=multi_label"),
    ],
)  # fmt: skip
def test_what_is_no_label_is_a_problem_of_its_line(
    text: str, settings: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    problems = listed(tmp_path, text, **settings).reindex(columns=["problem"])["problem"].dropna()
    assert 1 in problems.index
    assert "line 3" in problems[1]
    assert problem in problems[1]


@pytest.mark.parametrize("settings", [{}, {"label_separator": "|"}])
def test_another_separator_is_told(settings: dict[str, Any], tmp_path: Path) -> None:
    text = "path,label\na.png,cat dog\nb.png,cat\nc.png,dog\n"
    with pytest.raises(UserError, match=r'data\.label_separator=" "'):
        listed(tmp_path, text, **settings)


@pytest.mark.parametrize(
    ("text", "settings", "labels", "classes"),
    [
        ("path,dog,cat\na.png,-1,1\nb.png,1,1\nc.png,-1,-1\n", {"label_columns": "all"}, ["cat", "cat|dog", ""], 2),
        ("path,cat,dog,ant\na.png,yes,No,0\nb.png,true,1.0,0\nc.png,0,false,0\n", {"label_columns": "all"},
         ["cat", "cat|dog", ""], 3),
        ("x,id,cat,dog\n1,a.png,1,0\n2,b.png,1,1\n3,c.png,0,0\n",
         {"label_columns": ["dog", "cat"], "path_column": "id"}, ["cat", "cat|dog", ""], 2),
        ('path,label\na.png,"dog, cat,dog"\nb.png," cat"\nc.png,\n', {"label_separator": ","},
         ["cat|dog", "cat", ""], 2),
        ("path,label\nb.png,dog\na.png,10\nb.png,9\nb.png,dog\n", {}, ["9|dog", "10"], 3),
        ("path,cat,dog\na.png,1,0\nb.png,0,1\n", {"label_columns": "all", "task": "single_label"}, ["cat", "dog"], 2),
    ],
)  # fmt: skip
def test_sets_are_in_the_order_of_the_classes(
    text: str, settings: dict[str, Any], labels: list[str], classes: int, tmp_path: Path
) -> None:
    table = listed(tmp_path, text, **settings)
    assert "problem" not in table
    assert table["label"].tolist() == labels
    assert len(classes_of(table["label"], settings.get("task", MULTI))) == classes


def test_a_parquet_file_has_columns_of_classes_too(tmp_path: Path) -> None:
    listed(tmp_path, "path,label\na.png,cat\n")
    cells = pd.DataFrame({"path": ["a.png", "b.png"], "cat": [True, False], "dog": [1.0, 1.0]})
    cells.to_parquet(tmp_path / "labels.parquet")
    table = TableDataModule(tmp_path, table="labels.parquet", label_columns="all", task=MULTI).read()
    assert table["label"].tolist() == ["cat|dog", "dog"]


def test_boxes_become_the_labels_of_their_image(annotated: Path, folder: Path) -> None:
    datamodule = AnnotationCropDataModule(annotated, task=MULTI)
    table = datamodule.read()
    assert len(table) == 60
    assert "x1" not in table
    with pytest.raises(UserError, match="data=table"):
        ImageFolderDataModule(folder, task=MULTI).setup()
    with pytest.raises(UserError, match=r"data\.label_columns=cat"):
        TableDataModule("photos", table="labels.csv", label_columns="cat")


def random_sets(count: int, seed: int, groups: int | None = None) -> pd.DataFrame:
    """Of 12 classes, some of them rare; labels of a class in three images at least."""
    random = np.random.default_rng(seed)
    chances = 0.5 * random.random(12) ** 3
    sets = random.random((count, 12)) < chances
    names = ["|".join(f"c{place:02d}" for place in np.flatnonzero(row)) for row in sets]
    table = pd.DataFrame({"path": [f"{row}.png" for row in range(count)], "label": names})
    if groups is not None:
        table["group"] = random.integers(0, groups, count).astype(str)
    return with_label_sets(table, None, "it has")


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("fold", [None, 2])
def test_each_part_has_its_share_of_each_class(seed: int, fold: int | None) -> None:
    table = random_sets(400, seed)
    splitting = Splitting(0.1, 0.2, fold=fold, task=MULTI)
    parts = splitting.split(table)
    assert parts.equals(splitting.split(table))
    held = strata(table["label"], MULTI)[table["label"].cat.codes.to_numpy()].toarray()
    shares = {"test": 0.2, "val": 0.08, "train": 0.72}
    for part, share in shares.items():
        rows = (parts == part).to_numpy()
        assert rows.mean() == pytest.approx(share, abs=0.03)
        of_part, of_all = held[rows].sum(axis=0), held.sum(axis=0)
        assert np.all(np.abs(of_part - share * of_all) <= 4)
        assert of_part[of_all >= 5].all()


@pytest.mark.parametrize("fold", [None, 1])
def test_groups_stay_whole(fold: int | None) -> None:
    table = random_sets(600, seed=1, groups=120)
    parts = Splitting(fold=fold, task=MULTI).split(table)
    assert parts.groupby(group_ids(table)).nunique().max() == 1
    assert (parts == "test").mean() == pytest.approx(0.2, abs=0.05)
    with pytest.raises(UserError, match=r"data\.num_folds="):
        Splitting(fold=0, num_folds=121, task=MULTI).split(table)


def test_a_limit_holds_for_each_class_and_keeps_the_rare_ones() -> None:
    table = random_sets(400, seed=3)
    kept = table[Splitting(0, 0, limit_per_class=6, task=MULTI).split(table).notna()]
    before, after = (
        strata(rows["label"], MULTI)[rows["label"].cat.codes.to_numpy()].sum(axis=0) for rows in (table, kept)
    )
    assert after.max() == 6
    assert np.all(after[before > 0] > 0)


def test_balanced_draws_by_the_rarest_label() -> None:
    texts = ["cat"] * 8 + ["cat|dog"] * 2 + [""] * 4
    table = with_label_sets(pd.DataFrame({"path": map(str, range(14)), "label": texts}), None, "it has")
    weights = training_weights(table, np.arange(14), "balanced", None, MULTI)
    assert weights is not None
    assert weights.tolist() == [1 / 10] * 8 + [1 / 2] * 2 + [1 / 4] * 4
