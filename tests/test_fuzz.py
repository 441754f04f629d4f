"""Whatever bytes a file holds that people bring, it is read as what it says, or refused in words; see tests/fuzz.py."""

from pathlib import Path

import pytest

from tests.fuzz import KINDS
from tests.verbs.command import finish, start


def survive(kinds: str, count: int, folder: Path) -> None:
    finish(start("fuzz", kinds, "0", str(count), cwd=folder, folder="tests", memory=1 << 30))


def test_a_few_of_each_kind(tmp_path: Path) -> None:
    survive(",".join(KINDS), 12, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many(kind: str, tmp_path: Path) -> None:
    survive(kind, 1250, tmp_path)
