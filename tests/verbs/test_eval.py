"""Evaluating a checkpoint, with nothing but its path."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests import generate
from tests.verbs.command import QUICK, finish, metrics, run, runs, start


@pytest.fixture(scope="module")
def workplace(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos/ (15 test images) and logs/ of one run on it."""
    cwd = tmp_path_factory.mktemp("eval")
    generate.copy(folder, cwd / "photos")
    generate.save(generate.picture("red", seed=7), cwd / "photos" / "red" / "extra.jpg")
    result = run(
        "train", "experiment=folder_cnn", "model=simple_cnn", *QUICK, "data.root=photos", "data.test_fraction=0.23",
        "trainer.max_epochs=2", cwd=cwd,
    )  # fmt: skip
    assert result.code == 0, result.err
    return cwd


def evaluated(cwd: Path, *arguments: str) -> tuple[dict[str, float], list[dict[str, str]]]:
    """Metrics and rows of predictions.csv."""
    shutil.rmtree(cwd / "out", ignore_errors=True)
    result = run("eval", "ckpt_path=latest", "output_dir=out", *arguments, cwd=cwd)
    assert result.code == 0, result.err
    with (cwd / "out" / "predictions.csv").open() as file:
        return json.loads((cwd / "out" / "metrics.json").read_text()), list(csv.DictReader(file))


def of_test(found: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in found.items() if name.startswith("test/")}


def test_reproduces_the_test_of_the_training(workplace: Path) -> None:
    found, rows = evaluated(workplace)
    (run_dir,) = runs(workplace / "logs")
    assert of_test(found) == of_test(metrics(run_dir))
    assert len(rows) == 15
    correct = [row["label"] == row["target"] for row in rows]
    assert sum(correct) / len(rows) == pytest.approx(found["test/acc"], abs=1e-6)


def test_two_processes_equal_one(workplace: Path) -> None:
    alone, rows = evaluated(workplace)
    finish(start("eval", "ckpt_path=latest", "trainer=ddp_sim", "output_dir=two", cwd=workplace))
    assert json.loads((workplace / "two" / "metrics.json").read_text()) == alone
    with (workplace / "two" / "predictions.csv").open() as file:
        assert list(csv.DictReader(file)) == rows


def test_predictions_table(workplace: Path) -> None:
    _, rows = evaluated(workplace, "top_k=2")
    assert list(rows[0]) == ["path", "status", "label", "confidence", "label_2", "confidence_2", "target"]
    assert all(row["path"].startswith(row["target"]) and row["status"] == "ok" for row in rows)
    assert all(float(row["confidence"]) >= float(row["confidence_2"]) for row in rows)


@pytest.mark.parametrize(("split", "count"), [("train", 40), ("val", 6), ("all", 61)])
def test_other_splits(split: str, count: int, workplace: Path) -> None:
    found, rows = evaluated(workplace, f"split={split}")
    assert len(rows) == count
    assert f"{split}/acc" in found


def test_another_folder_is_evaluated_whole(workplace: Path) -> None:
    generate.image_folder(workplace / "new", ("red", "blue"), per_class=4, seed=99)
    _, rows = evaluated(workplace, "data.root=new")
    assert len(rows) == 8
    assert {row["target"] for row in rows} == {"red", "blue"}


def test_another_data_module_reads_as_the_model_was_trained(workplace: Path) -> None:
    """`data=folder` brings 224 pixels; the model saw 32."""
    generate.image_folder(workplace / "other", ("red", "blue"), per_class=4, seed=99)
    same, _ = evaluated(workplace, "data.root=other")
    found, rows = evaluated(workplace, "data=folder", "data.root=other", "data.num_workers=0")
    assert found == same
    assert len(rows) == 8


def test_a_split_file_of_the_training_is_not_for_another_folder(workplace: Path) -> None:
    (run_dir,) = [run_dir for run_dir in runs(workplace / "logs") if run_dir.parent.name == "folder_cnn"]
    arguments = ("experiment=folder_cnn", "model=simple_cnn", *QUICK, "data.root=photos", "run_dir=second")
    assert run("train", *arguments, f"data.split_file={run_dir / 'split.csv'}", cwd=workplace).code == 0
    generate.image_folder(workplace / "third", ("red", "blue"), per_class=2, seed=98)
    result = run("eval", "ckpt_path=second", "data.root=third", cwd=workplace)
    assert result.code == 0, result.err


