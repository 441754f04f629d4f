"""Several processes: one run directory, one set of logs, the same kind of result."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import generate
from tests.verbs.command import QUICK, REPOSITORY, finish, metrics, runs, start

RUN = (
    "experiment=folder_cnn",
    "model=simple_cnn",
    *QUICK,
    "trainer=ddp_sim",
    "trainer.max_epochs=2",
    "data.batch_size=4",
)


def test_two_processes_write_one_run(folder: Path, tmp_path: Path) -> None:
    output = finish(start("train", *RUN, f"data.root={folder}", cwd=tmp_path))
    (run_dir,) = runs(tmp_path / "logs")
    assert output.count("cpu x 2") == 1
    # 42 images, 2 x 4 a step, 2 epochs; the remainder of one for each is left out
    assert metrics(run_dir)["global_step"] == 10
    assert {path.name for path in (run_dir / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert len((run_dir / "metrics.csv").read_text().splitlines()) in (3, 4)


@pytest.mark.slow
def test_validation_of_two_processes_is_that_of_the_checkpoint(folder: Path, tmp_path: Path) -> None:
    """BatchNorm's statistics differ between training processes; DDP copies the first one's before it evaluates."""
    arguments = (*RUN, "model.batch_norm=true", "callbacks.best=null", "run_dir=run")
    finish(start("train", *arguments, f"data.root={folder}", cwd=tmp_path))
    finish(start("eval", "ckpt_path=run/checkpoints/last.ckpt", "split=val", "output_dir=out", cwd=tmp_path))
    trained, evaluated = metrics(tmp_path / "run"), metrics(tmp_path / "out")
    assert evaluated["val/loss"] == pytest.approx(trained["val/loss"], abs=2e-6)


@pytest.mark.slow
def test_torchrun(folder: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        str(REPOSITORY / "src" / "train.py"),
    ]
    subprocess.run([*command, *RUN, f"data.root={folder}"], cwd=tmp_path, check=True, timeout=300)
    (run_dir,) = runs(tmp_path / "logs")
    assert metrics(run_dir)["global_step"] == 10


@pytest.mark.slow
def test_multirun_of_two_processes(folder: Path, tmp_path: Path) -> None:
    finish(start("train", "-m", *RUN, f"data.root={folder}", "seed=1,2", cwd=tmp_path))
    first, second = runs(tmp_path / "logs")
    assert (first.name, second.name) == ("0", "1")
    assert metrics(first)["train/loss"] != metrics(second)["train/loss"]


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    """The same global batches, draws and class weights; sums in another order."""
    for number, (name, count) in enumerate((("blue", 40), ("red", 8))):
        generate.image_folder(tmp_path / "photos", [name], count, seed=100 * number)
    same = ("model.drop_rate=0", "augment=none", "data.drop_last=true", "data.sampler=balanced", "data.root=photos",
            "loss.class_weight=[0.5,2.0]", "loss.label_smoothing=0.1")  # fmt: skip
    finish(start("train", *RUN, *same, "run_dir=two", cwd=tmp_path))
    finish(start("train", *RUN, *same, "trainer=cpu", "data.batch_size=8", "run_dir=one", cwd=tmp_path))
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert one["global_step"] == two["global_step"]
    for name in ("train/loss", "val/loss", "test/loss"):
        assert two[name] == pytest.approx(one[name], rel=1e-4)


@pytest.mark.slow
def test_two_processes_unfreeze_as_one_does(tmp_path: Path) -> None:
    """Stage by stage, with the gradients of each new one summed: the weights of one process with twice the batch."""
    generate.image_folder(tmp_path / "photos", ["blue", "red"], 24)
    same = ("model.widths=[4,4,8]", "model.drop_rate=0", "augment=none", "data.drop_last=true", "data.root=photos",
            "finetune=gradual", "finetune.head_epochs=1", "finetune.backbone_lr=0.5", "trainer.max_epochs=5",
            "optimizer=sgd", "scheduler=constant", "scheduler.warmup_epochs=0",
            "trainer.accumulate_grad_batches=2")  # fmt: skip
    output = finish(start("train", *RUN, *same, "run_dir=two", cwd=tmp_path))
    assert [line for line in output.splitlines() if line.startswith("epoch ")] == [
        "epoch 1: training the head alone (13,102 of 13,658 parameters)",
        "epoch 2: training the head and 1 of 3 stages (13,398 of 13,658 parameters)",
        "epoch 3: training the head and 2 of 3 stages (13,546 of 13,658 parameters)",
        "epoch 4: training the head and 3 of 3 stages (13,658 of 13,658 parameters)",
    ]
    finish(start("train", *RUN, *same, "trainer=cpu", "data.batch_size=8", "run_dir=one", cwd=tmp_path))
    finish(start("train", *RUN, *same, "trainer.max_epochs=2", "run_dir=resumed", cwd=tmp_path))
    finish(start("train", "resume=resumed", "trainer.max_epochs=5", cwd=tmp_path))
    one, two, resumed = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)
        for name in ("one", "two", "resumed")
    )
    for name, value in two["state_dict"].items():
        assert torch.equal(resumed["state_dict"][name], value), name
        torch.testing.assert_close(value, one["state_dict"][name], rtol=1e-5, atol=1e-7)
