"""Several processes, started by Lightning, torchrun or SLURM: one run directory, and the results of one process."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests import generate
from tests.verbs.command import (
    BARE,
    REPOSITORY,
    evaluated,
    finish,
    metrics,
    numbers,
    refuse,
    rows,
    runs,
    start,
    succeed,
    weights,
)

TRAIN = str(REPOSITORY / "src" / "train.py")
TWO = (*BARE, "trainer=ddp_sim", "trainer.max_epochs=2", "data.batch_size=4")
# nothing that differs between processes by its nature: no BatchNorm, no dropout
EXACT = (*BARE, "model.batch_norm=false", "model.drop_rate=0", "trainer.max_epochs=2",
         "trainer.accumulate_grad_batches=2")  # fmt: skip


def require_close(one: Path, two: Path, tolerance: float = 1e-4) -> None:
    """Sums in another order, else the same."""
    assert metrics(one)["global_step"] == metrics(two)["global_step"]
    for name in ("train/loss", "val/loss", "test/loss"):
        assert metrics(two)[name] == pytest.approx(metrics(one)[name], rel=tolerance)


@pytest.mark.slow
def test_two_processes_make_one_run(folder: Path, tmp_path: Path) -> None:
    """BatchNorm's statistics and the average of weights that are validated are those that are saved."""
    options = ("model.batch_norm=true", "ema=0.9", "callbacks.best=null")
    output = finish(start("train", *TWO, *options, f"data.root={folder}", cwd=tmp_path))
    (run_dir,) = runs(tmp_path / "logs")
    assert output.count("cpu x 2") == 1
    assert metrics(run_dir)["global_step"] == 12  # 42 images, 2 x 4 a step, 2 epochs
    assert {path.name for path in (run_dir / "checkpoints").iterdir()} == {"last.ckpt"}
    assert [row["epoch"] for row in rows(run_dir / "metrics.csv")][:2] == ["1", "2"]
    found = evaluated(tmp_path, "split=val", ckpt_path=f"{run_dir}/checkpoints/last.ckpt")
    assert found["val/loss"] == pytest.approx(metrics(run_dir)["val/loss"], abs=1e-5)


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    """The same global batches, draws and class weights, the last ones of an epoch too; in a sweep, in each job."""
    for number, (name, count) in enumerate((("blue", 40), ("red", 8))):
        generate.image_folder(tmp_path / "photos", [name], count, seed=100 * number)
    same = (*TWO, "model.drop_rate=0", "augment=none", "trainer.accumulate_grad_batches=2", "data.sampler=balanced",
            "data.root=photos", "loss.class_weight=[0.5,2.0]", "loss.label_smoothing=0.1")  # fmt: skip
    finish(start("train", "-m", *same, "seed=0,1", "hydra.sweep.dir=two", cwd=tmp_path))
    succeed("train", "-m", *same, "seed=0,1", "trainer=cpu", "data.batch_size=8", "hydra.sweep.dir=one", cwd=tmp_path)
    for job in ("0", "1"):
        require_close(tmp_path / "one" / job, tmp_path / "two" / job)
    assert metrics(tmp_path / "two" / "0")["train/loss"] != metrics(tmp_path / "two" / "1")["train/loss"]


