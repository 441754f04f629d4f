import gc
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import checking, memory
from classifier.data import ImageFolderDataModule


@pytest.mark.slow
def test_the_check_costs_little_of_an_epoch(tmp_path: Path) -> None:
    """Under 5 % of decoding at first and next to nothing then; measured: 3.2 and 0.8 %, twice that beside others."""
    cost = checking.measure(tmp_path, 300, 5, Console())
    assert cost["first_share"] < 0.1
    assert cost["second_share"] < 0.03


@pytest.mark.slow
def test_a_million_samples_fit_in_a_hundred_megabytes() -> None:
    found = memory.measure(1_000_000, Console())
    assert found["megabytes_per_million"] < 110


@pytest.mark.slow
def test_memory_does_not_grow_over_epochs(folder: Path) -> None:
    module = ImageFolderDataModule(folder, image_size=32, batch_size=8, num_workers=2)
    module.setup()
    loader = module.train_dataloader()
    used = []
    for _ in range(40):
        for _ in loader:
            pass
        gc.collect()
        used.append(memory.of_this_process_and_its_workers())
    assert min(used[-5:]) - max(used[5:10]) < 2e6, [round(value / 1e6, 1) for value in used]
