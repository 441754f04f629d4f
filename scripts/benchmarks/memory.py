"""What the table of samples costs in memory, over a process and its workers."""

import gc
import multiprocessing
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rich.console import Console

from classifier.data.image import Box, Picture
from classifier.data.loader import EpochSampler, ImageDataset, Images, ResumableLoader
from classifier.data.split import Splitting

WORKERS = 4
BATCHES = 50


def measure(count: int, console: Console) -> dict[str, float]:
    """Memory of training on `count` samples, their index and order alone, beyond that of training on a thousand.

    Returns:
        `megabytes`, over a process and 4 workers (what they share counted once), and `megabytes_per_million`.
    """
    if not Path("/proc/self/smaps_rollup").exists():
        console.print("memory is measured on Linux only")
        return {}
    few, many = (_in_a_process(number) for number in (1000, count))
    megabytes = (many - few) / 1e6
    found = {"samples": count, "megabytes": megabytes, "megabytes_per_million": megabytes / count * 1e6}
    console.print(f"index of {count:,} samples over {WORKERS} workers: {megabytes:.0f} MB")
    return found


def _in_a_process(count: int) -> int:
    """A fresh program each, so that one measure does not see what another left behind."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.memory", str(count)]
    here = Path(__file__).parents[1]  # from where the package can be imported
    return int(subprocess.run(command, check=True, capture_output=True, text=True, cwd=here).stdout)


def _proportional_bytes(count: int) -> int:
    labels = np.arange(count) % 999
    paths = [f"n{label:08d}-some_breed/n{label:08d}_{row:07d}.jpg" for row, label in enumerate(labels)]
    names = pd.Categorical(labels.astype(str))
    samples = pd.DataFrame({"path": pd.Series(paths, dtype="str"), "label": names})
    del paths, labels, names
    samples = samples.assign(split=Splitting(val_fraction=0.0, test_fraction=0.0).split(samples))
    dataset = ImageDataset(Images.of(samples, Path("photos")), np.flatnonzero(samples["split"] == "train"), _no_picture)
    loader = ResumableLoader(dataset, EpochSampler(len(dataset), 64, seed=0), num_workers=WORKERS)
    batches = iter(loader)
    for _ in range(min(BATCHES, len(loader))):
        next(batches)
    gc.collect()
    return of_this_process_and_its_workers()


def of_this_process_and_its_workers() -> int:
    """Bytes, those that are shared counted once."""
    processes = [multiprocessing.current_process(), *multiprocessing.active_children()]
    return sum(_share_of_memory(process.pid) for process in processes)


def _no_picture(picture: Picture, box: Box | None = None) -> torch.Tensor:
    return torch.zeros(3, 8, 8, dtype=torch.uint8)


def _share_of_memory(pid: int | None) -> int:
    """Bytes of a process that are no files, those that n processes share counted as an n-th (Linux)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    (share,) = [line.split()[1] for line in lines if line.startswith("Pss_Anon:")]
    return int(share) * 1024


if __name__ == "__main__":
    print(_proportional_bytes(int(sys.argv[1])))
