from pathlib import Path

import pytest

from classifier.tools.check_cost import check_cost


@pytest.mark.slow
def test_the_check_costs_little_of_an_epoch(tmp_path: Path) -> None:
    """Under 5 % of decoding at first and next to nothing then; measured: 1.5 and 0.5 %."""
    cost = check_cost(tmp_path / "photos")
    assert cost["first_share"] < 0.05
    assert cost["second_share"] < 0.01
