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
    command = [sys.executable, "-c", script, str(tmp_path / "site")]
    assert subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout.strip() == "True"
