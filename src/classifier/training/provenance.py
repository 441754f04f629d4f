"""Where a run came from: the versions, the code, the command and the machine of each of its starts."""

import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy
import pytorch_lightning as pl
import timm
import torch
import torchvision

import classifier
from classifier.config import PACKAGE, STARTS, read_starts
from classifier.files import whole_file

DIFF_LIMIT = 1 << 20  # bytes kept of the changes to the code


def versions() -> dict[str, str]:
    """Library -> version."""
    modules = (classifier, torch, torchvision, pl, timm, numpy)
    return {"python": platform.python_version()} | {module.__name__: str(module.__version__) for module in modules}


def record_start(run_dir: Path, overrides: list[str]) -> None:
    """Add a line to the run's starts.jsonl, and the changes to the code since its git revision as a file beside it.

    Args:
        overrides: What was typed, in Hydra's words.

    Raises:
        UserError: They cannot be written.
    """
    start = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.orig_argv),
        "overrides": overrides,
        "versions": versions(),
        "git": _git(run_dir),
        "machine": _machine(),
    }
    lines = [json.dumps(line) for line in [*read_starts(run_dir), start]]
    with whole_file(run_dir / STARTS, "log_dir") as scratch:
        scratch.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _machine() -> dict[str, Any]:
    return {
        "host": platform.node(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }


def _git(run_dir: Path) -> dict[str, Any] | None:
    """Revision of the code, and the name of a file with what differs from it; None where git knows nothing."""
    revision = _ask_git("rev-parse", "HEAD")
    if revision is None:
        return None
    diff = _ask_git("diff", "HEAD") or b""
    # new files of code, not photographs that lie beside them
    new = _ask_git("ls-files", "--others", "--exclude-standard", ":/*.py", ":/*.yaml") or b""
    for path in new.decode(errors="surrogateescape").splitlines():
        diff += _ask_git("diff", "--no-index", "--", os.devnull, path) or b""
    if not diff:
        return {"revision": revision.decode().strip(), "diff": None}
    if len(diff) > DIFF_LIMIT:
        diff = diff[:DIFF_LIMIT] + b"\n... and %d bytes more\n" % (len(diff) - DIFF_LIMIT)
    name = f"git_{hashlib.sha256(diff).hexdigest()[:8]}.diff"  # starts from the same code share one
    with whole_file(run_dir / name, "log_dir") as scratch:
        scratch.write_bytes(diff)
    return {"revision": revision.decode().strip(), "diff": name}


def _ask_git(*arguments: str) -> bytes | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=PACKAGE, capture_output=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode in (0, 1) else None  # 1: there are differences
