from pathlib import Path

import pytest
from rich.console import Console

from classifier.benchmarks import checking, memory


@pytest.mark.slow
def test_the_check_costs_little_of_an_epoch(tmp_path: Path) -> None:
    """Under 5 % of decoding at first and next to nothing then; measured: 1.5 and 0.5 %."""
    cost = checking.measure(tmp_path, 300, 3, Console())
    assert cost["first_share"] < 0.05
    assert cost["second_share"] < 0.01


@pytest.mark.slow
def test_a_million_samples_fit_in_a_hundred_megabytes() -> None:
    found = memory.measure(1_000_000, Console())
    assert found["megabytes_per_million"] < 110
