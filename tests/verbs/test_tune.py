"""`tune=`, what happens when memory runs out, and that a long sweep does not take more and more of it."""

import re
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.verbs.command import BARE, QUICK, finish, metrics, refuse, rows, runs, start, succeed

MB = 1 << 20
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and limits memory as Linux does")


@pytest.mark.slow
def test_learning_rate(folder: Path, tmp_path: Path) -> None:
    arguments = (*BARE, f"data.root={folder}", "tune=lr")
    last = succeed("train", *arguments, "optimizer.lr=123", cwd=tmp_path).out.strip().splitlines()[-1]
    assert re.fullmatch(r"optimizer\.lr=[\d.e-]+", last)
    assert 1e-5 < float(last.partition("=")[2]) < 0.1
    assert runs(tmp_path / "logs") == []  # what `latest` looks for
    [run_dir] = (tmp_path / "logs" / "folder_cnn").iterdir()
    assert {path.name for path in run_dir.iterdir()} == {"lr_find.png", "lr_find.csv"}
    with Image.open(run_dir / "lr_find.png") as image:
        assert min(image.size) > 300
    curve = rows(run_dir / "lr_find.csv")
    assert float(curve[0]["rate"]) == pytest.approx(1e-6)
    assert float(curve[0]["loss"]) == pytest.approx(1.1, abs=0.4)  # 3 classes
    repeated = succeed("train", *arguments, last, cwd=tmp_path)
    assert repeated.out.strip().splitlines()[-1] == last  # whatever the rate of the config


def test_a_loss_that_does_not_fall(folder: Path, tmp_path: Path) -> None:
    frozen = ("optimizer=sgd", "optimizer.weight_decay=0", "loss.class_weight=[0,0,0]")
    refuse("train", *BARE, f"data.root={folder}", "tune=lr", *frozen, "run_dir=out", cwd=tmp_path)
    assert (tmp_path / "out" / "lr_find.png").exists()


@pytest.mark.slow
def test_learning_rate_of_two_processes(folder: Path, tmp_path: Path) -> None:
    arguments = (*BARE, f"data.root={folder}", "tune=lr", "trainer=ddp_sim", "data.batch_size=4", "run_dir=out")
    output = finish(start("train", *arguments, cwd=tmp_path))
    assert output.count("optimizer.lr=") == 1
    assert (tmp_path / "out" / "lr_find.png").exists()


@pytest.mark.parametrize(
    ("typed", "use"),
    [
        ("tune=rate", "batch_size lr"),
        ("tune=batch_size trainer=ddp_sim", "trainer.devices=1"),
        ("tune=batch_size", "tune=batch_size GPU"),
    ],
)
def test_wrong_input(typed: str, use: str, folder: Path, tmp_path: Path) -> None:
    message = refuse("train", *BARE, *typed.split(), f"data.root={folder}", cwd=tmp_path)
    assert [part for part in use.split() if part not in message] == []
    assert not (tmp_path / "logs").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batch_size(folder: Path, tmp_path: Path) -> None:
    arguments = ("trainer=gpu", "tune=batch_size", "data.batch_size=6", "trainer.accumulate_grad_batches=2")
    result = succeed("train", *BARE, *arguments, f"data.root={folder}", cwd=tmp_path)
    tried = [int(size) for size in re.findall(r"data\.batch_size=(\d+) .*fits", result.out)]
    assert tried == [2, 4, 8, 16, 32]  # of 42 training images
    assert result.out.strip().splitlines()[-1] == "data.batch_size=12 trainer.accumulate_grad_batches=1"
    assert not (tmp_path / "logs").exists()


def advised(cwd: Path, verb: str, *arguments: str) -> list[str]:
    """What an entry point says to type, that is refused memory for the first layer's output (of 250 MB and more)."""
    process = start(verb, *arguments, "trainer=cpu", cwd=cwd, memory=200 * MB)
    output, _ = process.communicate()
    assert process.returncode == 2, output
    [message] = [line for line in output.splitlines() if line.startswith("error: ")]
    return re.findall(r"\b((?:data\.)?batch_size=\d+|trainer\.accumulate_grad_batches=\d+)", message)


@linux
@pytest.mark.slow
def test_real_lack_of_memory(folder: Path, tmp_path: Path) -> None:
    """The message names what was typed, and what to type for the same effective batch."""
    network = ("model.widths=[32,32]", "model.hidden=[]", "data.image_size=256", "trainer.limit_val_batches=1")
    arguments = (*BARE, *network, "test=false", f"data.root={folder}")
    named, *use = advised(tmp_path, "train", *arguments, "data.batch_size=42")
    assert named == "data.batch_size=42"
    assert use == ["data.batch_size=21", "trainer.accumulate_grad_batches=2"]
    succeed("train", *arguments, *use, "run_dir=run", cwd=tmp_path)
    assert metrics(tmp_path / "run")["global_step"] == 1
    found = advised(tmp_path, "eval", "ckpt_path=run", "split=all", "data.batch_size=60")
    assert found == ["data.batch_size=60", "data.batch_size=30"]
    found = advised(tmp_path, "predict", "ckpt_path=run", f"inputs={folder}", "batch_size=60")
    assert found == ["batch_size=60", "batch_size=30"]


JOBS = 50
# each job holds 8 MB of weights, as many of gradients, twice as many of optimiser state
HEAVY = ("model.widths=[4,8]", "model.head=avg", "model.hidden=[2000,1000]")
SHORT = ("trainer.limit_train_batches=2", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1")


@linux
@pytest.mark.slow
def test_memory_does_not_grow_from_job_to_job(folder: Path, tmp_path: Path) -> None:
    sweep = ("hydra.sweep.dir=sweep", f"seed=range({JOBS})", f"data.root={folder}")
    process = start("train", "-m", *BARE[:2], *QUICK, *HEAVY, *SHORT, *sweep, cwd=tmp_path)
    held = {}
    for job in (9, JOBS - 2):
        while process.poll() is None and not (tmp_path / "sweep" / str(job) / "metrics.json").exists():
            time.sleep(0.02)
        assert process.poll() is None, process.output()
        pages = Path(f"/proc/{process.pid}/statm").read_text().split()[1]
        held[job] = int(pages) * 4096
    finish(process)
    # kept weights alone would be 39 times 8 MB; what malloc holds moves by 100 MB from moment to moment
    assert held[JOBS - 2] - held[9] < 200 * MB, held
