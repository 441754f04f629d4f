"""Evaluating a checkpoint, with nothing but its path."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import generate
from tests.verbs.command import BARE, evaluated, finish, metrics, of_test, refuse, rows, start, succeed


def of_latest(cwd: Path, output: Path | str, *arguments: str) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Metrics and predictions.csv of an evaluation of the run below cwd/logs."""
    found = evaluated(cwd, *arguments, ckpt_path="latest", output=str(output))
    return found, rows(cwd / output / "predictions.csv")


def test_reproduces_the_test_of_the_training(workplace: Path, trained: Path, tmp_path: Path) -> None:
    found, table = of_latest(workplace, tmp_path / "out", "top_k=2")
    assert of_test(found) == of_test(metrics(trained))
    assert list(table[0]) == ["path", "status", "label", "confidence", "label_2", "confidence_2", "target"]
    assert len(table) == 15
    assert all(row["path"].startswith(row["target"]) and row["status"] == "ok" for row in table)
    assert all(float(row["confidence"]) >= float(row["confidence_2"]) for row in table)
    assert sum(row["label"] == row["target"] for row in table) / 15 == pytest.approx(found["test/acc"], abs=1e-6)


@pytest.mark.slow
def test_two_processes_equal_one(workplace: Path, trained: Path, tmp_path: Path) -> None:
    finish(start("eval", f"ckpt_path={trained}", "trainer=ddp_sim", f"output_dir={tmp_path / 'two'}", cwd=workplace))
    alone, table = of_latest(workplace, tmp_path / "one")
    assert metrics(tmp_path / "two") == pytest.approx(alone, rel=1e-6)
    left, right = table, rows(tmp_path / "two" / "predictions.csv")
    for name in ("path", "label", "target"):
        assert [row[name] for row in left] == [row[name] for row in right]


@pytest.mark.parametrize(("split", "count"), [("train", 40), ("val", 6), ("all", 61)])
def test_other_splits(split: str, count: int, workplace: Path, tmp_path: Path) -> None:
    found, table = of_latest(workplace, tmp_path / "out", f"split={split}")
    assert len(table) == count
    assert f"{split}/acc" in found


def test_another_folder_is_evaluated_whole(workplace: Path, tmp_path: Path) -> None:
    """And as the model was trained: `data=folder` by itself brings 224 pixels, the model saw 32."""
    new = generate.image_folder(tmp_path / "new", ("red", "blue"), per_class=4, seed=99)
    found, table = of_latest(workplace, tmp_path / "out", f"data.root={new}")
    assert len(table) == 8
    assert {row["target"] for row in table} == {"red", "blue"}
    again, table = of_latest(workplace, tmp_path / "again", "data=folder", f"data.root={new}", "data.num_workers=0")
    assert again == found
    assert len(table) == 8


@pytest.mark.parametrize(
    ("divided_by", "per_class"),
    [
        pytest.param(("data.fold=0", "data.num_folds=7"), 2, marks=pytest.mark.slow),
        ((r"data.group_pattern='^[a-z]+/(\d\d|ex)'",), 2),
        pytest.param(("data.limit_per_class=3",), 5, marks=pytest.mark.slow),
        pytest.param(("data.split_file={}",), 2, marks=pytest.mark.slow),
    ],
)
def test_the_division_of_the_training_is_not_for_another_folder(
    divided_by: tuple[str, ...], per_class: int, workplace: Path, trained: Path, tmp_path: Path
) -> None:
    divided_by = tuple(text.format(trained / "split.csv") for text in divided_by)
    short = ("data.batch_size=4", "trainer.limit_train_batches=2", f"data.root={workplace / 'photos'}")
    succeed("train", *BARE, *short, *divided_by, cwd=tmp_path)
    for name in ("red", "blue"):
        for number in range(per_class):
            generate.save(generate.picture(name, seed=number), tmp_path / "new" / name / f"x{number}.jpg")
    found, table = of_latest(tmp_path, "new_folder", "data.root=new")
    assert len(table) == 2 * per_class
    assert "all/acc" in found
    (run_dir,) = (tmp_path / "logs" / "folder_cnn").iterdir()
    assert of_test(of_latest(tmp_path, "own_folder")[0]) == of_test(metrics(run_dir))
    _, table = of_latest(tmp_path, "divided", "data.root=new", "split=all", "data.fold=1", "data.num_folds=2")
    assert len(table) == 2 * per_class


