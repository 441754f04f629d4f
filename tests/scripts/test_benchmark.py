import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_data(tmp_path: Path) -> None:
    sizes = ["--images", "2", "--large", "0", "--rounds", "1"]
    words = ["data", *sizes, "--only", "project", "--folder", "photos", "--json", "results.json"]
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "benchmark.py", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "results.json").read_text())["results"]
    assert {line["source"] for line in found} == {f"500x375 to {size}" for size in (224, 128, 64)}
    named = {line["pipeline"] for line in found}
    assert "this project, Pillow" in named
    assert "timm" not in named
    assert all(line["images_per_second"] > 0 and line["ratio"] > 0 for line in found)
    assert len(list((tmp_path / "photos").rglob("*.jpg"))) == 2
