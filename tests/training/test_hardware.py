from pathlib import Path

import pytest
import torch

from classifier.errors import UserError
from classifier.training.hardware import report_out_of_memory, same_effective_batch, smaller_batch, speed_up
from tests.training import runs


def test_channels_last_changes_the_order_in_memory_alone() -> None:
    plain, fast = runs.make_classifier(channels=3), runs.make_classifier(channels=3)
    assert speed_up(fast.network, channels_last=True, compile=False) == []
    weight = fast.network.state_dict()["features.0.0.weight"]
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    images = runs.random_images(5, channels=3)
    torch.testing.assert_close(fast.eval()(images), plain.eval()(images))


@pytest.mark.slow
def test_compiled_network_keeps_its_names_and_learns_alike(tmp_path: Path) -> None:
    results = []
    for compile in (False, True):
        model = runs.make_classifier(model={**runs.CNN, "drop_rate": 0.0})  # compiled dropout draws other numbers
        callbacks = speed_up(model.network, channels_last=True, compile=compile)
        trainer = runs.trainer(tmp_path, callbacks, max_epochs=1)
        trainer.fit(model, runs.loader(count=10), runs.loader(count=4))  # the last batch has two images
        assert (model.network._compiled_call_impl is not None) == compile
        results.append(model.state_dict())
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-4)


def test_a_wrong_mode_names_the_right_ones() -> None:
    with pytest.raises(UserError, match=r"speed\.compile=max .*max-autotune"):
        speed_up(torch.nn.Identity(), channels_last=False, compile="max")


def test_what_to_type() -> None:
    assert [same_effective_batch(*sizes) for sizes in ((48, 32), (37, 32), (8, 100))] == [(24, 2), (1, 37), (8, 1)]
    assert "data.batch_size=3 trainer.accumulate_grad_batches=6" in smaller_batch(6, 3)
    assert "data.image_size" in smaller_batch(1, 4)


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("MPS backend out of memory (9 GB)")],
)
def test_lack_of_memory_is_reported(error: Exception) -> None:
    with (
        pytest.raises(UserError, match=r"batch_size=64.*batch_size=32"),
        report_out_of_memory("batch_size=64", "batch_size=32"),
    ):
        raise error


def test_a_bug_is_not_taken_for_a_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="a bug"), report_out_of_memory("data.batch_size=64", ""):
        raise RuntimeError("a bug")
