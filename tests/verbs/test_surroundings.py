"""A terminal and fonts that know few letters; shared memory that is full."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import generate
from tests.verbs.command import BARE, QUICK, REPOSITORY, Result, rows, run, runs

NAMES = {"blue": "犬", "green": "🐱 $_{x", "red": "rouge\n"}
# a font without these letters draws boxes
pytestmark = pytest.mark.filterwarnings("ignore:Glyph")


def in_ascii(verb: str, *arguments: str, cwd: Path, folder: str = "src", code: int = 0) -> Result:
    result = run(verb, *arguments, cwd=cwd, folder=folder, encoding="ascii")
    assert result.code == code, result.out + result.err
    return result


@pytest.mark.slow
def test_text_that_cannot_be_shown_ends_no_run(folder: Path, tmp_path: Path) -> None:
    root = generate.copy(folder, tmp_path / "größe")
    for color, name in NAMES.items():
        (root / color).rename(root / name)
    shutil.copy(root / "犬" / "000.jpg", root / "犬" / os.fsdecode(b"\xff.jpg"))
    data = (f"data.root={root}", "data.on_error=skip", "name=犬")
    in_ascii("train", "experiment=folder_cnn", "model=simple_cnn", *QUICK, *data, cwd=tmp_path)
    (run_dir,) = runs(tmp_path / "logs")
    evaluation = (f"ckpt_path={run_dir}", "trainer=cpu", "output_dir=評価")
    assert "\\u8a55\\u4fa1" in in_ascii("eval", *evaluation, cwd=tmp_path).out
    assert {row["target"] for row in rows(tmp_path / "評価" / "predictions.csv")} == {*NAMES.values()}
    table = os.fsdecode(b"\xfe.csv")
    place = (f"ckpt_path={run_dir}", f"inputs={root}", f"output={table}", "num_workers=0")
    in_ascii("predict", "trainer=cpu", *place, cwd=tmp_path)
    assert b"\xff.jpg,ok" in (tmp_path / table).read_bytes()
    assert "\\u72ac" in in_ascii("check_data", f"data.root={root}", cwd=tmp_path, folder="scripts", code=3).out
    preview = ("data=folder", *data[:2], "count=6", "output=犬.png")
    in_ascii("preview", *preview, "data.image_size=32", cwd=tmp_path, folder="scripts")
    assert "\\u72ac" in in_ascii("leaderboard", "logs", cwd=tmp_path, folder="scripts").out
    assert "\\u732b" in in_ascii("train", "data=folder", "data.root=猫", cwd=tmp_path, code=2).err


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["train", "eval", "predict"])
def test_full_shared_memory(verb: str, workplace: Path, trained: Path, tmp_path: Path) -> None:
    """Batches of 98 kB do not go through 64 kB."""
    small = "mount -t tmpfs -o size=64k tmpfs /dev/shm"
    if subprocess.run(["unshare", "-m", "sh", "-c", small], capture_output=True).returncode:
        pytest.skip("no right to mount a small /dev/shm")
    prefix, own = {
        "train": ("data.", (*BARE, "data.root=photos", f"log_dir={tmp_path}")),
        "eval": ("data.", (f"ckpt_path={trained}", f"output_dir={tmp_path / 'out'}", "split=all")),
        "predict": ("", (f"ckpt_path={trained}", f"output={tmp_path / 'out.csv'}", "inputs=photos")),
    }[verb]
    key, own = f"{prefix}num_workers", (*own, "trainer=cpu", f"{prefix}batch_size=32", f"{prefix}num_workers=1")
    command = (sys.executable, REPOSITORY / "src" / f"{verb}.py", *own)
    with_small = ["unshare", "-m", "sh", "-c", f'{small} && exec "$@"', "sh", *map(str, command)]
    result = subprocess.run(with_small, cwd=workplace, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2, result.stdout + result.stderr
    assert f"{key}=0" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