@pytest.mark.slow
def test_other_arrays_and_tables_are_other_data(tmp_path: Path) -> None:
    """Of the same file, or without a root: all images are new, and the run's split is not of them."""
    generate.arrays(tmp_path / "set.npz", X_new=np.zeros((6, 40, 48, 3), np.uint8), Y_new=np.arange(6) % 3)
    succeed("train", "data=arrays", "experiment=null", *BARE[1:], "data.root=set.npz", cwd=tmp_path)
    assert len(of_latest(tmp_path, "of_arrays", "data.x_test=X_new", "data.y_test=Y_new")[1]) == 6
    generate.table(tmp_path / "set")
    generate.table(tmp_path / "new", per_class=3)
    arguments = ("data=table", "data.table=set/labels.csv", "data.path_column=file_name", "data.images=images")
    succeed("train", *BARE, *arguments, cwd=tmp_path)
    assert len(of_latest(tmp_path, "of_tables", "data.table=new/labels.csv")[1]) == 9


@pytest.mark.slow
def test_another_spelling_of_the_folder_is_the_same_data(workplace: Path, tmp_path: Path) -> None:
    """Else the images of the training would be evaluated as new ones."""
    for number, spelling in enumerate(("photos/", "./photos", workplace / "photos")):
        _, table = of_latest(workplace, tmp_path / f"out{number}", f"data.root={spelling}")
        assert len(table) == 15


def test_files_added_later_stay_out(workplace: Path, tmp_path: Path) -> None:
    before, _ = of_latest(workplace, tmp_path / "before")
    added = generate.save(generate.picture("blue", seed=5), workplace / "photos" / "red" / "000_mislabelled.jpg")
    try:
        after, table = of_latest(workplace, tmp_path / "after")
    finally:
        added.unlink()
    assert after == before
    assert "red/000_mislabelled.jpg" not in {row["path"] for row in table}


def test_copies_are_grouped_as_in_training(folder: Path, tmp_path: Path) -> None:
    """Without the run's split.csv, too: the images are grouped once more."""
    root = generate.copy(folder, tmp_path / "photos")
    for number in range(12):
        (root / "red" / f"x{number:03d}.jpg").write_bytes((root / "red" / f"{number:03d}.jpg").read_bytes())
    succeed("train", *BARE, "data.root=photos", "data.group_duplicates=true", cwd=tmp_path)
    (run_dir,) = (tmp_path / "logs" / "folder_cnn").iterdir()
    parts = {row["path"]: row["split"] for row in rows(run_dir / "split.csv")}
    assert all(part == parts[path.replace("x", "")] for path, part in parts.items() if "/x" in path)
    (run_dir / "split.csv").unlink()
    assert of_test(of_latest(tmp_path, "out")[0]) == of_test(metrics(run_dir))


def test_default_place_and_speed(workplace: Path, trained: Path) -> None:
    succeed("eval", f"ckpt_path={trained}", "trainer=cpu", cwd=workplace)
    (output,) = (trained / "eval").iterdir()
    assert {path.name for path in output.iterdir()} == {"metrics.json", "predictions.csv"}
    for speed, precision in (("fast", "bf16-mixed"), ("default", "32-true")):
        shown = succeed("eval", f"ckpt_path={trained}", f"speed={speed}", "--cfg", "job", cwd=workplace)
        assert f"precision: {precision}" in shown.out


def test_wrong_input(workplace: Path) -> None:
    message = refuse("eval", "ckpt_path=latest", "data.fold=1", cwd=workplace)
    assert "data.fold=1" in message
    assert "data.split_file" in message
    assert "output_dir=" in refuse("eval", "ckpt_path=latest", "output_dir=photos/out", cwd=workplace)
    for verb, more in (("eval", ()), ("predict", ("inputs=photos",))):
        assert "flip=sometimes" in refuse(verb, "ckpt_path=latest", *more, "flip=sometimes", cwd=workplace)
