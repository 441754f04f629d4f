"""Several processes: one run directory, one set of logs, the same kind of result."""

from pathlib import Path

import pytest
import torch

from tests import generate
from tests.verbs.command import QUICK, finish, metrics, run, runs, start

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
    assert metrics(run_dir)["global_step"] == 12  # 42 images, 2 x 4 a step, 2 epochs
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
def test_multirun_of_two_processes(folder: Path, tmp_path: Path) -> None:
    finish(start("train", "-m", *RUN, f"data.root={folder}", "seed=1,2", cwd=tmp_path))
    first, second = runs(tmp_path / "logs")
    assert (first.name, second.name) == ("0", "1")
    assert metrics(first)["train/loss"] != metrics(second)["train/loss"]


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    """The same global batches, draws and class weights, the last ones of an epoch too; sums in another order."""
    for number, (name, count) in enumerate((("blue", 40), ("red", 8))):
        generate.image_folder(tmp_path / "photos", [name], count, seed=100 * number)
    same = ("model.drop_rate=0", "augment=none", "trainer.accumulate_grad_batches=2", "data.sampler=balanced",
            "data.root=photos", "loss.class_weight=[0.5,2.0]", "loss.label_smoothing=0.1")  # fmt: skip
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
    assert [line for line in output.splitlines() if "training the head" in line] == [
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


@pytest.mark.slow
def test_shards_learn_what_copies_do(folder: Path, tmp_path: Path) -> None:
    """And their checkpoints are those of one process: to evaluate, and to go on from with or without shards."""
    network = ("model=timm", "model.name=vit_tiny_patch16_224", "model.pretrained=false", "augment=none")
    same = (*RUN, *network, f"data.root={folder}", "trainer.gradient_clip_val=0.1", "trainer.max_epochs=1",
            "speed.channels_last=false")  # fmt: skip
    finish(start("train", *same, "run_dir=copies", cwd=tmp_path))
    finish(start("train", *same, "trainer.strategy=sharded", "run_dir=shards", cwd=tmp_path))
    require_equal(tmp_path / "copies", tmp_path / "shards")

    evaluated = run("eval", "ckpt_path=shards/checkpoints/last.ckpt", "split=val", "output_dir=out", cwd=tmp_path)
    assert evaluated.code == 0, evaluated.err
    assert metrics(tmp_path / "out")["val/loss"] == pytest.approx(metrics(tmp_path / "shards")["val/loss"], abs=1e-5)

    goes_on = ("resume=shards", "trainer.max_epochs=2")
    finish(start("train", *goes_on, cwd=tmp_path))
    assert metrics(tmp_path / "shards")["global_step"] == 2 * metrics(tmp_path / "copies")["global_step"]
    refused = run("train", *goes_on, "trainer.strategy=ddp", cwd=tmp_path)
    assert (refused.code, "this run began with sharded" in refused.err) == (2, True)


def require_equal(one: Path, two: Path) -> None:
    assert metrics(one)["global_step"] == metrics(two)["global_step"]
    for name in ("train/loss", "val/loss", "test/loss"):
        assert metrics(two)[name] == pytest.approx(metrics(one)[name], rel=1e-3)


def test_a_batch_that_is_too_large_is_refused_once(folder: Path, tmp_path: Path) -> None:
    arguments = (*RUN, f"data.root={folder}", "trainer.devices=7", "data.batch_size=8")
    process = start("train", *arguments, cwd=tmp_path)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 2
    assert output.count("error: batch size 8 on each of 7 processes is larger than the 42 training images") == 1
    assert "use data.batch_size=4" in output


def test_sync_batchnorm_needs_gpus(folder: Path, tmp_path: Path) -> None:
    done = run("train", *RUN, f"data.root={folder}", "trainer.sync_batchnorm=true", cwd=tmp_path)
    assert done.code == 2
    assert done.err == "error: trainer.sync_batchnorm=true needs GPUs: on the CPU, use trainer.sync_batchnorm=false\n"


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("trainer=fsdp", "this machine has no GPU: use trainer=cpu"),
        ("trainer.precision=16-mixed", "use trainer.precision=bf16-mixed"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_what_sharding_does_not_do(key: str, found: str, folder: Path, tmp_path: Path) -> None:
    done = run(
        "train", *RUN, "trainer.strategy=sharded", "speed.channels_last=false", key, f"data.root={folder}", cwd=tmp_path
    )
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert found in done.err
