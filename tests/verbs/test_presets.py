"""Every experiment trains an epoch and evaluates, without a hub."""

from pathlib import Path

import pytest
import torch

from classifier.training import ImageClassifier
from tests import generate
from tests.verbs.command import REPOSITORY, metrics, run

PRESETS = sorted(path.stem for path in (REPOSITORY / "configs" / "experiment").glob("*.yaml"))
SMALL = (
    "trainer=cpu",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=2",
    "trainer.limit_val_batches=1",
    "trainer.limit_test_batches=2",
    "trainer.enable_progress_bar=false",
    "data.batch_size=4",
    "data.num_workers=0",
    "model.pretrained=false",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_preset(name: str, dogs: Path, folder: Path, tmp_path: Path) -> None:
    roots = {"dogs": dogs, "folder": folder, "photos": folder, "digits": tmp_path / "digits"}
    kind = name.split("_")[0]
    if kind == "cifar10":  # which cannot be downloaded here, and comes as arrays too
        data = ["data=arrays", f"data.root={generate.arrays(tmp_path / 'cifar10.npz')}"]
    else:
        data = [f"data.root={roots[kind]}"]
    result = run("train", f"experiment={name}", *SMALL, *data, "run_dir=run", cwd=tmp_path)
    assert result.code == 0, result.err
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    hyper_parameters = torch.load(best, weights_only=True)["hyper_parameters"]
    model = ImageClassifier.load_from_checkpoint(best)
    assert list(model.classes) == hyper_parameters["classes"]
    arguments = ("trainer.limit_test_batches=2", "output_dir=out", "trainer=cpu")
    result = run("eval", f"ckpt_path={best}", *arguments, cwd=tmp_path)
    assert result.code == 0, result.err
    trained, evaluated = metrics(tmp_path / "run"), metrics(tmp_path / "out")
    assert {key: value for key, value in evaluated.items() if key.startswith("test/")} == {
        key: value for key, value in trained.items() if key.startswith("test/")
    }


@pytest.mark.slow
def test_the_default_reaches_its_accuracy(tmp_path: Path) -> None:
    """`make train`, set-up aside: at least 0.985, in less than a minute on two cores."""
    assert run("train", "trainer=cpu", "run_dir=run", cwd=tmp_path).code == 0
    found = metrics(tmp_path / "run")
    assert found["test/acc"] >= 0.985
    assert found["fit_seconds"] < 60
