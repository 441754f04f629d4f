"""`tune=` and what happens when memory really runs out."""

import csv
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.verbs.command import QUICK, REPOSITORY, Result, finish, metrics, run, runs, start

FOLDER = ("experiment=folder_cnn", "model=simple_cnn", *QUICK)


def test_learning_rate(folder: Path, tmp_path: Path) -> None:
    result = run("train", *FOLDER, f"data.root={folder}", "tune=lr", "optimizer.lr=123", cwd=tmp_path)
    assert result.code == 0, result.err
    last = result.out.strip().splitlines()[-1]
    assert re.fullmatch(r"optimizer\.lr=[\d.e-]+", last)
    assert 1e-5 < float(last.partition("=")[2]) < 0.1
    assert runs(tmp_path / "logs") == []  # what `latest` looks for
    [run_dir] = (tmp_path / "logs" / "folder_cnn").iterdir()
    names = {path.name for path in run_dir.iterdir() if not path.name.startswith("events.out")}
    assert names == {"lr_find.png", "lr_find.csv"}
    with Image.open(run_dir / "lr_find.png") as image:
        assert image.size == (840, 540)
    with (run_dir / "lr_find.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["rate"]) == pytest.approx(1e-6)
    assert float(rows[0]["loss"]) == pytest.approx(1.1, abs=0.4)  # 3 classes
    events = EventAccumulator(str(run_dir))
    events.Reload()
    assert events.Tags()["images"] == ["lr_find"]
    repeated = run("train", *FOLDER, f"data.root={folder}", "tune=lr", last, cwd=tmp_path)
    assert repeated.out.strip().splitlines()[-1] == last  # whatever the rate of the config


def test_learning_rate_without_tensorboard(folder: Path, tmp_path: Path) -> None:
    run("train", *FOLDER, f"data.root={folder}", "tune=lr", "logger.tensorboard=null", "run_dir=out", cwd=tmp_path)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"lr_find.png", "lr_find.csv"}


def test_loss_that_does_not_fall(folder: Path, tmp_path: Path) -> None:
    frozen = ("optimizer=sgd", "optimizer.weight_decay=0", "loss.class_weight=[0,0,0]")
    result = run("train", *FOLDER, f"data.root={folder}", "tune=lr", *frozen, "run_dir=out", cwd=tmp_path)
    assert result.code == 2
    assert "no learning rate to suggest" in result.err
    assert (tmp_path / "out" / "lr_find.png").exists()


@pytest.mark.slow
def test_learning_rate_of_two_processes(folder: Path, tmp_path: Path) -> None:
    arguments = (*FOLDER, f"data.root={folder}", "tune=lr", "trainer=ddp_sim", "data.batch_size=4")
    output = finish(start("train", *arguments, cwd=tmp_path))
    assert output.count("optimizer.lr=") == 1
    [run_dir] = (tmp_path / "logs" / "folder_cnn").iterdir()
    assert (run_dir / "lr_find.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tune=rate",), "tune=rate is unknown: choose from: batch_size, lr"),
        (("tune=batch_size", "trainer=ddp_sim"), "tune=batch_size tries one process, not 2: use trainer.devices=1"),
        (("on_oom=skip",), "on_oom=skip is unknown"),
    ],
)
def test_wrong_input(arguments: tuple[str, ...], message: str, folder: Path, tmp_path: Path) -> None:
    result = run("train", *FOLDER, f"data.root={folder}", *arguments, cwd=tmp_path)
    assert result.code == 2
    assert message in result.err
    assert not (tmp_path / "logs").exists()


def test_batch_size_where_all_fit(folder: Path, tmp_path: Path) -> None:
    arguments = (f"data.root={folder}", "tune=batch_size", "data.batch_size=6", "trainer.accumulate_grad_batches=2")
    before = resource.getrlimit(resource.RLIMIT_DATA)
    result = run("train", *FOLDER, *arguments, cwd=tmp_path)
    assert result.code == 0, result.err
    tried = [int(size) for size in re.findall(r"data\.batch_size=(\d+) \(32x32 pixels, 32-true\) fits", result.out)]
    assert tried == [2, 3, 4, 6, 8, 12, 16, 32]  # of 42 training images
    assert result.out.strip().splitlines()[-1] == "data.batch_size=12 trainer.accumulate_grad_batches=1"
    assert not (tmp_path / "logs").exists()
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_batch_size_is_that_of_the_largest_images(folder: Path, tmp_path: Path) -> None:
    growing = (
        "data.train_size=[[0,16],[2,24],[4,20]]",
        "model.head=avg",
        "data.batch_size=2",
        "data.limit_per_class=2",
    )
    result = run("train", *FOLDER, f"data.root={folder}", "tune=batch_size", *growing, cwd=tmp_path)
    assert result.code == 0, result.err
    assert "data.batch_size=4 (24x24 pixels, 32-true) fits" in result.out


