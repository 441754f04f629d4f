"""The entry points and scripts, run in this process as `python src/VERB.py ARGUMENTS` would be."""

import contextlib
import io
import json
import os
import runpy
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


@dataclass
class Result:
    code: int
    out: str
    err: str


def run(verb: str, *arguments: str, cwd: Path, folder: str = "src") -> Result:
    """Run an entry point in `cwd`, or a script of another `folder`; its exit code and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    argv, before = sys.argv, Path.cwd()
    sys.argv = [str(REPOSITORY / folder / f"{verb}.py"), *arguments]
    os.chdir(cwd)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    finally:
        sys.argv = argv
        os.chdir(before)
    return Result(code, out.getvalue(), err.getvalue())


def start(verb: str, *arguments: str, cwd: Path, folder: str = "src") -> "subprocess.Popen[str]":
    """The same in a process of its own."""
    command = [sys.executable, str(REPOSITORY / folder / f"{verb}.py"), *arguments]
    return subprocess.Popen(
        command,
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # what a shell starts in the background ignores Ctrl-C, and so would this
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(process: "subprocess.Popen[str]") -> str:
    """Wait for the process to succeed; what it printed."""
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output


def runs(log_dir: Path) -> list[Path]:
    """All run directories below `log_dir`, in text order."""
    return sorted(path.parent for path in log_dir.rglob("config.yaml"))


def metrics(run_dir: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((run_dir / "metrics.json").read_text())
    return loaded
