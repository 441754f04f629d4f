import csv
import errno
import multiprocessing
import os
import platform
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from classifier.errors import UserError
from classifier.files import alone, made_once, report_full_disk, require_writable, whole_file, write_csv, writers


@pytest.mark.parametrize("cell", ["a, b", 'a "b"', "two\nlines", "Zürich 犬", "bytes \udcff\udcfe"])
def test_a_table_comes_back_as_written(cell: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "table.csv"
    frame = pd.DataFrame({"path": pd.Series([cell, "plain"], dtype=object), "number": [0.7, None]})
    write_csv(path, frame, float_format="%.3f")
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        assert list(csv.reader(file)) == [["path", "number"], [cell, "0.700"], ["plain", ""]]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("name", ["folder", "file/table.csv", "file/below/table.csv", "n" * 300])
def test_a_place_that_cannot_be_written(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for write in (partial(write_csv, frame=pd.DataFrame()), require_writable):
        with pytest.raises(UserError) as refusal:
            write(tmp_path / name, key="json")
        assert "json=..." in str(refusal.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    with whole_file(path) as scratch:
        scratch.write_text("whole")
        assert not path.exists()
    with suppress(KeyboardInterrupt), whole_file(path) as scratch:
        scratch.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_a_scratch_link_left_by_a_kill_is_not_written_through(tmp_path: Path) -> None:
    original = tmp_path / "original"
    original.write_text("mine")
    (tmp_path / f".file.{writers()}-{os.getpid()}.part").symlink_to(original)
    with whole_file(tmp_path / "file") as scratch:
        scratch.write_text("new")
    assert original.read_text() == "mine"


def test_what_a_killed_process_has_left_is_removed(tmp_path: Path) -> None:
    """And not what another one is writing, here or elsewhere."""
    gone = FORK.Process()
    gone.start()
    gone.join()
    places = ((writers(), gone.pid), (writers(), os.getppid()), ("elsewhere", gone.pid))
    left, here, elsewhere = (tmp_path / f".file.{where}-{number}.part" for where, number in places)
    for path in (left, here, elsewhere):
        path.write_text("half")
    with whole_file(tmp_path / "file") as scratch:
        assert scratch not in (left, here, elsewhere)
        scratch.write_text("whole")
    assert {*tmp_path.iterdir()} == {tmp_path / "file", here, elsewhere}


FORK = multiprocessing.get_context("fork")


def hold(path: Path) -> None:
    """Hold a lock, and have a process forked that lives on."""
    with alone(path, "waits"):
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        (path.parent / "held").touch()
        time.sleep(60)


def test_a_lock_is_free_when_its_process_is_killed(tmp_path: Path) -> None:
    """Though one that it has forked lives on. The refusal names the process and its host."""
    path = tmp_path / "new" / ".lock"
    holder = FORK.Process(target=hold, args=(path,))
    holder.start()
    while not (path.parent / "held").exists():
        assert holder.is_alive()
        time.sleep(0.01)
    with pytest.raises(UserError, match=f"{holder.pid} on {platform.node()} waits"), alone(path, "waits"):
        pass
    holder.kill()
    holder.join()
    with alone(path, "waits"):
        assert path.read_text() == f"process {os.getpid()} on {platform.node()}"
    assert not path.exists()


def test_no_space(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refusal, whole_file(tmp_path / "file", "log_dir"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "log_dir=..." in str(refusal.value)
    with pytest.raises(UserError) as refusal, report_full_disk("type resume=run"):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")
    assert "resume=run" in str(refusal.value)
    with pytest.raises(FileNotFoundError), report_full_disk("type resume=run"):
        raise FileNotFoundError


@pytest.mark.parametrize("left", ["file", "folder"])
def test_what_exists_is_not_made_again(tmp_path: Path, left: str) -> None:
    path, calls = tmp_path / "below" / "made", []
    scratch = path.with_name(f".made.{writers()}-{os.getpid()}.part")  # of one with the same number, killed
    (scratch if left == "folder" else path.parent).mkdir(parents=True)
    (scratch / "stale" if left == "folder" else scratch).write_text("stale")

    def make(scratch: Path) -> None:
        calls.append(scratch)
        scratch.mkdir()

    for _ in range(2):
        made_once(path, make)
    assert calls == [scratch]
    assert [item for item in path.parent.rglob("*") if item.suffix != ".lock"] == [path]


def test_what_cannot_be_used_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "made"
    path.write_text("damaged")
    for text in ("whole", "not needed"):
        made_once(path, partial(Path.write_text, data=text), is_whole=lambda file: file.read_text() == "whole")
    assert path.read_text() == "whole"


def test_where_nothing_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data\.cache_dir=\.\.\."):
        made_once(tmp_path / "file" / "made", Path.mkdir, "data.cache_dir")

    def no_locks(self: object) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr("filelock.FileLock.acquire", no_locks)
    with pytest.raises(UserError, match=r"cannot write .*support flock"):
        made_once(tmp_path / "made", Path.mkdir, "data.cache_dir")
