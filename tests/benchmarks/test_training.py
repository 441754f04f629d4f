from pathlib import Path

import pytest
import torch
from rich.console import Console

from benchmarks import feeding, options, steps
from benchmarks.networks import NO_WEIGHT, SMALL_CNN, BareLoop, Case


def test_run_and_bare_loop_take_the_same_number_of_turns() -> None:
    turns = steps.take_turns(NO_WEIGHT, steps=5, turns=3, epoch=10)
    assert len(turns.run) == len(turns.bare) == 3
    assert min(turns.run + turns.bare) > 0


def test_ratio_and_cost_compare_neighbouring_turns() -> None:
    turns = steps.Turns([2.0, 30.0, 5.0], [1.0, 24.0, 4.0])
    assert turns.ratio == 0.8
    assert turns.cost == 1.0


def test_bare_loop_learns() -> None:
    network = SMALL_CNN.build()
    before = [value.clone() for value in network.parameters()]
    BareLoop(network).train(SMALL_CNN.batches(1))
    assert all(not torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))


@pytest.mark.parametrize("what", ["train", "evaluate"])
def test_options_see_the_same_images(what: str) -> None:
    for option in (options.Option(), options.Option(channels_last=True, bf16=True)):
        assert options.run(SMALL_CNN, option, what, steps=1)(0) == SMALL_CNN.batch_size
    nchw, nhwc = (SMALL_CNN.batches(1, channels_last=layout)[0]["image"] for layout in (False, True))
    assert torch.equal(nchw, nhwc)
    assert nchw.is_contiguous()
    assert nhwc.is_contiguous(memory_format=torch.channels_last)


def test_feeding_compares_files_with_memory(tmp_path: Path) -> None:
    case = Case("tiny", SMALL_CNN.network, 32, 4)
    memory, files = feeding.measure(tmp_path, count=3, steps=2, rounds=1, console=Console(quiet=True), case=case)
    assert memory.ratio == 1.0
    assert files.images_per_second > 0
    loader = feeding.file_loader(tmp_path / "500x375", case, steps=5, workers=0)
    assert [len(batch["label"]) for batch in loader] == [4] * 5


@pytest.mark.slow
def test_a_step_costs_little_beyond_the_bare_loop() -> None:
    """A guard against what is done at every step; `scripts/benchmark.py train` measures the figure."""
    [line] = steps.measure(5, Console(quiet=True), cases=((NO_WEIGHT, 200),))
    assert line["ratio"] > 0.1
