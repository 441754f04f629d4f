import errno
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from classifier.errors import UserError
from classifier.files import made_once, whole_file


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
    (tmp_path / ".file.part").symlink_to(original)
    with whole_file(tmp_path / "file") as scratch:
        scratch.write_text("new")
    assert original.read_text() == "mine"


def test_no_space(tmp_path: Path) -> None:
    message = r"no space left for .*file: make room and run the same command again, or use output="
    with pytest.raises(UserError, match=message), whole_file(tmp_path / "file"):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = r"cannot write .*: name another place with json=\.\.\."
    with pytest.raises(UserError, match=message), whole_file(tmp_path / "file" / "below", key="json"):
        raise AssertionError("not reached")


@pytest.mark.parametrize("left", ["file", "folder"])
def test_what_exists_is_not_made_again(tmp_path: Path, left: str) -> None:
    path, calls = tmp_path / "below" / "made", []
    scratch = path.with_name(".made.part")  # of a process that was killed
    path.parent.mkdir()
    if left == "folder":
        (scratch / "stale").mkdir(parents=True)
    else:
        scratch.write_text("stale")

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


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    def make(scratch: Path) -> None:
        scratch.write_text("half")
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        made_once(tmp_path / "made", make)
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


def test_where_nothing_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    message = r"cannot write .*: name another place with data\.cache_dir=\.\.\."
    with pytest.raises(UserError, match=message):
        made_once(tmp_path / "file" / "made", Path.mkdir, "data.cache_dir")

    def no_locks(self: object) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr("filelock.FileLock.acquire", no_locks)
    with pytest.raises(UserError, match=r"cannot write .*support flock"):
        made_once(tmp_path / "made", Path.mkdir, "data.cache_dir")
