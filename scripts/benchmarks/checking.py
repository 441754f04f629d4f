"""What the check before the first epoch costs, as a share of decoding the same files once."""

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from rich.console import Console

from benchmarks.photos import Photo, make_photos
from classifier.data.check import check_images
from classifier.data.loader import Images
from classifier.data.transforms import Preprocessing

SIDE = 224  # pixels that are decoded to
FILES = 20_000  # checked at least, so that what is done once weighs little


def measure(folder: Path, count: int, rounds: int, console: Console) -> dict[str, float]:
    """Processor time of all threads, the least of `rounds` that alternate.

    Args:
        folder: Where the photos are made.
        count: Different photos, which are decoded; copies of them are checked too.

    Returns:
        `decode_us`, `first_us`, `second_us`: microseconds a file, of decoding to 224 pixels, of the first check and
        of one that finds nothing changed; `first_share`, `second_share`: of decoding.
    """
    photos = make_photos(folder, count)
    with tempfile.TemporaryDirectory() as scratch:
        root, paths = Path(scratch, "photos"), [f"{number:05d}.jpg" for number in range(max(FILES, count))]
        root.mkdir()
        for number, path in enumerate(paths):
            shutil.copyfile(photos[number % count].path, root / path)
        table = pd.DataFrame({"path": paths, "label": pd.Categorical(["a"] * len(paths))})
        times = _times(table, root, photos, Path(scratch, "cache"), rounds)
    least = {name: min(values) * 1e6 for name, values in times.items()}
    shares = {f"{name}_share": least[f"{name}_us"] / least["decode_us"] for name in ("first", "second")}
    console.print(
        f"quick check of {count} JPEGs: {shares['first_share']:.1%} of decoding them to {SIDE}, "
        f"{shares['second_share']:.1%} the second time"
    )
    return {**least, **shares}


def _times(table: pd.DataFrame, root: Path, photos: list[Photo], cache: Path, rounds: int) -> dict[str, list[float]]:
    read, images = Preprocessing((SIDE, SIDE)), Images.of(table, root)

    def decode_all() -> None:
        for photo in photos:
            read(photo.path)

    def check_all() -> None:
        check_images(table, images, "quick", cache)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the workers of a loader
    times: dict[str, list[float]] = {"decode_us": [], "first_us": [], "second_us": []}
    for _ in range(rounds):
        shutil.rmtree(cache, ignore_errors=True)
        times["decode_us"].append(_seconds(decode_all) / len(photos))
        times["first_us"].append(_seconds(check_all) / len(table))
        times["second_us"].append(_seconds(check_all) / len(table))
    torch.set_num_threads(threads)
    return times


def _seconds(work: Callable[[], None]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start
