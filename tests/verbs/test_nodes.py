"""Processes that torchrun or SLURM starts, on one machine or two: one run, and the result of one process."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.verbs.command import QUICK, REPOSITORY, metrics, run, runs

TRAIN = str(REPOSITORY / "src" / "train.py")
# nothing that differs between processes by its nature: no BatchNorm, no dropout
EXACT = (
    "experiment=folder_cnn",
    "model=simple_cnn",
    "model.batch_norm=false",
    "model.drop_rate=0",
    *QUICK,
    "trainer.max_epochs=2",
    "trainer.accumulate_grad_batches=2",
)


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
    outputs = [process.communicate(timeout=300)[0] for process in begun]
    return [(process.returncode, output) for process, output in zip(begun, outputs, strict=True)]


def require_the_run_of_one(processes: int, folder: Path, cwd: Path) -> None:
    """The one run below logs/ has the metrics and weights that one process would have had."""
    batch_size = f"data.batch_size={4 * processes}"
    alone = run("train", *EXACT, f"data.root={folder}", batch_size, "run_dir=alone", cwd=cwd)
    assert alone.code == 0, alone.err
    (run_dir,) = runs(cwd / "logs")
    assert [path.name for path in run_dir.parent.iterdir()] == [run_dir.name]
    clock = {"fit_seconds"}
    expected, found = ({k: v for k, v in metrics(each).items() if k not in clock} for each in (cwd / "alone", run_dir))
    assert found == pytest.approx(expected, rel=1e-5)
    left, right = (weights(each) for each in (cwd / "alone", run_dir))
    for name, value in left.items():
        torch.testing.assert_close(right[name], value, atol=1e-4, rtol=1e-3)
    rows = [(each / "metrics.csv").read_text().splitlines() for each in (cwd / "alone", run_dir)]
    assert len(rows[0]) == len(rows[1]) == 3


def weights(run_dir: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return state


@pytest.mark.slow
def test_torchrun(folder: Path, tmp_path: Path) -> None:
    arguments = (*EXACT, "trainer=ddp_sim", "data.batch_size=4", f"data.root={folder}")
    [(code, output)] = together([torchrun(2, TRAIN, *arguments)], tmp_path, [{}])
    assert code == 0, output
    assert output.count("cpu x 2") == 1
    require_the_run_of_one(2, folder, tmp_path)


@pytest.mark.slow
def test_multirun_of_torchrun_is_refused(folder: Path, tmp_path: Path) -> None:
    command = torchrun(2, TRAIN, "-m", *EXACT, "trainer=ddp_sim", f"data.root={folder}", "seed=1,2")
    [(code, output)] = together([command], tmp_path, [{}])
    assert code != 0
    assert "torchrun and -m: leave out torchrun" in output


def test_several_nodes_need_a_launcher(folder: Path, tmp_path: Path) -> None:
    done = run("train", *EXACT, "trainer=ddp_sim", "trainer.num_nodes=2", f"data.root={folder}", cwd=tmp_path)
    assert (done.code, done.err) == (
        2,
        "error: trainer.num_nodes=2 needs processes on each node: start them with torchrun or srun\n",
    )


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
                ip("-n", name, "link", "set", "eth0", "up")
                ip("-n", name, "link", "set", "lo", "up")
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
    assert done[0][1].count("cpu x 4") == 1
    assert "cpu x 4" not in done[1][1]
    require_the_run_of_one(4, folder, tmp_path)


def slurm(rank: int, port: int) -> dict[str, str]:
    """What srun sets for one of two tasks on this machine."""
    return {
        "SLURM_JOB_ID": "4321",
        "SLURM_JOB_NAME": "train",
        "SLURM_STEP_ID": "0",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NNODES": "1",
        "SLURM_NODELIST": "localhost",
        "SLURM_NODEID": "0",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
        "MASTER_PORT": str(port),  # by itself, Lightning takes one that follows from the job's number
    }


@pytest.mark.slow
def test_slurm(folder: Path, tmp_path: Path) -> None:
    """Two tasks of a job; started again, they do not write over their first run, and can go on with it."""
    with socket.socket() as free:
        free.bind(("", 0))
        variables = [slurm(rank, free.getsockname()[1]) for rank in (0, 1)]
    command = [sys.executable, TRAIN, *EXACT, "trainer=ddp_sim", "data.batch_size=4", f"data.root={folder}"]
    done = together([command] * 2, tmp_path, variables)
    assert [code for code, _ in done] == [0, 0], done
    assert [output.count("cpu x 2") for _, output in done] == [1, 0]
    require_the_run_of_one(2, folder, tmp_path)
    (run_dir,) = runs(tmp_path / "logs")
    assert run_dir.name == "slurm_4321_0"

    again = together([command] * 2, tmp_path, variables)
    assert [code for code, _ in again] == [2, 2]
    assert f"holds a run already: use resume={run_dir.relative_to(tmp_path)}" in again[0][1]
    resume = [sys.executable, TRAIN, f"resume={run_dir}", "trainer.max_epochs=3"]
    assert [code for code, _ in together([resume] * 2, tmp_path, variables)] == [0, 0]
    assert metrics(run_dir)["epoch"] == 3
