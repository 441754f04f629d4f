import pytest
import torch

from classifier.errors import UserError
from classifier.training.hardware import is_out_of_memory, report_out_of_memory, same_effective_batch, smaller_batch


def test_what_to_type() -> None:
    assert same_effective_batch(64, at_most=32) == (32, 2)
    assert same_effective_batch(48, at_most=32) == (24, 2)
    assert same_effective_batch(37, at_most=32) == (1, 37)
    assert same_effective_batch(8, at_most=100) == (8, 1)
    assert "data.batch_size=32 trainer.accumulate_grad_batches=2" in smaller_batch(64, 1)
    assert "data.batch_size=3 trainer.accumulate_grad_batches=6" in smaller_batch(6, 3)
    assert "data.image_size" in smaller_batch(1, 4)


def test_its_signs() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert not is_out_of_memory(ValueError("MPS backend out of memory"))


def test_it_is_reported_and_other_errors_are_not_taken_for_it() -> None:
    with (
        pytest.raises(UserError, match=r"data\.batch_size=64.*data\.batch_size=32"),
        report_out_of_memory("data.batch_size=64", "use data.batch_size=32"),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(RuntimeError, match="a bug"), report_out_of_memory("data.batch_size=64", ""):
        raise RuntimeError("a bug")
