"""Run directories -> their settings and what they reached. Imports no torch: a hundred runs take less than a second."""

import csv
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from classifier.tools.leaderboard.settings import Settings, flat

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
