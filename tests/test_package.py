"""What is shipped."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.verbs.command import REPOSITORY


@pytest.mark.slow
def test_wheel(tmp_path: Path) -> None:
    """It holds the package and the YAML files, and nothing else at top level; configs are found from it."""
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(REPOSITORY)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    tops = {name.split("/")[0] for name in names}
    assert tops == {"classifier", f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"}
    shipped = {name for name in names if name.startswith("classifier/configs/")}
    assert len(shipped) == len(list((REPOSITORY / "configs").rglob("*.yaml")))
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import classifier.runs as c; "
        "assert c.__file__.startswith(sys.argv[1]); print((c.CONFIG_DIR / 'train.yaml').is_file())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "site")], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.strip() == "True"


def test_no_large_or_foreign_file_is_tracked() -> None:
    if not (REPOSITORY / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    paths = [REPOSITORY / name for name in listed.stdout.splitlines()]
    assert not [path for path in paths if path.exists() and path.stat().st_size > 1_000_000]
    assert not [path for path in paths if path.suffix in (".ckpt", ".npz", ".safetensors", ".tar")]