@pytest.mark.slow
def test_two_processes_unfreeze_as_one_does(tmp_path: Path) -> None:
    """Stage by stage, with the gradients of each new one summed: the weights of one process with twice the batch."""
    generate.image_folder(tmp_path / "photos", ["blue", "red"], 24)
    same = (*TWO, "model.widths=[4,4,8]", "model.drop_rate=0", "augment=none", "data.drop_last=true",
            "data.root=photos", "finetune=gradual", "finetune.head_epochs=1", "finetune.backbone_lr=0.5",
            "trainer.max_epochs=5", "optimizer=sgd", "scheduler=constant", "scheduler.warmup_epochs=0",
            "trainer.accumulate_grad_batches=2")  # fmt: skip
    finish(start("train", *same, "run_dir=two", cwd=tmp_path))
    succeed("train", *same, "trainer=cpu", "data.batch_size=8", "run_dir=one", cwd=tmp_path)
    finish(start("train", *same, "trainer.max_epochs=2", "run_dir=resumed", cwd=tmp_path))
    finish(start("train", "resume=resumed", "trainer.max_epochs=5", cwd=tmp_path))
    one, two, resumed = (weights(tmp_path / name) for name in ("one", "two", "resumed"))
    for name, value in two.items():
        assert torch.equal(resumed[name], value), name
        torch.testing.assert_close(value, one[name], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_shards_learn_what_copies_do(folder: Path, tmp_path: Path) -> None:
    """And their checkpoints are those of one process: to evaluate, and to resume from."""
    network = ("model=timm", "model.name=vit_tiny_patch16_224", "model.pretrained=false", "augment=none")
    same = (*TWO, *network, f"data.root={folder}", "trainer.gradient_clip_val=0.1", "trainer.max_epochs=1",
            "speed.channels_last=false")  # fmt: skip
    finish(start("train", *same, "run_dir=copies", cwd=tmp_path))
    finish(start("train", *same, "trainer.strategy=sharded", "run_dir=shards", cwd=tmp_path))
    require_close(tmp_path / "copies", tmp_path / "shards", tolerance=1e-3)
    found = evaluated(tmp_path, "split=val", ckpt_path="shards/checkpoints/last.ckpt")
    assert found["val/loss"] == pytest.approx(metrics(tmp_path / "shards")["val/loss"], abs=1e-4)
    resumed = ("resume=shards", "trainer.max_epochs=2")
    finish(start("train", *resumed, cwd=tmp_path))
    assert metrics(tmp_path / "shards")["global_step"] == 2 * metrics(tmp_path / "copies")["global_step"]
    assert "sharded" in refuse("train", *resumed, "trainer.strategy=ddp", cwd=tmp_path)


@pytest.mark.slow
def test_a_batch_that_is_too_large_is_refused_once(folder: Path, tmp_path: Path) -> None:
    process = start("train", *TWO, f"data.root={folder}", "trainer.devices=7", "data.batch_size=8", cwd=tmp_path)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 2
    assert output.count("error: ") == 1
    assert "data.batch_size=4" in output


def torchrun(processes: int, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), *arguments]


def together(commands: list[list[str]], cwd: Path, variables: Sequence[Mapping[str, str]]) -> list[tuple[int, str]]:
    """Exit codes and outputs of commands that run beside each other."""
    begun = [
        subprocess.Popen(
            command, cwd=cwd, env={**os.environ, **own}, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for command, own in zip(commands, variables, strict=True)
    ]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in begun]
    finally:
        for process in begun:
            process.kill()
    return [(process.returncode, output) for process, output in zip(begun, outputs, strict=True)]


def require_the_run_of_one(processes: int, folder: Path, cwd: Path) -> None:
    """The one run below logs/ has the metrics and weights that one process would have had."""
    alone = cwd / "alone"
    succeed("train", *EXACT, f"data.root={folder}", f"data.batch_size={4 * processes}", "run_dir=alone", cwd=cwd)
    (run_dir,) = runs(cwd / "logs")
    assert [path.name for path in run_dir.parent.iterdir()] == [run_dir.name]
    assert numbers(run_dir) == pytest.approx(numbers(alone), rel=1e-4)
    found = weights(run_dir)
    for name, value in weights(alone).items():
        torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-3)
    assert len(rows(alone / "metrics.csv")) == len(rows(run_dir / "metrics.csv")) == 2


