"""What listing a table of samples takes: reading it, and looking for its files."""

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from rich.console import Console

from classifier.data import TableDataModule

FILES = 1000  # in ten folders; listing looks into folders, not into files
COLUMNS = ["x1", "y1", "x2", "y2"]


def measure(count: int, rounds: int, console: Console) -> dict[str, float]:
    """The least seconds in which a CSV of `count` lines becomes a table of samples.

    Returns:
        `boxes` in 1,000 files; `files` by as many names, of which 1,000 exist.
    """
    found: dict[str, float] = {"lines": count}
    with TemporaryDirectory() as folder:
        table = Path(folder, "table.csv")
        _write(table, count)
        boxes = TableDataModule(folder, table="table.csv", box_columns=COLUMNS)
        files = TableDataModule(folder, table="table.csv", path_column="name")
        for what, module in (("boxes", boxes), ("files", files)):
            seconds = []
            for _ in range(rounds):
                start = time.perf_counter()
                samples = module.list_samples()
                seconds.append(time.perf_counter() - start)
                assert len(samples) == count
                console.print(f"a CSV of {count:,} {what}: {seconds[-1]:.2f} s")
            found[what] = min(seconds)
    return found


def _write(table: Path, count: int) -> None:
    names = np.array([f"folder_{number % 10}/photograph_{number:07d}.jpg" for number in range(FILES)])
    for name in names.tolist():
        path = table.parent / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    rows = np.arange(count)
    x, y = rows % 900, rows // 900
    boxes = dict(zip(COLUMNS, (x, y, x + 50, y + 70), strict=True))
    name = pd.Series(names[rows % 10]).str[:9] + "photograph_" + pd.Series(rows).astype("str").str.zfill(7) + ".jpg"
    labels = np.char.add("class_", (rows % 10).astype(str))
    pd.DataFrame({"path": names[rows % FILES], "name": name, "label": labels, **boxes}).to_csv(table, index=False)
