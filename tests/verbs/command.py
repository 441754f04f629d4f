"""The entry points and scripts, run in this process or in one of their own, as `python src/VERB.py ARGUMENTS` would."""

import contextlib
import csv
import io
import json
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rich

REPOSITORY = Path(__file__).parents[2]

QUICK = (
    "trainer=cpu",
    "trainer.max_epochs=1",
    "trainer.enable_progress_bar=false",
    "trainer.enable_model_summary=false",
    "data.num_workers=0",
    "data.image_size=32",
    "data.batch_size=8",
)
# half of a tiny run's time goes into pictures for TensorBoard
BARE = ("experiment=folder_cnn", "model=simple_cnn", *QUICK, "logger.tensorboard=null")

# processes are forked from one that has imported torch, and has no threads and no GPU in use
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([*(f"classifier.verbs.{verb}" for verb in ("train", "evaluate", "predict")), __name__])


@dataclass
class Result:
    code: int
    out: str
    err: str


def run(
    verb: str, *arguments: str, cwd: Path, folder: str = "src", root: Path = REPOSITORY, encoding: str = "utf-8"
) -> Result:
    """Run an entry point in `cwd`, or a script of another `folder`; its exit code and what it printed.

    Args:
        encoding: Of the terminal.
    """
    bytes_out, bytes_err = io.BytesIO(), io.BytesIO()
    out, err = (io.TextIOWrapper(stream, encoding, write_through=True) for stream in (bytes_out, bytes_err))
    before = list(sys.argv), Path.cwd()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            _execute(root / folder / f"{verb}.py", arguments, cwd)
        code = 0
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    finally:
        sys.argv[:] = before[0]
        os.chdir(before[1])
    return Result(code, *(stream.getvalue().decode(encoding) for stream in (bytes_out, bytes_err)))


def _execute(script: Path, arguments: tuple[str, ...], cwd: Path) -> None:
    sys.argv[:] = [str(script), *arguments]
    os.chdir(cwd)
    rich.reconfigure()  # the console of a process before this one may write to a file that is closed
    runpy.run_path(str(script), run_name="__main__")


def succeed(verb: str, *arguments: str, cwd: Path) -> Result:
    """Run an entry point that has to end well."""
    result = run(verb, *arguments, cwd=cwd)
    assert result.code == 0, result.out + result.err
    return result


def refuse(verb: str, *arguments: str, cwd: Path) -> str:
    """Run an entry point that has to refuse what is typed; its message."""
    result = run(verb, *arguments, cwd=cwd)
    assert result.code == 2, result.out + result.err
    assert "Traceback" not in result.out + result.err
    return result.err


class Started:
    """An entry point in a process of its own, with what is needed here of subprocess.Popen's methods.

    Args:
        memory: Bytes that it may take beyond those it begins with.
    """

    def __init__(self, verb: str, *arguments: str, cwd: Path, folder: str = "src", memory: int | None = None) -> None:
        self._log = tempfile.NamedTemporaryFile("r")  # noqa: SIM115 - closed with this object
        script, environment = REPOSITORY / folder / f"{verb}.py", dict(os.environ)
        self._process = FORKS.Process(target=_child, args=(script, arguments, cwd, self._log.name, environment, memory))
        self._process.start()
        STARTED.append(self)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, signum: int) -> None:
        os.kill(self.pid, signum)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def output(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def communicate(self, timeout: float = 600) -> tuple[str, None]:
        """Wait until it ends; what it printed."""
        self._process.join(timeout)
        assert self.returncode is not None, f"still running after {timeout} s\n{self.output()}"
        return self.output(), None


STARTED: list[Started] = []
start = Started


def _child(
    script: Path, arguments: tuple[str, ...], cwd: Path, log: str, environment: dict[str, str], memory: int | None
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    sys.path[1:1] = [place for place in environment.get("PYTHONPATH", "").split(os.pathsep) if place]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background process ignores
    os.setpgid(0, 0)  # as a shell or `timeout` does
    multiprocessing.set_start_method("fork", force=True)  # of reading processes, as in a program of its own
    with Path(log).open("ab", 0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    if memory is not None:
        _limit(memory)
    _execute(script, arguments, cwd)


def _limit(memory: int) -> None:
    import ctypes
    import resource

    ctypes.CDLL(None).mallopt(-3, 1_000_000)  # freed blocks of 1 MB go back to the system, and do not count
    held = int(Path("/proc/self/status").read_text().partition("VmData:")[2].split()[0])
    resource.setrlimit(resource.RLIMIT_DATA, (1024 * held + memory,) * 2)


def finish(process: Started) -> str:
    """Wait for the process to succeed; what it printed."""
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


def runs(log_dir: Path) -> list[Path]:
    """All run directories below `log_dir`, in text order."""
    return sorted(path.parent for path in log_dir.rglob("config.yaml"))


def metrics(run_dir: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((run_dir / "metrics.json").read_text())
    return loaded


def numbers(run_dir: Path) -> dict[str, Any]:
    """The metrics, but for how long it took."""
    return {key: value for key, value in metrics(run_dir).items() if key != "fit_seconds"}


def of_test(found: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key.startswith("test/")}


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open() as file:
        return list(csv.DictReader(file))


def evaluated(cwd: Path, *arguments: str, ckpt_path: str = "run", output: str = "out") -> dict[str, Any]:
    """Metrics of an evaluation, which wrote to cwd/`output`."""
    succeed("eval", f"ckpt_path={ckpt_path}", "trainer=cpu", f"output_dir={output}", *arguments, cwd=cwd)
    return metrics(cwd / output)


def weights(run_dir: Path, name: str = "last") -> dict[str, Any]:
    import torch

    state: dict[str, Any] = torch.load(run_dir / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]
    return state
