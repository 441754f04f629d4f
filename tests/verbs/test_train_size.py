"""`data.train_size` from the command line on: smaller images in training, and nowhere else."""

from pathlib import Path

import pytest

from tests.verbs.command import QUICK, metrics, run, runs

RUN = ("experiment=folder_cnn", *QUICK, "trainer.max_epochs=2", "run_dir=run", "model=simple_cnn_64", "model.head=avg")


def test_evaluation_is_at_full_size(folder: Path, tmp_path: Path) -> None:
    size = "data.train_size=[[0,16],[1,24]]"
    result = run("train", *RUN, f"data.root={folder}", size, cwd=tmp_path)
    assert result.code == 0, result.err
    assert run("eval", "ckpt_path=run", "output_dir=out", cwd=tmp_path).code == 0
    trained, evaluated = metrics(tmp_path / "run"), metrics(tmp_path / "out")
    assert evaluated["test/loss"] == pytest.approx(trained["test/loss"], abs=2e-6)
    # smaller than the training images were
    assert run("eval", "ckpt_path=run", "data.image_size=16", "output_dir=small", cwd=tmp_path).code == 0
    assert run("train", *RUN, f"data.root={folder}", "run_dir=other", cwd=tmp_path).code == 0
    assert metrics(tmp_path / "other")["train/loss"] != trained["train/loss"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("model=simple_cnn",), "SimpleCNN does not take images of 16x16 pixels"),
        (
            ("model=timm", "model.name=vit_tiny_patch16_224", "model.pretrained=false"),
            "VisionTransformer does not take images of 16x16 pixels",
        ),
    ],
)
def test_a_network_of_one_size(arguments: tuple[str, ...], message: str, folder: Path, tmp_path: Path) -> None:
    started = ("experiment=folder_cnn", *QUICK, *arguments, f"data.root={folder}", "data.train_size=16")
    result = run("train", *started, cwd=tmp_path)
    assert result.code == 2
    assert message in result.err
    assert "use data.train_size=null" in result.err
    assert runs(tmp_path) == []


def test_an_augmentation_with_a_size_of_its_own(folder: Path, tmp_path: Path) -> None:
    arguments = ("augment=shift_flip", "data.train_size=28")
    result = run("train", *RUN, f"data.root={folder}", *arguments, cwd=tmp_path)
    assert result.code == 2
    assert "error: augment makes 32x32 pixels of the 28x28 of data.train_size" in result.err
