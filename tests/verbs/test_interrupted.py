"""Runs that are killed, preempted, or run out of disk: each ends with the bits of one that was left alone."""

import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from classifier.files import writers
from classifier.training.checkpoints import read_checkpoint
from tests.small_disk import mounted
from tests.verbs.command import BARE, QUICK, REPOSITORY, Started, finish, numbers, refuse, rows, runs, start, succeed

PREEMPTED = 143
CLOCKED = ("train/images_per_second", "train/data_wait")
# a checkpoint after each of 240 steps: much of the time one is being written
RUN = ("experiment=folder_cnn", *QUICK, "model=simple_cnn", "model.hidden=[]", "augment=standard",
       "callbacks.early_stopping=null", "trainer.max_epochs=40", "trainer.val_check_interval=3",
       "callbacks.last.every_n_train_steps=1", "callbacks.best.save_top_k=2", "resume=auto")  # fmt: skip


def contents(run_dir: Path) -> dict[str, Any]:
    """All that a run leaves, but for times, places and versions."""
    state = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    kept = ("state_dict", "lr_schedulers", "global_step", "epoch", "train_counts")
    found = {key: state[key] for key in kept}
    [optimizer] = state["optimizer_states"]
    found["optimizer"] = optimizer["state"]
    found["rates"] = [group["lr"] for group in optimizer["param_groups"]]
    found["metrics"] = numbers(run_dir)
    found["epochs"] = [
        {key: float(value) for key, value in row.items() if value and key not in CLOCKED}
        for row in rows(run_dir / "metrics.csv")
    ]
    for path in sorted((run_dir / "checkpoints").glob("best*")):
        found[path.name] = torch.load(path, weights_only=True)["state_dict"]
    return found


def assert_same(run_dir: Path, whole: Path) -> None:
    torch.testing.assert_close(contents(run_dir), contents(whole), rtol=0, atol=0)


def assert_all_open(run_dir: Path) -> None:
    for checkpoint in (run_dir / "checkpoints").glob("*.ckpt"):
        torch.load(checkpoint, weights_only=True)


def wait_for(happened: Callable[[], object], *processes: Started) -> None:
    """While they run."""
    deadline = time.monotonic() + 300  # for a process that hangs
    while not happened():
        assert all(process.poll() is None for process in processes), f"it ended before\n{processes[0].output()}"
        assert time.monotonic() < deadline
        time.sleep(0.002)


def wait_for_checkpoints(count: int, run_dir: Path, process: Started) -> None:
    """Until `last.ckpt` was seen to be replaced so many times."""
    last = run_dir / "checkpoints" / "last.ckpt"

    def written() -> int:
        return last.stat().st_ino if last.exists() else 0

    for _ in range(count):
        before = written()
        wait_for(lambda before=before: written() not in (0, before), process)  # type: ignore[misc]


def start_count(run_dir: Path) -> int:
    path = run_dir / "starts.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture(scope="session")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cwd = tmp_path_factory.mktemp("whole")
    succeed("train", *RUN, f"data.root={folder}", "run_dir=whole", cwd=cwd)
    return cwd / "whole"


def scratches(run_dir: Path) -> list[Path]:
    return [*(run_dir / "checkpoints").glob(".*.part")]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("signum", "times"), [(signal.SIGKILL, 10), (signal.SIGTERM, 20)])
