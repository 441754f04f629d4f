"""`ema`: averaged weights from the command line to metrics.json."""

from pathlib import Path

import pytest
import torch

from classifier.training.averaging import TRAINING_WEIGHTS
from tests.verbs.command import QUICK, finish, metrics, run, start

RUN = ("experiment=folder_cnn", "model=simple_cnn", *QUICK, "trainer.max_epochs=2", "run_dir=run")


def test_averaged_weights_are_those_of_every_result(folder: Path, tmp_path: Path) -> None:
    trained = run("train", *RUN, f"data.root={folder}", "ema=0.99", cwd=tmp_path)
    assert trained.code == 0, trained.err
    assert "arn" not in trained.err, "no warning"
    for name in ("best", "last"):
        checkpoint = torch.load(tmp_path / "run" / "checkpoints" / f"{name}.ckpt", weights_only=True)
        average, training = checkpoint["state_dict"], checkpoint[TRAINING_WEIGHTS]
        assert any(not torch.equal(average[key], training[key]) for key in average)
    for split in ("val", "test"):
        assert run("eval", "ckpt_path=run", f"split={split}", f"output_dir={split}", cwd=tmp_path).code == 0
        found = metrics(tmp_path / split)
        assert found[f"{split}/loss"] == pytest.approx(metrics(tmp_path / "run")[f"{split}/loss"], abs=2e-6)

    refused = run("train", "resume=run", "ema=null", "trainer.max_epochs=3", cwd=tmp_path)
    assert refused.code == 2
    assert "error: ema=null: this run averages its weights" in refused.err
    assert run("train", "resume=run", "trainer.max_epochs=3", cwd=tmp_path).code == 0
    assert metrics(tmp_path / "run")["epoch"] == 3


def test_average_from_the_middle_of_a_run_on(folder: Path, tmp_path: Path) -> None:
    assert run("train", *RUN, f"data.root={folder}", cwd=tmp_path).code == 0
    result = run("train", "resume=run", "ema=0.9", "trainer.max_epochs=3", cwd=tmp_path)
    assert result.code == 0, result.err
    assert "ema=0.9: the run had no average until now" in result.out
    assert TRAINING_WEIGHTS in torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)


def test_a_bad_decay(folder: Path, tmp_path: Path) -> None:
    for value in ("2", "yes"):
        result = run("train", *RUN, f"data.root={folder}", f"ema={value}", cwd=tmp_path)
        assert result.code == 2
        assert f"error: ema={value} must" in result.err


@pytest.mark.slow
def test_two_processes(folder: Path, tmp_path: Path) -> None:
    """The average that is validated is the one that is saved, BatchNorm's statistics among it."""
    arguments = (
        *RUN,
        "trainer=ddp_sim",
        "data.batch_size=4",
        "ema=0.9",
        "callbacks.best=null",
        "model.batch_norm=true",
    )
    finish(start("train", *arguments, f"data.root={folder}", cwd=tmp_path))
    finish(start("eval", "ckpt_path=run/checkpoints/last.ckpt", "split=val", "output_dir=out", cwd=tmp_path))
    assert metrics(tmp_path / "out")["val/loss"] == pytest.approx(metrics(tmp_path / "run")["val/loss"], abs=2e-6)
