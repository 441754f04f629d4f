"""Labelling images without labels; and both evaluating and predicting by an image and its mirror image."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageOps

from classifier.training.checkpoints import open_model
from tests import generate
from tests.verbs.command import evaluated, metrics, of_test, refuse, rows, succeed


@pytest.fixture(scope="session")
def holiday(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with holiday/: nested, symmetric, empty and foreign files."""
    cwd = tmp_path_factory.mktemp("predict")
    for number, color in enumerate(("red", "green", "blue", "red")):
        generate.save(generate.picture(color, seed=50 + number), cwd / "holiday" / f"day {number}" / f"{color}.jpg")
    half = generate.picture("red", (24, 48), seed=5)
    whole = Image.new("RGB", (48, 48))
    whole.paste(half, (0, 0))
    whole.paste(ImageOps.mirror(half), (24, 0))
    generate.save(whole, cwd / "holiday" / "symmetric.bmp")
    (cwd / "holiday" / "empty.jpg").write_bytes(b"")
    (cwd / "holiday" / "notes.txt").write_text("not an image")
    generate.save(generate.picture("red"), cwd / "holiday" / "phone.HEIC", format="JPEG")
    generate.save(generate.picture("red"), cwd / "holiday" / "raw" / "camera.nef", format="TIFF")
    (cwd / "holiday" / "@eaDir").mkdir()
    (cwd / "holiday" / "@eaDir" / "empty.jpg").touch()
    os.mkfifo(cwd / "holiday" / "pipe.jpg")
    (cwd / "holiday" / "text.png").write_text("not an image either")
    return cwd


Predict = Callable[..., list[dict[str, str]]]


@pytest.fixture
def always(trained: Path) -> tuple[str, ...]:
    return (f"ckpt_path={trained}", "trainer=cpu")


@pytest.fixture
def predict(always: tuple[str, ...], holiday: Path) -> Predict:
    """The rows that `predict` writes of `inputs`."""

    def predict(inputs: str, *arguments: str) -> list[dict[str, str]]:
        succeed("predict", *always, f"inputs={inputs}", "num_workers=0", *arguments, cwd=holiday)
        return rows(holiday / "predictions.csv")

    return predict


def probabilities(row: dict[str, str]) -> dict[str, float]:
    return {row[f"label{k}"]: float(row[f"confidence{k}"]) for k in ("", "_2", "_3")}


def test_a_folder_in_stable_order(predict: Predict) -> None:
    table = predict("holiday")
    assert [row["path"] for row in table] == [
        "holiday/empty.jpg",
        "holiday/phone.HEIC",
        "holiday/pipe.jpg",
        "holiday/symmetric.bmp",
        "holiday/text.png",
        "holiday/day 0/red.jpg",
        "holiday/day 1/green.jpg",
        "holiday/day 2/blue.jpg",
        "holiday/day 3/red.jpg",
        "holiday/raw/camera.nef",
    ]
    good = [row for row in table if row["status"] == "ok"]
    assert [row["label"] for row in good] == ["red", "red", "green", "blue", "red"]
    bad = [row for row in table if row["status"] != "ok"]
    assert len(bad) == 5
    assert [row["status"].partition(" ")[0] for row in bad if "." in row["status"][:5]] == [".heic", ".nef"]
    assert all(row["label"] == "" and row["confidence_3"] == "" for row in bad)
    assert [sum(probabilities(row).values()) for row in good] == pytest.approx([1.0] * 5, abs=1e-5)
    for arguments in (("batch_size=1",), ("batch_size=2", "num_workers=2")):
        again = predict("holiday", *arguments)
        assert [(row["path"], row["label"]) for row in again] == [(row["path"], row["label"]) for row in table]
        # a batch of one takes another kernel, which adds in another order
        confidences = [[float(row["confidence"] or 0) for row in rows] for rows in (again, table)]
        assert confidences[0] == pytest.approx(confidences[1], abs=1e-5)


def test_one_file_and_a_pattern(predict: Predict) -> None:
    (row,) = predict("holiday/day 1/green.jpg")
    assert row["label"] == "green"
    assert [row["label"] for row in predict("holiday/*/red.jpg", "top_k=1")] == ["red", "red"]


def test_what_is_refused(always: tuple[str, ...], holiday: Path) -> None:
    """Images of which none can be read; a place that cannot be written."""
    for name in ("none.csv", "failed_none.csv"):  # beside the former table
        message = refuse("predict", *always, "inputs=holiday/*.png", "output=none.csv", cwd=holiday)
        assert "inputs=holiday/*.png" in message
        assert f"{name})" in message
        (row,) = rows(holiday / name)
        assert row["status"] != "ok"
    (holiday / "a_file").touch()
    for output in ("a_file/table.csv", "holiday", "holiday/table.csv"):
        message = refuse("predict", *always, "inputs=holiday", f"output={output}", cwd=holiday)
        assert output in message
        assert "output=" in message
    assert "output=x.csv" in refuse("predict", *always, "inputs=holiday", "output=x.xlsx", cwd=holiday)


@torch.no_grad()
def test_the_numbers_are_the_model_s(predict: Predict, holiday: Path, trained: Path) -> None:
    """The same object preprocesses validation images and these; with `flip=true` it is the mean of both sides."""
    model, _ = open_model(trained / "checkpoints" / "best.ckpt")
    plain, flipped = predict("holiday"), predict("holiday", "flip=true")
    for row, mean in zip(plain, flipped, strict=True):
        if row["status"] != "ok":
            continue
        image = model.preprocessing(holiday / row["path"])[None]
        both = [model(pixels).softmax(1)[0].tolist() for pixels in (image, image.flip(3))]
        own, mirrored = (dict(zip(model.classes, values, strict=True)) for values in both)
        assert probabilities(row) == pytest.approx(own, abs=1e-5)
        assert probabilities(mean) == pytest.approx({key: (own[key] + mirrored[key]) / 2 for key in own}, abs=1e-5)
        same = probabilities(mean) == pytest.approx(probabilities(row), abs=1e-6)
        assert same == ("symmetric" in row["path"])


def test_an_evaluation_by_both_sides_says_so(workplace: Path, trained: Path, tmp_path: Path) -> None:
    plain, flipped = (
        evaluated(workplace, f"flip={value}", ckpt_path=str(trained), output=str(tmp_path / value))
        for value in ("false", "true")
    )
    assert "flip" not in plain
    assert flipped["flip"] is True
    assert flipped["test/loss"] != plain["test/loss"]
    assert of_test(plain) == of_test(metrics(trained))