def test_stopped_often(
    signum: signal.Signals, times: int, workers: int, whole: Path, folder: Path, tmp_path: Path
) -> None:
    """The same command until it is done, stopped after some steps; every second time while a checkpoint is written.

    SIGTERM comes to the process group, most often in a validation.
    """
    command = (*RUN, f"data.root={folder}", f"data.num_workers={workers}", "run_dir=run")
    run_dir, draw = tmp_path / "run", random.Random(workers)
    for number in range(times):
        process = start("train", *command, cwd=tmp_path)
        wait_for(lambda seen=number: start_count(run_dir) > seen, process)  # type: ignore[misc]
        wait_for_checkpoints(draw.randrange(6), run_dir, process)
        if number % 2:
            wait_for(lambda: scratches(run_dir), process)
        elif signum == signal.SIGTERM:
            time.sleep(draw.uniform(0, 0.1))
        os.kill(process.pid if signum == signal.SIGKILL else -process.pid, signum)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == (-signal.SIGKILL if signum == signal.SIGKILL else PREEMPTED), output
        # the reading processes of a killed one may lose a connection, and say so
        assert signum == signal.SIGKILL or "Traceback" not in output
        assert_all_open(run_dir)
    succeed("train", *command, cwd=tmp_path)
    assert not scratches(run_dir)
    assert start_count(run_dir) == times + 1
    assert_same(run_dir, whole)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_pairs_of_one_run(workers: int, whole: Path, folder: Path, tmp_path: Path) -> None:
    """Two start or resume a run at once: one is refused and changes nothing, the other is killed. 25 times each."""
    draw, marker, run_dir = random.Random(workers), "callbacks.progress_bar.refresh_rate=", tmp_path / "run"
    watched = [run_dir / "checkpoints" / f"{name}.ckpt" for name in ("last", "best")]
    for number in range(25):
        again = (*RUN, f"data.root={folder}", "run_dir=run")
        ways = [again, again if start_count(run_dir) == 0 else ("resume=run",)]
        more = [(f"data.num_workers={workers}", f"{marker}{2 * number + n}") for n in (1, 2)]
        pair = [start("train", *way, *rest, cwd=tmp_path) for way, rest in zip(ways, more, strict=True)]
        wait_for(lambda pair=pair: any(process.poll() is not None for process in pair))  # type: ignore[misc]
        loser, winner = sorted(pair, key=lambda process: process.returncode is None)
        assert loser.returncode == 2, loser.output()
        assert f"process {winner.pid} on {platform.node()} " in loser.output()
        assert "run_dir=run" in loser.output()
        until = time.monotonic() + draw.uniform(0, 2)
        while time.monotonic() < until:
            for path in watched:
                assert not path.exists() or read_checkpoint(path)
        winner.kill()
        assert winner.returncode in (0, -signal.SIGKILL), winner.output()
        starts = (run_dir / "starts.jsonl").read_text() if start_count(run_dir) else ""
        assert more[pair.index(loser)][1] not in starts
        if (run_dir / "metrics.json").exists():
            assert_same(run_dir, whole)
            shutil.rmtree(run_dir)
    finish(start("train", *again, *more[0], cwd=tmp_path))
    assert_same(run_dir, whole)


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_one_of_two_processes_gets_the_signal(signum: signal.Signals, folder: Path, tmp_path: Path) -> None:
    command = (*RUN, f"data.root={folder}", "trainer=ddp_sim", "data.batch_size=4", "trainer.max_epochs=6")
    run_dir = tmp_path / "run"
    finish(start("train", *command, "run_dir=whole", cwd=tmp_path))
    for number, child in enumerate((False, True, False)):
        process = start("train", *command, "run_dir=run", cwd=tmp_path)
        wait_for(lambda seen=number: start_count(run_dir) > seen, process)  # type: ignore[misc]
        wait_for_checkpoints(number, run_dir, process)
        found = subprocess.run(["pgrep", "-P", str(process.pid), "-f", "train.py"], capture_output=True, text=True)
        target = int(found.stdout.split()[0]) if child else process.pid
        subprocess.run(["kill", f"-{signum.value}", str(target)], check=True)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 128 + signum, output
        assert_all_open(run_dir)
    finish(start("train", *command, "run_dir=run", cwd=tmp_path))
    assert_same(run_dir, tmp_path / "whole")