@pytest.mark.parametrize(
    ("divided_by", "per_class"),
    [
        (("data.fold=0", "data.num_folds=7"), 2),
        ((r"data.group_pattern='^[a-z]+/\d\d'",), 2),
        (("data.limit_per_class=3",), 5),
    ],
)
def test_the_division_of_the_training_is_not_for_another_folder(
    divided_by: tuple[str, ...], per_class: int, folder: Path, tmp_path: Path
) -> None:
    arguments = ("experiment=folder_cnn", "model=simple_cnn", *QUICK, "data.batch_size=4", f"data.root={folder}")
    result = run("train", *arguments, *divided_by, cwd=tmp_path)
    assert result.code == 0, result.err
    for name in ("red", "blue"):
        for number in range(per_class):
            generate.save(generate.picture(name, seed=number), tmp_path / "new" / name / f"x{number}.jpg")
    found, rows = evaluated(tmp_path, "data.root=new")
    assert len(rows) == 2 * per_class
    assert "all/acc" in found
    (run_dir,) = runs(tmp_path / "logs")
    own, _ = evaluated(tmp_path)
    assert of_test(own) == of_test(metrics(run_dir))
    _, rows = evaluated(tmp_path, "data.root=new", "split=all", "data.fold=1", "data.num_folds=2")
    assert len(rows) == 2 * per_class


def test_another_array_of_the_same_file_is_other_data(tmp_path: Path) -> None:
    generate.arrays(tmp_path / "set.npz", X_new=np.zeros((6, 40, 48, 3), np.uint8), Y_new=np.arange(6) % 3)
    arguments = ("data=arrays", "experiment=null", "model=simple_cnn", *QUICK, "data.root=set.npz")
    result = run("train", *arguments, cwd=tmp_path)
    assert result.code == 0, result.err
    _, rows = evaluated(tmp_path, "data.x_test=X_new", "data.y_test=Y_new")
    assert len(rows) == 6


def test_another_spelling_of_the_folder_is_the_same_data(workplace: Path) -> None:
    """Else the images of the training would be evaluated as new ones."""
    for spelling in ("photos/", "./photos", workplace / "photos"):
        _, rows = evaluated(workplace, f"data.root={spelling}")
        assert len(rows) == 15


def test_a_fold_beside_the_split_of_the_run_is_refused(workplace: Path) -> None:
    result = run("eval", "ckpt_path=latest", "data.fold=1", cwd=workplace)
    assert result.code == 2
    assert "data.fold=1 and data.split_file=" in result.err


def test_files_added_later_stay_out(workplace: Path) -> None:
    before, _ = evaluated(workplace)
    added = generate.save(generate.picture("blue", seed=5), workplace / "photos" / "red" / "000_mislabelled.jpg")
    try:
        after, rows = evaluated(workplace)
    finally:
        added.unlink()
    assert after == before
    assert "red/000_mislabelled.jpg" not in {row["path"] for row in rows}


def test_default_place_and_run_directory_as_path(workplace: Path) -> None:
    (run_dir,) = runs(workplace / "logs")
    assert run("eval", f"ckpt_path={run_dir}", cwd=workplace).code == 0
    (output,) = (run_dir / "eval").iterdir()
    assert {path.name for path in output.iterdir()} == {"metrics.json", "predictions.csv"}


def test_boxes_are_in_the_table(annotated: Path, tmp_path: Path) -> None:
    arguments = ("model=simple_cnn", "data=annotation_crop", f"data.root={annotated}", "trainer.max_epochs=1")
    assert run("train", "experiment=folder_cnn", "model=simple_cnn", *QUICK, *arguments, cwd=tmp_path).code == 0
    _, rows = evaluated(tmp_path)
    assert {"x1", "y1", "x2", "y2"} <= set(rows[0])
    assert int(rows[0]["x2"]) - int(rows[0]["x1"]) == 30
