from pathlib import Path

import pytest
import torch

from classifier.errors import UserError
from classifier.training.hardware import Compile, speed_up
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
    assert results[0].keys() == results[1].keys()
    for plain, compiled in zip(results[0].values(), results[1].values(), strict=True):
        torch.testing.assert_close(plain, compiled, rtol=1e-3, atol=1e-4)


def test_a_wrong_mode_names_the_right_ones() -> None:
    with pytest.raises(UserError, match=r"speed\.compile=max .*max-autotune"):
        Compile("max")