@pytest.mark.slow
def test_interrupted_by_hand(folder: Path, tmp_path: Path) -> None:
    """Ctrl-C ends the run and names what resumes it. Until then, no other process starts or resumes it."""
    endless = (*BARE, f"data.root={folder}", "trainer.max_epochs=100000", "callbacks.early_stopping=null")
    process = start("train", *endless, "resume=auto", cwd=tmp_path)
    wait_for(lambda: list(tmp_path.rglob("last.ckpt")), process)
    (run_dir,) = runs(tmp_path / "logs")
    refusal = refuse("train", *endless, "resume=auto", cwd=tmp_path)
    assert f"process {process.pid} on {platform.node()} " in refusal
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 130, output
    assert runs(tmp_path / "logs") == [run_dir]
    done = len(rows(run_dir / "metrics.csv"))
    said = re.search(rf"epoch (\d+): resume={run_dir.relative_to(tmp_path)}", output)
    assert said is not None
    assert int(said[1]) in (done, done + 1)
    assert "Traceback" not in output
    assert_all_open(run_dir)


INTERRUPTED = """
import os, runpy, signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)
_, module, *sys.argv = sys.argv
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background process ignores
sys.meta_path.insert(0, Finder())
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    ("script", "module"), [("src/train.py", "torch"), ("src/eval.py", "hydra"), ("scripts/preview.py", "omegaconf")]
)
def test_ctrl_c_while_it_imports(script: str, module: str, trained: Path, tmp_path: Path) -> None:
    """When a module is looked for."""
    words = [str(REPOSITORY / script), *([f"ckpt_path={trained}"] if "eval" in script else [])]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src")}
    command = [sys.executable, "-c", INTERRUPTED, module, *words]
    ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode in (-signal.SIGINT, 130), ended.stderr
    assert "Traceback" not in ended.stderr


def test_preempted_before_it_trains(folder: Path, tmp_path: Path) -> None:
    process = start("train", *RUN, f"data.root={folder}", cwd=tmp_path)
    wait_for(lambda: list(tmp_path.glob("logs/*/*")), process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=300)
    assert process.returncode in (PREEMPTED, -signal.SIGTERM), output
    assert "Traceback" not in output
    assert not runs(tmp_path) or start_count(runs(tmp_path)[0]) == 1


def test_the_scratch_of_a_killed_write_is_no_checkpoint(trained: Path, tmp_path: Path) -> None:
    run_dir = Path(shutil.copytree(trained, tmp_path / "run"))
    (run_dir / "metrics.json").unlink()
    ended = start("train", "--help", cwd=tmp_path)
    ended.communicate()
    left = run_dir / "checkpoints" / f".last.ckpt.{writers()}-{ended.pid}.part"
    left.write_bytes(b"half")
    root = f"data.root={trained.parents[2] / 'photos'}"
    succeed("train", f"resume={run_dir}", "trainer.max_epochs=5", root, cwd=tmp_path)
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir())[0] == "best.ckpt"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MiB."""
    with mounted(tmp_path / "disk", "8m") as disk:
        yield disk


@pytest.mark.slow
@pytest.mark.parametrize("left", [0, 40 << 10], ids=["nothing", "too little for a checkpoint"])
def test_full_disk(left: int, small_disk: Path, whole: Path, folder: Path, tmp_path: Path) -> None:
    """A clear message; the last good checkpoint opens, and the run goes on from it once there is room."""
    run_dir = small_disk / "run"
    process = start("train", *RUN, f"data.root={folder}", f"run_dir={run_dir}", cwd=tmp_path)
    wait_for((run_dir / "checkpoints" / "best.ckpt").exists, process)
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space left"):
        filler.write_bytes(bytes(16 << 20))
    with filler.open("r+b") as file:
        file.truncate(max(0, filler.stat().st_size - left))
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 2, output
    assert "Traceback" not in output
    assert "error: " in output
    assert_all_open(run_dir)
    filler.unlink()
    succeed("train", *RUN, f"data.root={folder}", f"run_dir={run_dir}", cwd=tmp_path)
    assert_same(run_dir, whole)
