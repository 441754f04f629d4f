"""Run directories -> one table of what they reached and of the settings in which they differ, the best run first."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from classifier.errors import UserError, did_you_mean, require_whole
from classifier.files import write_csv
from classifier.runs import on_main_process

TARGET = "._target_"
DEVIATION = " deviation"
PLACES = ("name", "log_dir", "run_dir", "resume")  # no result depends on these keys
MAIN_METRICS = ("test/acc", "test/f1", "val/acc", "val/loss")  # printed beside the one sorted by; --csv has all
# a hundred runs take 0.2 s with libyaml, 3 s without
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def compare(
    folder: Path, *, sort: str = "", over: Sequence[str] = (), name: str = "", limit: int = sys.maxsize, csv: str = ""
) -> None:
    """Print the runs below `folder`, the best first.

    Args:
        sort: A metric; by default the one that the runs monitor.
        over: Settings, such as seed: runs that differ in nothing else are averaged. Unfinished runs are left out.
        name: Only runs with this text in their path.
        limit: At most so many rows.
        csv: A file for all metrics; `-` prints them instead of the table.

    Raises:
        UserError: There is no such run, metric or setting.
    """
    require_whole("--limit", limit, 1)
    runs, left_out = read_runs(folder)
    runs = runs[runs["run", "run"].str.contains(name, regex=False)]
    if over:
        unfinished = runs["run", "state"] == "unfinished"
        left_out += [f"{name} (unfinished)" for name in runs["run", "run"][unfinished]]
        runs = runs[~unfinished]
    if left_out:
        print(f"left out: {', '.join(left_out)}", file=sys.stderr)
    if runs.empty:
        raise UserError(f"{folder} holds no {'finished ' * bool(over)}run with {name!r} in its path: name another")
    for key in over:
        _require_known("--over", key, part(runs, "settings"))
    monitored = runs["run", "monitor"]
    metric = sort or (monitored.iloc[0] if monitored.nunique() == 1 else "val/acc")
    modes = set(runs["run", "mode"][monitored == metric])
    # where the runs do not say: losses, and counts such as fit_seconds, which have no part of the data in their name
    smallest = modes == {"min"} if len(modes) == 1 else metric.endswith("loss") or "/" not in metric
    rows = averaged(runs, over) if over else runs
    if sort:
        _require_known("--sort", sort, part(rows, "metrics"))
    if ("metrics", metric) in rows:
        rows = rows.sort_values(("metrics", metric), ascending=smallest, kind="stable")
    rows = rows.head(limit)
    about, metrics, settings = (part(rows, name) for name in ("run", "metrics", "settings"))
    about, different = about[["run", "runs", "state"]], settings[differing(settings)]
    table = pd.concat([about, metrics.sort_index(axis=1), different], axis=1)
    if csv == "-":
        table.to_csv(sys.stdout, index=False)
        return
    if csv:
        write_csv(Path(csv), table, "--csv")
    shown = [key for key in dict.fromkeys((metric, *MAIN_METRICS, "epoch", "fit_seconds")) if key in metrics]
    table = pd.concat([about, *(_cells(metrics, key) for key in shown), different], axis=1).set_index("run")
    print(table.rename_axis(index=None, columns="run").to_string())
    order = "smallest" if smallest else "largest"
    print(f"{len(rows)}{' means' * bool(over)} of {len(runs)} runs by {metric}, the {order} first")


def read_runs(folder: Path) -> tuple[pd.DataFrame, list[str]]:
    """One row for each run below `folder`, ordered by path, and the run directories that cannot be read.

    The columns have two levels: `run` (run, runs, state, monitor, mode), `metrics`, and `settings`.
    """
    read, unreadable = [], []
    for parent, folders, files in os.walk(folder):
        folders.sort()
        if not {"config.yaml", "metrics.csv", "checkpoints"} & {*files, *folders}:
            continue
        folders.clear()  # a run holds no other runs
        name = _text(os.path.relpath(parent, folder))
        try:
            read.append(_read_run(Path(parent), name))
        except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
            unreadable.append(f"{name} ({' '.join(f'{type(error).__name__} {error}'.split())})")
    # a loss that is not finite cannot be compared
    metrics = pd.DataFrame([run[1] for run in read], dtype=float).replace([np.inf, -np.inf], np.nan)
    levels = {
        "run": pd.DataFrame([run[0] for run in read], columns=["run", "runs", "state", "monitor", "mode"]),
        "metrics": metrics,
        # a key that a config lacks counts as off
        "settings": pd.DataFrame([run[2] for run in read], dtype=str).fillna("null"),
    }
    return pd.concat(levels, axis=1), unreadable


def part(runs: pd.DataFrame, name: str) -> pd.DataFrame:
    """The columns below `name`."""
    return pd.DataFrame(runs[name])


def _read_run(path: Path, name: str) -> tuple[tuple[str, int, str, str, str], dict[Any, float], dict[str, str]]:
    """What is known of a run, its metrics, its settings. An unfinished run has the metrics of its best epoch so far."""
    config = yaml.load((path / "config.yaml").read_bytes(), Loader)
    monitor, mode = str(config["monitor"]), str(config["mode"])
    state, final, by_epoch = "unfinished", path / "metrics.json", path / "metrics.csv"
    metrics: dict[Any, float] = {}
    if final.is_file():  # a run that was resumed has none until it ends
        state, values = "done", json.loads(final.read_text(encoding="utf-8"))
        metrics = {key: value for key, value in values.items() if isinstance(value, (int, float))}
    elif by_epoch.is_file() and len(epochs := pd.read_csv(by_epoch, dtype=float)):
        rated = epochs.reindex(columns=[monitor])[monitor].dropna()
        best = epochs.tail(1) if rated.empty else epochs[epochs[monitor] == rated.agg(mode)]
        metrics = {**best.drop(columns="step").iloc[0].to_dict(), "epoch": epochs["epoch"].iloc[-1] + 1}
    return (name, 1, state, monitor, mode), metrics, flat(config)


def flat(config: Mapping[str, Any]) -> dict[str, str]:
    """The settings of a config in one level, such as `optimizer.lr` -> `0.001`.

    A section that says what to build is a setting too: its value is its `name`, or else the last word of its
    `_target_`, such as `model` -> `resnet18`.
    """
    run_dir = str(config.get("run_dir"))  # callbacks and loggers write there
    values = pd.json_normalize({key: value for key, value in config.items() if key not in PLACES}).to_dict("records")[0]
    settings: dict[str, str] = {}
    for key, value in values.items():
        section, _, last = str(key).rpartition(".")
        if last == "_target_":
            settings[section] = _text(values.get(f"{section}.name", str(value).rpartition(".")[2]))
        if not (last == "name" and section + TARGET in values):
            settings[str(key)] = _text(value).replace(run_dir, "")
    return settings


def _text(value: Any) -> str:
    r"""A value as it is typed on the command line, with bytes that are not UTF-8 as `\udcff`."""
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), default=str)
    return text.encode("utf-8", "backslashreplace").decode()


def differing(settings: pd.DataFrame) -> list[str]:
    """The settings that are not the same in all rows.

    If two runs use different targets, only the target is shown, not the arguments that just one of them has. A copy
    of another setting, such as `data.seed`, is not shown either.
    """
    targets = [str(name) for name in settings if str(name).endswith(TARGET)]
    found = []
    # two targets may end in the same word
    for key in dict.fromkeys(key.removesuffix(TARGET) for key in settings.columns[settings.nunique() > 1]):
        built_by = [target for target in targets if key.startswith(target.removesuffix("_target_"))]
        values = settings[[*built_by, *settings.columns.intersection([key, key + TARGET])]].drop_duplicates()
        if not built_by or values.duplicated(built_by).any():
            found.append(key)
    copies = {a for a, b in permutations(found, 2) if a.endswith(f".{b}") and settings[a].equals(settings[b])}
    return [key for key in found if key not in copies]


def averaged(runs: pd.DataFrame, over: Sequence[str]) -> pd.DataFrame:
    """One row for all runs that differ in nothing but the settings `over`: means, and deviations as of a sample.

    A metric that one of the runs lacks has no mean.
    """
    endings = tuple(f".{key}" for key in over)  # data.seed is a copy of seed, and goes with it
    settings = part(runs, "settings")
    settings = settings.drop(columns=[key for key in settings if f".{key}".endswith(endings)])
    keys = differing(settings)
    group = settings.groupby(keys, sort=False).ngroup() if keys else pd.Series(0, settings.index)
    first = ~group.duplicated()
    metrics = part(runs, "metrics").groupby(group)
    deviations = metrics.std(skipna=False).dropna(axis=1, how="all").add_suffix(DEVIATION)
    levels = {
        "run": part(runs, "run")[first].set_index(group[first]).assign(runs=metrics.size()),
        "metrics": metrics.mean(skipna=False).join(deviations),
        "settings": settings[first].set_index(group[first]),
    }
    return pd.DataFrame(pd.concat(levels, axis=1))


def _cells(metrics: pd.DataFrame, name: str) -> pd.Series:
    """A metric as text, with its deviation if it has one."""
    number = f"{{:.{4 if '/' in name else 1}f}}".format
    cells = metrics[name].map(number, na_action="ignore").fillna("")
    if name + DEVIATION in metrics:
        cells += (" ± " + metrics[name + DEVIATION].map(number, na_action="ignore")).fillna("")
    return cells


def _require_known(option: str, value: str, known: pd.DataFrame) -> None:
    if value not in known:
        raise UserError(f"{option} {value}: no run has it, {did_you_mean(value, known.columns)}")


class Leaderboard(Callback):
    """Prints the table at the end of `-m`; configs/train.yaml names it among Hydra's callbacks."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        sweep_dir = Path(config.hydra.sweep.dir)
        if on_main_process() and any(sweep_dir.glob("*/config.yaml")):  # else every job was refused
            compare(sweep_dir)
