"""Every experiment trains on a few images and is evaluated, without a hub."""

from pathlib import Path

import pytest

from tests import generate
from tests.verbs.command import REPOSITORY, evaluated, metrics, of_test, succeed

PRESETS = sorted(path.stem for path in (REPOSITORY / "configs" / "experiment").glob("*.yaml"))
FEW = ("trainer=cpu", "trainer.max_epochs=1", "trainer.limit_train_batches=1", "trainer.limit_val_batches=1",
       "trainer.limit_test_batches=1", "trainer.enable_progress_bar=false", "data.batch_size=2", "data.num_workers=0",
       "model.pretrained=false", "logger.tensorboard=null")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_preset(name: str, dogs: Path, folder: Path, tmp_path: Path) -> None:
    roots = {"dogs": dogs, "folder": folder, "photos": folder, "digits": tmp_path / "digits"}
    kind = name.split("_")[0]
    if kind == "cifar10":  # which cannot be downloaded here, and comes as arrays too
        data = ["data=arrays", f"data.root={generate.arrays(tmp_path / 'cifar10.npz')}"]
    else:
        data = [f"data.root={roots[kind]}"]
    succeed("train", f"experiment={name}", *FEW, *data, "run_dir=run", cwd=tmp_path)
    found = of_test(evaluated(tmp_path, "trainer.limit_test_batches=1"))
    assert found == of_test(metrics(tmp_path / "run"))