@pytest.mark.slow
def test_torchrun(folder: Path, tmp_path: Path) -> None:
    arguments = (*EXACT, "trainer=ddp_sim", "data.batch_size=4", f"data.root={folder}")
    at = ("--master-port", str(free_port()))
    [(code, output)] = together([torchrun(2, *at, TRAIN, *arguments)], tmp_path, [{}])
    assert code == 0, output
    assert output.count("cpu x 2") == 1
    require_the_run_of_one(2, folder, tmp_path)
    [(code, output)] = together([torchrun(2, *at, TRAIN, "-m", *arguments, "seed=1,2")], tmp_path, [{}])
    assert code != 0
    assert "error: " in output
    assert len(runs(tmp_path / "logs")) == 1


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        port: int = free.getsockname()[1]
        return port


@contextmanager
def two_hosts() -> Iterator[list[str]]:
    """Two network namespaces with a cable between their eth0: 10.99.0.1 and 10.99.0.2."""
    names = [f"classifier_{os.getpid()}_{number}" for number in (1, 2)]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True, text=True)

    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", "eth0", "netns", names[0], "type", "veth", "peer", "name", "eth0", "netns", names[1])
            for number, name in enumerate(names, start=1):
                ip("-n", name, "addr", "add", f"10.99.0.{number}/24", "dev", "eth0")
                for device in ("eth0", "lo"):
                    ip("-n", name, "link", "set", device, "up")
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no network namespaces here: {getattr(error, 'stderr', error)}")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.mark.slow
def test_two_nodes(folder: Path, tmp_path: Path) -> None:
    """Two processes on each of two hosts, which share a file system."""
    arguments = (*EXACT, "trainer=ddp_sim", "trainer.num_nodes=2", "data.batch_size=4", f"data.root={folder}")
    at = ("--nnodes", "2", "--master-addr", "10.99.0.1", "--master-port", "29500")
    with two_hosts() as hosts:
        commands = [
            ["ip", "netns", "exec", host, *torchrun(2, *at, "--node-rank", str(rank), TRAIN, *arguments)]
            for rank, host in enumerate(hosts)
        ]
        done = together(commands, tmp_path, [{"GLOO_SOCKET_IFNAME": "eth0"}] * 2)
    assert [code for code, _ in done] == [0, 0], done
    assert [output.count("cpu x 4") for _, output in done] == [1, 0]
    require_the_run_of_one(4, folder, tmp_path)


def slurm(rank: int, port: int) -> dict[str, str]:
    """What srun sets for one of two tasks on this machine."""
    task = {"JOB_ID": 4321, "JOB_NAME": "train", "STEP_ID": 0, "NTASKS": 2, "NTASKS_PER_NODE": 2, "NNODES": 1,
            "NODELIST": "localhost", "NODEID": 0, "PROCID": rank, "LOCALID": rank}  # fmt: skip
    # by itself, Lightning takes a port that follows from the job's number
    return {"MASTER_PORT": str(port), **{f"SLURM_{key}": str(value) for key, value in task.items()}}


@pytest.mark.slow
def test_slurm(folder: Path, tmp_path: Path) -> None:
    """Two tasks of a job; started again, they do not write over their first run, and can resume it."""

    def tasks(*arguments: str) -> list[tuple[int, str]]:
        port = free_port()
        return together([[sys.executable, TRAIN, *arguments]] * 2, tmp_path, [slurm(rank, port) for rank in (0, 1)])

    typed = (*EXACT, "trainer=ddp_sim", "data.batch_size=4", f"data.root={folder}")
    done = tasks(*typed)
    assert [code for code, _ in done] == [0, 0], done
    assert [output.count("cpu x 2") for _, output in done] == [1, 0]
    require_the_run_of_one(2, folder, tmp_path)
    (run_dir,) = runs(tmp_path / "logs")
    assert run_dir.name == "slurm_4321_0"
    again = tasks(*typed)
    assert [code for code, _ in again] == [2, 2]
    assert f"resume={run_dir.relative_to(tmp_path)}" in again[0][1]
    assert [code for code, _ in tasks(f"resume={run_dir}", "trainer.max_epochs=3")] == [0, 0]
    assert metrics(run_dir)["epoch"] == 3
