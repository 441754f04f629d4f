"""Runs -> rows of a table, on the terminal and as CSV."""

import csv
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from classifier.files import whole_file
from classifier.tools.leaderboard.runs import Run
from classifier.tools.leaderboard.settings import ABSENT, Settings, differing

SHOWN = ("test/acc", "test/f1", "val/acc", "val/loss")  # beside what is sorted by; --csv has all
PROGRESS = ("epoch", "best_epoch", "global_step", "fit_seconds")
NO_TERMINAL = 10_000  # columns: what reads a file can scroll


@dataclass(frozen=True)
class Row:
    """A run, or several that are equal but for the settings they are averaged over.

    Args:
        metrics: Their values, or means.
        deviations: Sample standard deviations; none of a single run.
    """

    runs: tuple[Run, ...]
    settings: Settings
    metrics: dict[str, float]
    deviations: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        first = self.runs[0].path
        return first if len(self.runs) == 1 else f"{first} and {len(self.runs) - 1} more"

    @property
    def state(self) -> str:
        return "done" if all(run.done for run in self.runs) else "unfinished"


def rows_of(runs: Sequence[Run]) -> list[Row]:
    """A row for each run."""
    return [Row((run,), run.settings, run.metrics) for run in runs]


def averaged(runs: Sequence[Run], over: Sequence[str]) -> list[Row]:
    """A row for all runs that differ in nothing but the settings `over`, such as seed or data.fold."""
    without = [_without(run.settings, over) for run in runs]
    keys = differing(without)
    groups: dict[tuple[str, ...], list[int]] = {}
    for number, settings in enumerate(without):
        groups.setdefault(tuple(settings.get(key, ABSENT) for key in keys), []).append(number)
    return [_mean([runs[number] for number in numbers], without[numbers[0]]) for numbers in groups.values()]


def _without(settings: Settings, over: Sequence[str]) -> Settings:
    # data.seed goes with seed, of which it is the copy
    gone = {key for key in settings for name in over if key == name or key.endswith(f".{name}")}
    return {key: value for key, value in settings.items() if key not in gone}


def _mean(runs: list[Run], settings: Settings) -> Row:
    values = {
        name: [run.metrics[name] for run in runs]
        for name in runs[0].metrics
        if all(name in run.metrics for run in runs)
    }
    deviations = {name: statistics.stdev(found) for name, found in values.items() if len(found) > 1}
    return Row(tuple(runs), settings, {name: statistics.fmean(found) for name, found in values.items()}, deviations)


def ranked(rows: Sequence[Row], metric: str, mode: str) -> list[Row]:
    """The best first, those without the metric last."""
    sign = 1 if mode == "min" else -1
    return sorted(rows, key=lambda row: sign * row.metrics[metric] if metric in row.metrics else math.inf)


def print_table(rows: Sequence[Row], metric: str) -> None:
    """Print the rows with the usual metrics and with the settings in which they differ."""
    keys = differing([row.settings for row in rows])
    known = {name for row in rows for name in row.metrics}
    metrics = [name for name in dict.fromkeys((metric, *SHOWN, "epoch", "fit_seconds")) if name in known]
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    averages = any(row.deviations for row in rows)
    table.add_column("run", overflow="fold")
    if averages:
        table.add_column("n", justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for name in metrics:
        table.add_column(name, justify="right", no_wrap=True)
    for key in keys:
        table.add_column(key, overflow="fold")
    for row in rows:
        count = [str(len(row.runs))] if averages else []
        settings = [row.settings.get(key, ABSENT) for key in keys]
        cells = [row.name, *count, row.state, *(_cell(row, name) for name in metrics), *settings]
        table.add_row(*map(Text, cells))  # Text: brackets are no markup
    Console(width=None if sys.stdout.isatty() else NO_TERMINAL).print(table)


def _cell(row: Row, name: str) -> str:
    if name not in row.metrics:
        return ""
    digits = (0 if name == "fit_seconds" else 1 if row.deviations else 0) if name in PROGRESS else 4
    deviation = f" ± {row.deviations[name]:.{digits}f}" if name in row.deviations else ""
    return f"{row.metrics[name]:.{digits}f}{deviation}"


def write_csv(rows: Sequence[Row], target: str) -> None:
    """Write all metrics, and the settings in which the rows differ, to a file, or for `-` to stdout.

    Raises:
        UserError: It cannot be written.
    """
    if target == "-":
        _write(rows, sys.stdout)
        return
    with (
        whole_file(Path(target), "--csv") as scratch,
        scratch.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        _write(rows, file)


def _write(rows: Sequence[Row], file: IO[str]) -> None:
    keys = differing([row.settings for row in rows])
    metrics = sorted({name for row in rows for name in row.metrics})
    deviating = [name for name in metrics if any(name in row.deviations for row in rows)]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["run", "runs", "state", *metrics, *(f"{name} deviation" for name in deviating), *keys])
    for row in rows:
        values = [row.metrics.get(name, "") for name in metrics]
        deviations = [row.deviations.get(name, "") for name in deviating]
        settings = [row.settings.get(key, ABSENT) for key in keys]
        writer.writerow([row.runs[0].path, len(row.runs), row.state, *values, *deviations, *settings])
