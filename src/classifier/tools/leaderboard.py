"""Run directories -> one table of what they reached and of the settings in which they differ, the best run first."""

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from itertools import permutations
from pathlib import Path
from textwrap import TextWrapper, fill, shorten
from typing import Any

import numpy as np
import pandas as pd
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from classifier.errors import UserError, as_typed, require_choice, require_whole
from classifier.files import write_csv
from classifier.runs import named_settings, on_main_process, parsed

TARGET = "._target_"
DEVIATION = " deviation"
OFF = ("null", "")  # the value of a setting that is off, or that a config lacks
# no result depends on these keys, or not but for `monitor`, as which mode and callbacks go by
LEFT_OUT = re.compile(
    r"(name|log_dir|run_dir|resume|mode|callbacks\.\w+\.(monitor|mode))$"
    r"|logger|trainer\.enable_|callbacks\.(model_summary|progress_bar)"
)


def compare(
    folder: Path,
    *,
    sort: str = "",
    over: Sequence[str] = (),
    name: str = "",
    limit: int = sys.maxsize,
    columns: Sequence[str] = (),
    csv: str = "",
) -> None:
    """Print the runs below `folder`, the best first.

    Args:
        sort: A metric; by default that of `ranking_metric`.
        over: Settings, such as seed: runs that differ in nothing else are averaged. Unfinished runs are left out.
        name: Only runs with this text in their path.
        limit: At most so many rows.
        columns: Metrics to print beside the one sorted by.
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
    for key in over if len(runs) else ():  # a run of all the data is no fold
        require_choice("--over", key, [*map(str, part(runs, "settings"))])
        without = runs["settings", key].isin(OFF)
        without &= not without.all()
        left_out += [f"{name} ({key}=null)" for name in runs["run", "run"][without]]
        runs = runs[~without]
    sys.stderr.writelines(f"left out: {line}\n" for line in left_out)
    if runs.empty:
        raise UserError(f"{folder} holds no {'finished ' * bool(over)}run with {name!r} in its path: name another")
    monitored = runs["run", "monitor"]
    metric = sort or ranking_metric(runs)
    modes = set(runs["run", "mode"][monitored == metric])
    # where the runs do not say: losses, and counts such as fit_seconds, which have no part of the data in their name
    smallest = modes == {"min"} if len(modes) == 1 else metric.endswith("loss") or "/" not in metric
    rows = averaged(runs, over) if over else runs
    for key in [*([sort] if sort else []), *columns]:
        require_choice("--columns" if key in columns else "--sort", key, [*map(str, part(rows, "metrics"))])
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
    numbers = pd.concat([_cells(metrics, key) for key in dict.fromkeys((metric, *columns))], axis=1)
    notes = about[["runs"] * bool(over) + ["state"] * bool((about["state"] != "done").any())]
    print_table(about["run"], pd.concat([numbers, notes], axis=1), different)
    counts = "means" if over else len(rows)
    why = " (they monitor different ones)" if sort is None and monitored.nunique() > 1 else ""
    print(f"{counts} of {len(runs)} runs by {metric}{why}, the {'smallest' if smallest else 'largest'} first")


def ranking_metric(runs: pd.DataFrame) -> str:
    """What the runs monitor, if it is one metric and not of training; else one that all have, or most.

    Of folds it is the accuracy of the part that is held out.
    """
    metrics, monitored = part(runs, "metrics"), runs["run", "monitor"].unique().tolist()
    are_folds = not runs.get(("settings", "data.fold"), pd.Series("")).isin(OFF).any()
    known = sorted(str(name) for name in metrics if "/" in str(name))
    of_test = ["test/acc", "test/map"]
    names: list[str] = (
        of_test * are_folds + monitored * (len(monitored) == 1) + ["val/acc", "val/map", *of_test, *known]
    )
    counts = metrics.count()
    return max(names, key=lambda name: (counts.get(name, 0), not name.startswith("train/")))


def read_runs(folder: Path) -> tuple[pd.DataFrame, list[str]]:
    """One row for each run below `folder`, ordered by path, and the run directories that cannot be read.

    The columns have two levels: `run` (run, runs, state, monitor, mode), `metrics`, and `settings`: empty where the
    config of a run has no such key.
    """
    read, unreadable = [], []
    for parent, folders, files in os.walk(folder):
        folders.sort()
        if not {"config.yaml", "metrics.csv", "checkpoints"} & {*files, *folders}:
            continue
        folders.clear()  # a run holds no other runs
        name = as_typed(os.path.relpath(parent, folder))
        try:
            read.append(_read_run(Path(parent), name))
        except UserError as error:
            unreadable.append(f"{name} ({error})")
    # a loss that is not finite cannot be compared
    metrics = pd.DataFrame([run[1] for run in read], dtype=float).replace([np.inf, -np.inf], np.nan)
    levels = {
        "run": pd.DataFrame([run[0] for run in read], columns=["run", "runs", "state", "monitor", "mode"]),
        "metrics": metrics,
        "settings": pd.DataFrame([run[2] for run in read], dtype=str).fillna(""),
    }
    return pd.concat(levels, axis=1), unreadable


def part(runs: pd.DataFrame, name: str) -> pd.DataFrame:
    """The columns below `name`."""
    return pd.DataFrame(runs[name])


def _read_run(path: Path, name: str) -> tuple[tuple[str, int, str, str, str], dict[Any, float], dict[str, str]]:
    """What is known of a run, its metrics, its settings. An unfinished run has the metrics of its best epoch so far."""
    with _read(path / "config.yaml") as text:
        config = parsed(text)
        monitor, mode, settings = str(config["monitor"]), str(config["mode"]), flat(config)
    state, final, by_epoch = "unfinished", path / "metrics.json", path / "metrics.csv"
    metrics: dict[Any, float] = {}
    if final.is_file():  # a run that was resumed has none until it ends
        with _read(final) as text:
            values, state = json.loads(text), "done"
            metrics = {key: float(value) for key, value in values.items() if isinstance(value, (int, float))}
            "".join(metrics).encode()  # raises on what is no text
    elif by_epoch.is_file():
        with _read(by_epoch) as text:
            epochs = pd.read_csv(BytesIO(text), dtype=float)
            rated = epochs.reindex(columns=[monitor])[monitor].dropna()
            best = epochs.tail(1) if rated.empty else epochs[epochs[monitor] == rated.agg(mode)]
            metrics = dict(*best.assign(epoch=epochs["epoch"].max()).drop(columns="step").head(1).to_dict("records"))
    return (name, 1, state, monitor, mode), metrics, settings


@contextmanager
def _read(path: Path) -> Iterator[bytes]:
    """A file's content; whatever is wrong with it becomes a UserError that names the file."""
    try:
        yield path.read_bytes()
    except Exception as error:
        raise UserError(shorten(f"{path.name}: {type(error).__name__} {error}", 80)) from error