def test_run_that_is_resumed(folder: Path, tmp_path: Path) -> None:
    """It keeps what it does without memory, or takes another way; there is nothing to tune."""
    arguments = (*FOLDER, f"data.root={folder}", "on_oom=accumulate", "test=false", "run_dir=out")
    assert run("train", *arguments, cwd=tmp_path).code == 0
    for epochs, typed, kept in ((2, (), "accumulate"), (3, ("on_oom=raise",), "raise")):
        result = run("train", "resume=out", f"trainer.max_epochs={epochs}", *typed, cwd=tmp_path)
        assert result.code == 0, result.err
        assert f"on_oom: {kept}" in (tmp_path / "out" / "config.yaml").read_text()
    result = run("train", "resume=out", "tune=lr", cwd=tmp_path)
    assert result.code == 2
    assert "there is no key tune" in result.err


def limited(gigabytes: float, verb: str, *arguments: str, cwd: Path) -> Result:
    """Run an entry point in a process that is refused more memory; some 1.1 GB are torch's own."""
    size = int(gigabytes * 1e9)
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "src" / f"{verb}.py"), *arguments],
        cwd=cwd,
        # freed blocks go back to the system, and do not count
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (size, size)),
        capture_output=True,
        text=True,
        timeout=300,
    )
    return Result(done.returncode, done.stdout, done.stderr)


linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not hold a process to RLIMIT_DATA")


@linux
@pytest.mark.slow
def test_real_lack_of_memory(folder: Path, tmp_path: Path) -> None:
    """It is told; what was told works; so does on_oom=accumulate; and tune=batch_size knows before."""
    arguments = ("train", *FOLDER, "model.hidden=[]", "data.image_size=128", "trainer.limit_val_batches=1",
                 "test=false", f"data.root={folder}", "data.batch_size=42")  # fmt: skip
    told = limited(1.4, *arguments, cwd=tmp_path)
    assert told.code == 2
    expected = (
        "error: out of memory with data.batch_size=42 (128x128 pixels, 32-true): use data.batch_size=21 "
        "trainer.accumulate_grad_batches=2 for the same effective batch, or on_oom=accumulate"
    )
    assert told.err.strip().splitlines()[-1] == expected

    divided = limited(1.4, *arguments, "on_oom=accumulate", "run_dir=divided", cwd=tmp_path)
    assert divided.code == 0, divided.err
    assert "out of memory with 42 images at a time: going on with 21" in divided.out
    assert metrics(tmp_path / "divided")["global_step"] == 1

    found = limited(1.4, *arguments, "tune=batch_size", cwd=tmp_path)
    assert found.code == 0, found.err
    [typed] = [line for line in found.out.splitlines() if line.startswith("data.batch_size=") and "acc" in line]
    assert "does not fit" in found.out
    obeyed = limited(1.4, *arguments, *typed.split(), "run_dir=obeyed", cwd=tmp_path)
    assert obeyed.code == 0, obeyed.err
    assert metrics(tmp_path / "obeyed")["global_step"] == 1

    evaluated = limited(1.15, "eval", "ckpt_path=obeyed", "split=all", "data.batch_size=60", cwd=tmp_path)
    assert evaluated.code == 2
    assert (
        "error: out of memory with data.batch_size=60 (128x128 pixels, 32-true): use data.batch_size=30"
        in evaluated.err
    )
    predicted = limited(1.15, "predict", "ckpt_path=obeyed", f"inputs={folder}", "batch_size=60", cwd=tmp_path)
    assert predicted.code == 2
    assert "error: out of memory with batch_size=60: use batch_size=30" in predicted.err
