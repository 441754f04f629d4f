import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from classifier import runs
from classifier.runs import read_starts


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Some code under git, in the place of ours."""
    code = tmp_path / "code"
    (code / "src").mkdir(parents=True)
    (code / "src" / "model.py").write_text("width = 8\n")
    identity = ["-c", "user.name=someone", "-c", "user.email=someone@example.com"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "first"]):
        subprocess.run(["git", *command], cwd=code, check=True)
    monkeypatch.setattr(runs, "PACKAGE", code / "src")
    return code


def start(tmp_path: Path, *overrides: str) -> dict[str, Any]:
    runs.record_start(tmp_path / "run", list(overrides))
    return read_starts(tmp_path / "run")[-1]


def test_each_start_is_a_line(repository: Path, tmp_path: Path) -> None:
    for overrides in (["seed=1"], ["resume=run"]):
        assert start(tmp_path, *overrides)["overrides"] == overrides
    first, second = read_starts(tmp_path / "run")
    assert first["time"] <= second["time"]
    assert first["time"].endswith("+00:00")
    assert first["command"].split()[0] == sys.orig_argv[0]
    assert first["versions"]["torch"] == torch.__version__
    assert first["machine"]["cores"] >= 1
    assert first["machine"].keys() == {"host", "system", "cores", "gpus"}
    assert json.loads((tmp_path / "run" / "starts.jsonl").read_text().splitlines()[0]) == first


def test_clean_code_is_its_revision(repository: Path, tmp_path: Path) -> None:
    revision = subprocess.run(["git", "rev-parse", "HEAD"], cwd=repository, capture_output=True, text=True).stdout
    assert start(tmp_path)["git"] == {"revision": revision.strip(), "diff": None}
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["starts.jsonl"]


def test_changes_and_new_files_are_kept(repository: Path, tmp_path: Path) -> None:
    (repository / "src" / "model.py").write_text("width = 16\n")
    (repository / "new.yaml").write_text("depth: 3\n")
    (repository / "photo.jpg").write_bytes(b"not code")
    names = [start(tmp_path)["git"]["diff"] for _ in range(2)]
    assert names[0] == names[1], "starts of the same code share a file"
    text = (tmp_path / "run" / names[0]).read_text()
    assert "-width = 8\n+width = 16" in text
    assert "+depth: 3" in text
    assert "photo" not in text
    (repository / "src" / "model.py").write_text("width = 32\n")
    assert start(tmp_path)["git"]["diff"] not in names


def test_a_long_diff_is_cut_with_a_word(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "DIFF_LIMIT", 200)
    (repository / "src" / "model.py").write_text("width = 16\n" * 100)
    text = (tmp_path / "run" / start(tmp_path)["git"]["diff"]).read_text()
    assert len(text) < 300
    assert text.splitlines()[-1].endswith("bytes more")


def test_without_git(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plain").mkdir()
    monkeypatch.setattr(runs, "PACKAGE", tmp_path / "plain")
    assert start(tmp_path)["git"] is None  # no repository
    monkeypatch.setattr(runs, "PACKAGE", repository)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert start(tmp_path)["git"] is None  # no program
