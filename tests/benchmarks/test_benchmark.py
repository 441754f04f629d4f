import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_data(tmp_path: Path) -> None:
    sizes = ["--images", "2", "--large", "0", "--rounds", "1"]
    words = ["data", *sizes, "--parts", "decoding", "--only", "project", "--folder", "photos", "--json", "results.json"]
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "benchmark.py", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "results.json").read_text())["decoding"]
    assert {line["case"] for line in found} == {f"500x375 to {size}" for size in (224, 128, 64)}
    named = {line["name"] for line in found}
    assert "this project, Pillow" in named
    assert "timm" not in named
    assert all(line["images_per_second"] > 0 and line["ratio"] > 0 for line in found)
    assert len(list((tmp_path / "photos").rglob("*.jpg"))) == 2


@pytest.mark.slow
def test_all_of_data(tmp_path: Path) -> None:
    sizes = ["--images", "20", "--large", "1", "--samples", "5000", "--rounds", "1"]
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "benchmark.py", "data", *sizes, "--json", "results.json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "results.json").read_text())
    assert set(found) == {"versions", "threads", "decoding", "loading", "memory", "checking", "table"}
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
