"""The leaderboard of a multirun's jobs behind the last of them."""

import csv
import json
import math
import os
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import yaml
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from classifier.errors import UserError, did_you_mean, require_whole
from classifier.files import whole_file
from classifier.runs import on_main_process

Settings = dict[str, str]
"""Key of a config, such as `optimizer.lr` -> its value, as it is typed."""

TARGET = "._target_"
ABSENT = "null"  # a key that a config lacks is off, as one that is null
PLACES = ("name", "log_dir", "run_dir", "resume")  # no choice that a result depends on


def flat(config: Mapping[str, Any]) -> Settings:
    """The config in one level. A section that names what to build is a setting, too: `model` -> `resnet18`.

    Its value is its `name`, or else the last word of its `_target_`.
    """
    settings: Settings = {}
    run_dir = str(config.get("run_dir"))

    def add(key: str, value: Any) -> None:
        if not isinstance(value, Mapping):
            settings[key] = _text(value).replace(run_dir, "")  # callbacks and loggers write there
            return
        target = value.get("_target_")
        if target is not None:
            settings[key] = str(value.get("name", target.rpartition(".")[2]))
        for inner, item in value.items():
            if not (target is not None and inner == "name"):
                add(f"{key}.{inner}", item)

    for key, value in config.items():
        if key == "augment" and "augment" in config.get("data", {}):
            continue  # it is in both, but in a run that was resumed
        if key not in PLACES:
            add(key, value)
    return settings


def differing(all_settings: Sequence[Settings]) -> list[str]:
    """The keys whose values are not the same in all.

    Where two sections build different things, that is the difference: keys that belong to one of them alone are
    compared among those who have it. What only repeats another key, as `data.seed` does `seed`, is left out.
    """
    keys = {key: None for settings in all_settings for key in settings if not key.endswith(TARGET)}
    found = [key for key in keys if _differs(key, all_settings)]

    def values(key: str) -> list[str]:
        return [settings.get(key, ABSENT) for settings in all_settings]

    def repeats(key: str) -> bool:
        return any(key.endswith(f".{other}") and values(key) == values(other) for other in found)

    return [key for key in found if not repeats(key)]


def _differs(key: str, all_settings: Sequence[Settings]) -> bool:
    values: dict[str, set[tuple[str, str]]] = {}  # of those that build the same
    for settings in all_settings:
        value = settings.get(key, ABSENT), settings.get(key + TARGET, "")
        values.setdefault(_builder(key, settings), set()).add(value)
    return any(len(found) > 1 for found in values.values())


def _builder(key: str, settings: Settings) -> str:
    """What the section that `key` is in builds."""
    while key:
        key = key.rpartition(".")[0]
        if key + TARGET in settings:
            return settings[key + TARGET]
    return ""


def _text(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


# a hundred runs take 0.2 s with libyaml, 3 s without
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
SMALL_IS_GOOD = ("loss", "epoch", "global_step", "fit_seconds")


@dataclass(frozen=True)
class Run:
    """A run directory.

    Args:
        path: Relative to the folder that was searched.
        done: Whether its fit came to its end.
        monitor, mode: What its best checkpoint was chosen by.
        metrics: Those of metrics.json; of a run that is not done, those of its best epoch so far, and how many it did.
        settings: Its config, see `flat`.
    """

    path: str
    done: bool
    monitor: str
    mode: str
    metrics: dict[str, float]
    settings: Settings


def read_runs(folder: Path) -> tuple[list[Run], dict[str, str]]:
    """All runs below `folder` in the order of their paths, and what looks like one but cannot be read: path -> why."""
    runs, broken = [], {}
    for path in _run_dirs(folder):
        name = os.path.relpath(path, folder)
        try:
            runs.append(_read(path, name))
        except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
            broken[name] = " ".join(f"{type(error).__name__} {error}".split())
    return runs, broken


def mode_of(metric: str, runs: list[Run]) -> str:
    """`min` or `max`, whichever is better: as the runs say of what they monitor, else by the metric's name."""
    told = {run.mode for run in runs if run.monitor == metric}
    if len(told) == 1:
        return told.pop()
    return "min" if metric.endswith(SMALL_IS_GOOD) else "max"


def _run_dirs(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        if "config.yaml" in files or "metrics.csv" in files or "checkpoints" in folders:
            folders.clear()  # what lies in a run are no further runs
            yield Path(parent)
        folders.sort()


def _read(path: Path, name: str) -> Run:
    config = yaml.load((path / "config.yaml").read_bytes(), Loader)
    if not isinstance(config, dict):
        raise ValueError("config.yaml is cut off")
    monitor, mode = str(config["monitor"]), str(config["mode"])
    epochs = _epochs(path / "metrics.csv")
    final = path / "metrics.json"
    metrics = _numbers(json.loads(final.read_text(encoding="utf-8"))) if final.is_file() else {}
    done = bool(metrics)  # a run that goes on has none
    if not done and epochs:
        rated = [epoch for epoch in epochs if monitor in epoch]
        best = (min if mode == "min" else max)(rated, key=lambda epoch: epoch[monitor]) if rated else epochs[-1]
        metrics = {**best, "epoch": epochs[-1]["epoch"] + 1}
        metrics.pop("step", None)
    return Run(name, done, monitor, mode, metrics, flat(config))


def _epochs(path: Path) -> list[dict[str, float]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [_numbers({key: float(text) for key, text in row.items() if text}) for row in csv.DictReader(file)]


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    """What can be compared: a loss that is not a number is left out."""
    return {key: value for key, value in values.items() if isinstance(value, (int, float)) and math.isfinite(value)}


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


class Leaderboard(Callback):
    """Prints it at the end of `-m`; configs/train.yaml names it among Hydra's callbacks."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        sweep_dir = Path(config.hydra.sweep.dir)
        if on_main_process() and any(sweep_dir.glob("*/config.yaml")):  # else all jobs were refused
            compare(sweep_dir)
