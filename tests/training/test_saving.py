from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from classifier.errors import UserError
from classifier.training.checkpoints import AtomicCheckpointIO
from tests.small_disk import mounted

SMALL = {"weight": torch.arange(10)}
LARGE = {"weight": torch.zeros(1 << 20)}  # 4 MiB


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    with mounted(tmp_path / "disk", "1m") as disk:
        yield disk


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_checkpoint_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "checkpoints" / "last.ckpt"
    for number in (1, 2):
        AtomicCheckpointIO().save_checkpoint({"number": number}, path)
        assert torch.load(path) == {"number": number}
    assert files(tmp_path) == ["new/checkpoints/last.ckpt"]


def test_full_disk_leaves_the_previous_checkpoint(small_disk: Path) -> None:
    path = small_disk / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(SMALL, path)
    with pytest.raises(UserError) as refusal:
        AtomicCheckpointIO().save_checkpoint(LARGE, path)
    assert "the previous one is unharmed" in str(refusal.value)
    assert f"resume={small_disk}" in str(refusal.value)
    assert torch.equal(torch.load(path)["weight"], SMALL["weight"])
    assert files(small_disk) == ["checkpoints/last.ckpt"]


def test_full_disk_at_the_first_checkpoint(small_disk: Path) -> None:
    with pytest.raises(UserError, match="there was none before"):
        AtomicCheckpointIO().save_checkpoint(LARGE, small_disk / "checkpoints" / "last.ckpt")
    assert files(small_disk) == []


@pytest.fixture
def limited_files() -> Iterator[None]:
    """No file can grow above 64 KiB, as with a quota."""
    resource = pytest.importorskip("resource", reason="this system has no resource limits")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("limited_files")
def test_file_size_limit_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(SMALL, path)
    with pytest.raises(UserError, match=r"cannot write the checkpoint .* the previous one is unharmed"):
        AtomicCheckpointIO().save_checkpoint(LARGE, path)
    assert torch.equal(torch.load(path)["weight"], SMALL["weight"])
    assert files(tmp_path) == ["checkpoints/last.ckpt"]


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file in the way\n")
    with pytest.raises(UserError, match="cannot write the checkpoint"):
        AtomicCheckpointIO().save_checkpoint(SMALL, tmp_path / "checkpoints" / "last.ckpt")
