"""Labelling images without labels."""

import csv
from pathlib import Path

import pytest
import torch

from classifier.training.checkpoints import open_model
from tests import generate
from tests.verbs.command import QUICK, run, runs


@pytest.fixture(scope="module")
def workplace(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with logs/ of one run and holiday/ with nested, rotated and broken images."""
    cwd = tmp_path_factory.mktemp("predict")
    arguments = ("experiment=folder_cnn", "model=simple_cnn", *QUICK, f"data.root={folder}", "trainer.max_epochs=4")
    assert run("train", *arguments, cwd=cwd).code == 0
    for number, color in enumerate(("red", "green", "blue", "red")):
        generate.save(generate.picture(color, seed=50 + number), cwd / "holiday" / f"day {number}" / f"{color}.jpg")
    (cwd / "holiday" / "empty.jpg").write_bytes(b"")
    (cwd / "holiday" / "notes.txt").write_text("not an image")
    (cwd / "holiday" / "text.png").write_text("not an image either")
    return cwd


def predicted(cwd: Path, inputs: str, *arguments: str) -> list[dict[str, str]]:
    result = run("predict", "ckpt_path=latest", f"inputs={inputs}", "num_workers=0", *arguments, cwd=cwd)
    assert result.code == 0, result.err
    with (cwd / "predictions.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_folder_in_stable_order(workplace: Path) -> None:
    rows = predicted(workplace, "holiday")
    assert [row["path"] for row in rows] == [
        "holiday/empty.jpg",
        "holiday/text.png",
        "holiday/day 0/red.jpg",
        "holiday/day 1/green.jpg",
        "holiday/day 2/blue.jpg",
        "holiday/day 3/red.jpg",
    ]
    good = [row for row in rows if row["status"] == "ok"]
    assert [row["label"] for row in good] == ["red", "green", "blue", "red"]
    bad = [row for row in rows if row["status"] != "ok"]
    assert len(bad) == 2
    assert all(row["label"] == "" and row["confidence_3"] == "" for row in bad)
    sums = [sum(float(row[f"confidence{k}"]) for k in ("", "_2", "_3")) for row in good]
    assert sums == pytest.approx([1.0] * 4, abs=1e-5)


@pytest.mark.parametrize("arguments", [("batch_size=1",), ("batch_size=2", "num_workers=2")])
def test_batches_do_not_matter(arguments: tuple[str, ...], workplace: Path) -> None:
    rows, expected = predicted(workplace, "holiday", *arguments), predicted(workplace, "holiday")
    assert [(row["path"], row["label"]) for row in rows] == [(row["path"], row["label"]) for row in expected]
    # a batch of one takes another kernel, which adds in another order
    confidences = [[float(row["confidence"] or 0) for row in table] for table in (rows, expected)]
    assert confidences[0] == pytest.approx(confidences[1], abs=2e-6)


def test_one_file_and_a_pattern(workplace: Path) -> None:
    (row,) = predicted(workplace, "holiday/day 1/green.jpg")
    assert row["label"] == "green"
    assert [row["label"] for row in predicted(workplace, "holiday/*/red.jpg", "top_k=1")] == ["red", "red"]


def test_nothing_readable(workplace: Path) -> None:
    result = run("predict", "ckpt_path=latest", "inputs=holiday/*.png", "trainer=cpu", "output=none.csv", cwd=workplace)
    assert result.code == 2
    assert "error: inputs=holiday/*.png: none of 1 images can be read (" in result.err
    with (workplace / "none.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["status"] != "ok"


def test_a_place_that_cannot_be_written_is_told_before_the_work(workplace: Path) -> None:
    (workplace / "a_file").touch()
    for output in ("a_file/table.csv", "holiday"):
        arguments = ("ckpt_path=latest", "inputs=holiday", "trainer=cpu", f"output={output}")
        result = run("predict", *arguments, cwd=workplace)
        assert result.code == 2
        assert f"cannot write {output}" in result.err
        assert "name another place with output=" in result.err


def test_the_numbers_are_the_model_s(workplace: Path) -> None:
    """The same object preprocesses validation images and these."""
    (run_dir,) = runs(workplace / "logs")
    model, _ = open_model(run_dir / "checkpoints" / "best.ckpt")
    (row,) = predicted(workplace, "holiday/day 0/red.jpg")
    with torch.inference_mode():
        image = model.preprocessing(workplace / "holiday" / "day 0" / "red.jpg")
        probabilities = model(image[None]).softmax(1)[0]
    assert float(row["confidence"]) == pytest.approx(probabilities.max().item(), abs=1e-6)