def flat(config: Mapping[str, Any]) -> dict[str, str]:
    """The settings on which a result may depend, as they are typed."""
    settings = {key: value for key, value in named_settings(config).items() if not LEFT_OUT.match(key)}
    # callbacks write to the run's own directory
    return {key: as_typed(value).replace(str(config.get("run_dir")), "") for key, value in settings.items()}


def differing(settings: pd.DataFrame) -> list[str]:
    """The settings that are not the same in all rows; one that a row lacks counts as off.

    If two runs use different targets, only the target is shown, not the arguments that just one of them has. A copy
    of another setting, such as `data.seed`, is not shown either.
    """
    settings = settings.replace("", "null")
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
    settings = part(runs, "settings").replace("", "null")
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


def print_table(runs: pd.Series, numbers: pd.DataFrame, settings: pd.DataFrame) -> None:
    """Print a column for each setting; where the terminal is too narrow, the settings as overrides below each name.

    There, a value that most runs share stands once, above the table.
    """
    width = shutil.get_terminal_size().columns
    table = pd.concat([numbers, settings], axis=1).set_index(runs).rename_axis(index=None, columns="run").to_string()
    if max(map(len, table.splitlines())) <= width:
        print(table)
        return
    texts = settings.apply(lambda values: (f"{values.name}=" + values).where(values != "", ""))
    common = [text for key in texts if (texts[key] == (text := texts[key].mode()[0])).mean() > 0.5 and text]
    head, *lines = numbers.to_string(index=False).splitlines()
    shown = [("where a run names no other value:", common)] * bool(common) + [(f"{head}  run", [])]
    own = [[text for text in row if text and text not in common] for row in texts.to_numpy()]
    shown += zip(map("{}  {}".format, lines, runs), own, strict=True)
    indent = " " * min(len(head) + 4, width // 4)
    whole = TextWrapper(width, indent, indent, break_long_words=False, break_on_hyphens=False)
    for title, words in shown:
        print(fill(title, width, subsequent_indent=indent), *whole.wrap(" ".join(words)), sep="\n")


def _cells(metrics: pd.DataFrame, name: str) -> pd.Series:
    """A metric as text, with its deviation if it has one."""
    number = f"{{:.{4 if '/' in name else 1}f}}".format
    cells = metrics.get(name, pd.Series(np.nan, metrics.index)).map(number, na_action="ignore").fillna("")
    if name + DEVIATION in metrics:
        cells += (" ± " + metrics[name + DEVIATION].map(number, na_action="ignore")).fillna("")
    return cells


class Leaderboard(Callback):
    """Prints the table at the end of `-m`; configs/train.yaml names it among Hydra's callbacks."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        sweep_dir = Path(config.hydra.sweep.dir)
        if on_main_process() and any(sweep_dir.glob("*/config.yaml")):  # else every job was refused
            compare(sweep_dir)
            settings = part(read_runs(sweep_dir)[0], "settings")
            if settings.get("data.fold", pd.Series()).nunique() > 1:  # cross-validation
                print()
                compare(sweep_dir, over=["data.fold"])
