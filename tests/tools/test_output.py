import errno
from contextlib import suppress
from pathlib import Path

import pytest

from classifier.errors import UserError
from classifier.parallel import parallel_map
from classifier.tools.output import whole_file


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


def test_parallel_map_keeps_the_order_and_stops_at_an_error() -> None:
    assert list(parallel_map(lambda number: number * 2, range(100), 3)) == list(range(0, 200, 2))
    begun: list[int] = []

    def fails(number: int) -> None:
        begun.append(number)
        raise UserError("no")

    with pytest.raises(UserError):
        list(parallel_map(fails, range(1000), 2))
    assert len(begun) < 100
