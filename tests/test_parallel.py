import pytest

from classifier.errors import UserError
from classifier.parallel import parallel_map


def test_parallel_map_keeps_the_order_and_stops_at_an_error() -> None:
    assert list(parallel_map(lambda number: number * 2, range(100), 3)) == list(range(0, 200, 2))
    begun: list[int] = []

    def fails(number: int) -> None:
        begun.append(number)
        raise UserError("no")

    with pytest.raises(UserError):
        list(parallel_map(fails, range(1000), 2))
    assert len(begun) < 100
