"""A folder of runs -> the table that compares them."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from classifier.errors import UserError, did_you_mean, require_whole
from classifier.tools.leaderboard.runs import Run, mode_of, read_runs
from classifier.tools.leaderboard.table import averaged, print_table, ranked, rows_of, write_csv

FALLBACK = "val/acc"  # where the runs do not monitor the same


def compare(
    folder: Path,
    *,
    sort: str | None = None,
    over: Sequence[str] = (),
    name: str | None = None,
    limit: int | None = None,
    csv: str | None = None,
) -> None:
    """Print the runs below `folder`, the best first.

    Args:
        sort: A metric; by default what the runs monitor.
        over: Settings over which runs that are equal otherwise are averaged; those that are not done are left out.
        name: Only runs with this in their path.
        limit: Only so many rows.
        csv: A file for all metrics; `-` prints them in the place of the table.

    Raises:
        UserError: There is no such folder, run, metric or setting.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: name the one with the runs, such as logs")
    if limit is not None:
        require_whole("--limit", limit, 1)
    runs, broken = read_runs(folder)
    _tell(len(broken), "cannot be read", (f"{path} ({reason})" for path, reason in broken.items()))
    if name is not None:
        runs = [run for run in runs if name in run.path]
    if over:
        _tell(sum(not run.done for run in runs), "unfinished", (run.path for run in runs if not run.done))
        runs = [run for run in runs if run.done]
    if not runs:
        fitting = "" if name is None else f" with {name!r} in its path"
        raise UserError(f"{folder} holds no {'finished ' if over else ''}run{fitting}: name another folder, or --name")
    for key in over:
        _require_known("--over", key, (key for run in runs for key in run.settings))
    rows = averaged(runs, over) if over else rows_of(runs)
    known = {metric for row in rows for metric in row.metrics}
    if sort is not None:
        _require_known("--sort", sort, known)
    metric = sort or _monitored(runs)
    mode = mode_of(metric, runs)
    rows = ranked(rows, metric, mode)[:limit]
    if csv is not None:
        write_csv(rows, csv)
    if csv != "-":
        print_table(rows, metric)
        shown = f"{len(rows)} means" if over else f"{len(rows)}"
        print(f"{shown} of {len(runs)} runs by {metric}, the {'smallest' if mode == 'min' else 'largest'} first")


def _monitored(runs: Sequence[Run]) -> str:
    monitored = {run.monitor for run in runs}
    return monitored.pop() if len(monitored) == 1 else FALLBACK


def _require_known(option: str, value: str, known: Iterable[str]) -> None:
    options = set(known)
    if value not in options:
        raise UserError(f"{option} {value}: no run has it, {did_you_mean(value, options)}")


def _tell(count: int, what: str, names: Iterable[str]) -> None:
    """One line on stderr about what is left out."""
    if count:
        shown = [name for name, _ in zip(names, range(3), strict=False)]
        more = f" and {count - len(shown)} more" if count > len(shown) else ""
        print(f"left out, as {what}: {', '.join(shown)}{more}", file=sys.stderr)
