"""Ways of doing the same, timed by turns: a busy machine then slows all of them, and ratios hold."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Result:
    """One line of a table.

    Args:
        ratio: Images per second, as a multiple of the reference's.
        share_of_limit: The same of what is measured as the limit; None where nothing is.
    """

    case: str
    name: str
    images_per_second: float
    ratio: float
    share_of_limit: float | None = None


def take_turns(
    candidates: Mapping[str, Callable[[int], int]], rounds: int, console: Console, case: str
) -> dict[str, list[float]]:
    """Name -> seconds an image in each round.

    Args:
        candidates: Name -> what takes the number of the round and gives the number of images that it read.
        console: Shows each turn as it comes.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(-1, rounds):  # the first time does not count: some things are done once only
        for name, run in candidates.items():
            start = time.perf_counter()
            count = run(max(number, 0))
            taken = time.perf_counter() - start
            turn = "warm-up" if number < 0 else f"round {number + 1} of {rounds}"
            console.print(f"{case}, {turn}, {name}: {count / taken:,.1f} images/s", highlight=False)
            if number >= 0:
                seconds[name].append(taken / count)
    return seconds


def results(
    case: str, seconds: Mapping[str, Sequence[float]], reference: str, limit: str | None = None
) -> list[Result]:
    """Medians over the rounds; ratios are taken within a round."""

    def times_faster(name: str, than: str) -> float:
        return statistics.median(other / own for own, other in zip(seconds[name], seconds[than], strict=True))

    return [
        Result(
            case,
            name,
            images_per_second=1 / statistics.median(found),
            ratio=times_faster(name, reference),
            share_of_limit=times_faster(name, limit) if limit in seconds and limit is not None else None,
        )
        for name, found in seconds.items()
    ]


def table(title: str, lines: Sequence[Result]) -> Table:
    """A table for the terminal."""
    made = Table(title=title, title_justify="left")
    limited = any(line.share_of_limit is not None for line in lines)
    for column in ("", "images/s", "x reference", *(["of full decode"] if limited else [])):
        made.add_column(column, justify="right" if column else "left")
    for line in lines:
        share = "" if line.share_of_limit is None else f"{line.share_of_limit:.0%}"
        made.add_row(line.name, f"{line.images_per_second:.1f}", f"{line.ratio:.2f}", *([share] if limited else []))
    return made
