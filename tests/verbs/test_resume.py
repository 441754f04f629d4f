"""Going on with a run: to the bits of one that was never stopped."""

import csv
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from classifier.training.averaging import TRAINING_WEIGHTS
from tests.verbs.command import QUICK, finish, metrics, run, runs, start

# a checkpoint every 3 steps, kept by name, so that each can be resumed from
EVERY_THREE = (
    "callbacks.last.every_n_train_steps=3",
    '+callbacks.last.filename="step{step}"',
    "+callbacks.last.save_top_k=-1",
)
RUN = ("experiment=folder_cnn", *QUICK, "model=simple_cnn", "trainer.max_epochs=3", "augment=standard")


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    content = torch.load(checkpoint, weights_only=True)
    training = {f"training {name}": value for name, value in content.get(TRAINING_WEIGHTS, {}).items()}
    return {**content["state_dict"], **training}


def assert_equal(first: Path, second: Path) -> None:
    a, b = weights(first), weights(second)
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different


def without_time(run_dir: Path) -> dict[str, float]:
    found = metrics(run_dir)
    del found["fit_seconds"]
    return found


@pytest.fixture(scope="module")
def uninterrupted(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 steps in 3 epochs, with a checkpoint every three."""
    cwd = tmp_path_factory.mktemp("resume")
    result = run("train", *RUN, *EVERY_THREE, f"data.root={folder}", "run_dir=whole", cwd=cwd)
    assert result.code == 0, result.err
    return cwd / "whole"


def stopped_at(step: int, uninterrupted: Path, target: Path) -> Path:
    """What a run looks like that was stopped just after it wrote the checkpoint of `step`."""
    shutil.copytree(uninterrupted, target, ignore=shutil.ignore_patterns("checkpoints", "metrics.*", "events*"))
    (target / "checkpoints").mkdir()
    shutil.copy(uninterrupted / "checkpoints" / f"stepstep={step}.ckpt", target / "checkpoints" / "last.ckpt")
    best = uninterrupted / "checkpoints" / "best.ckpt"
    if torch.load(best, weights_only=True)["global_step"] <= step:
        shutil.copy(best, target / "checkpoints")
    return target


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("step", [3, 6, 9, 15])  # in mid-epoch and at the end of one (6)
def test_same_bits(step: int, workers: int, uninterrupted: Path, tmp_path: Path) -> None:
    run_dir = stopped_at(step, uninterrupted, tmp_path / "stopped")
    result = run("train", f"resume={run_dir}", f"data.num_workers={workers}", cwd=tmp_path)
    assert result.code == 0, result.err
    assert_equal(run_dir / "checkpoints" / "stepstep=18.ckpt", uninterrupted / "checkpoints" / "stepstep=18.ckpt")
    assert without_time(run_dir) == without_time(uninterrupted)


@pytest.mark.parametrize(
    "limits",
    [
        ("trainer.limit_train_batches=4",),
        ("trainer.accumulate_grad_batches=2",),
        ("trainer.val_check_interval=3", "ema=0.99"),
        ("data.train_size=[[0,16],[1,24]]", "ema=0.9", "model=simple_cnn_64", "model.head=avg"),
        ("data.sampler=balanced", "mix.mixup=0.4", "mix.cutmix=1.0", "loss.class_weight=balanced", "data.cache=disk"),
    ],
)
def test_same_bits_with_other_rhythms(limits: tuple[str, ...], folder: Path, tmp_path: Path) -> None:
    """Shorter epochs, validations in between, several batches a step: stopped at every checkpoint there was."""
    arguments = (*RUN, *EVERY_THREE, *limits, f"data.root={folder}", "scheduler=step")
    assert run("train", *arguments, "run_dir=whole", cwd=tmp_path).code == 0
    whole = tmp_path / "whole"
    steps = sorted(int(path.stem.split("=")[1]) for path in (whole / "checkpoints").glob("step*"))
    assert len(steps) >= 3
    for step in steps[:-1]:
        run_dir = stopped_at(step, whole, tmp_path / f"stopped{step}")
        result = run("train", f"resume={run_dir}", cwd=tmp_path)
        assert result.code == 0, result.err
        last = f"stepstep={steps[-1]}.ckpt"
        assert_equal(run_dir / "checkpoints" / last, whole / "checkpoints" / last)
        assert without_time(run_dir) == without_time(whole), step


def test_fewer_epochs_than_are_done(uninterrupted: Path, tmp_path: Path) -> None:
    run_dir = stopped_at(9, uninterrupted, tmp_path / "stopped")
    result = run("train", f"resume={run_dir}", "trainer.max_epochs=1", cwd=tmp_path)
    # in its second epoch, one is done
    assert result.code in (0, 2)
    shutil.copy(uninterrupted / "checkpoints" / "stepstep=18.ckpt", run_dir / "checkpoints" / "last.ckpt")
    result = run("train", f"resume={run_dir}", "trainer.max_epochs=1", cwd=tmp_path)
    assert result.code == 2
    assert "3 epochs are done already: use trainer.max_epochs=4 or more" in result.err


def test_interrupted_by_hand(folder: Path, tmp_path: Path) -> None:
    """Ctrl-C ends with a word on how to go on, and that works."""
    endless = ("trainer.max_epochs=5000", "callbacks.early_stopping=null")
    process = start("train", *RUN, f"data.root={folder}", *endless, cwd=tmp_path)
    while process.poll() is None and not list(tmp_path.rglob("last.ckpt")):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    (run_dir,) = runs(tmp_path / "logs")
    assert f"go on with resume={run_dir.relative_to(tmp_path)}" in output
    assert "Traceback" not in output


def test_on_another_device(folder: Path, tmp_path: Path) -> None:
    """`trainer=cpu` changes where the run goes on, not for how long."""
    assert run("train", *RUN, f"data.root={folder}", "trainer.max_epochs=2", "run_dir=run", cwd=tmp_path).code == 0
    assert run("train", "resume=run", "trainer=cpu", cwd=tmp_path).code == 0
    assert metrics(tmp_path / "run")["epoch"] == 2


def test_before_the_first_checkpoint(uninterrupted: Path, tmp_path: Path) -> None:
    run_dir = stopped_at(3, uninterrupted, tmp_path / "stopped")
    (run_dir / "checkpoints" / "last.ckpt").unlink()
    assert run("train", f"resume={run_dir}", cwd=tmp_path).code == 0
    assert without_time(run_dir) == without_time(uninterrupted)


@pytest.mark.parametrize("scheduler", ["cosine", "one_cycle", "plateau"])
def test_a_finished_run_goes_on(scheduler: str, folder: Path, tmp_path: Path) -> None:
    arguments = (*RUN, f"data.root={folder}", f"scheduler={scheduler}", "trainer.max_epochs=2")
    assert run("train", *arguments, cwd=tmp_path).code == 0
    (run_dir,) = runs(tmp_path / "logs")
    result = run("train", "resume=latest", "trainer.max_epochs=4", cwd=tmp_path)
    assert result.code == 0, result.err
    assert runs(tmp_path / "logs") == [run_dir]
    assert metrics(run_dir)["epoch"] == 4
    with (run_dir / "metrics.csv").open() as file:
        assert sorted({row["epoch"] for row in csv.DictReader(file)}) == ["0", "1", "2", "3"]


def test_the_best_is_kept_when_the_run_was_moved(folder: Path, tmp_path: Path) -> None:
    assert run("train", *RUN, f"data.root={folder}", cwd=tmp_path).code == 0
    (run_dir,) = runs(tmp_path / "logs")
    moved = run_dir.rename(tmp_path / "moved")
    best = (moved / "checkpoints" / "best.ckpt").read_bytes()
    # nothing gets better than all right
    assert run("train", f"resume={moved}", "trainer.max_epochs=4", cwd=tmp_path).code == 0
    assert (moved / "checkpoints" / "best.ckpt").read_bytes() == best
    assert not (tmp_path / "logs" / "folder_cnn").exists() or not runs(tmp_path / "logs")


def test_init_from(folder: Path, uninterrupted: Path, tmp_path: Path) -> None:
    from tests import generate

    generate.image_folder(tmp_path / "two", ("red", "blue"))
    source = uninterrupted / "checkpoints" / "best.ckpt"
    result = run("train", *RUN, "data.root=two", f"init_from={source}", "run_dir=run", "optimizer.lr=0", cwd=tmp_path)
    assert result.code == 0, result.err
    assert "head.3.weight (3, 100) -> (2, 100)" in result.out
    trained, old = weights(tmp_path / "run" / "checkpoints" / "last.ckpt"), weights(source)
    assert torch.equal(trained["network.features.0.weight"], old["network.features.0.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_random_moments(workers: int, folder: Path, tmp_path: Path) -> None:
    """SIGKILL; the same command line with resume=latest; until it is done."""
    arguments = (*RUN, f"data.root={folder}", f"data.num_workers={workers}", "callbacks.last.every_n_train_steps=2",
                 "trainer.max_epochs=12")  # fmt: skip
    assert run("train", *arguments, "run_dir=whole", cwd=tmp_path).code == 0
    process = start("train", *arguments, "name=killed", cwd=tmp_path)
    deadline, kills = time.monotonic() + 300, 0
    for pause in (0.0, 0.3, 0.7, 1.1, 0.5, 0.9):
        while process.poll() is None and not runs(tmp_path / "logs"):  # it has begun to train
            time.sleep(0.05)
            assert time.monotonic() < deadline
        time.sleep(pause if kills == 0 else 5 + pause)
        process.kill()
        kills += process.wait() == -9
        process.communicate()
        (run_dir,) = runs(tmp_path / "logs")
        for checkpoint in (run_dir / "checkpoints").glob("*.ckpt"):
            torch.load(checkpoint, weights_only=True)
        process = start("train", "resume=latest", cwd=tmp_path)
    finish(process)
    assert kills >= 2
    assert_equal(run_dir / "checkpoints" / "last.ckpt", tmp_path / "whole" / "checkpoints" / "last.ckpt")
    assert without_time(run_dir) == without_time(tmp_path / "whole")
