"""What the check before the first epoch costs, as a share of decoding the same files once."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch

from classifier.data.check import check_images
from classifier.data.samples import Samples
from classifier.data.transforms import Preprocessing
from classifier.tools.photos import photos

SIDE = 224  # pixels that are decoded to


def check_cost(folder: Path, count: int = 1000, distinct: int = 50, rounds: int = 3) -> dict[str, float]:
    """Measure it on photographs of 500x375 pixels and about 75 kB, which are written to `folder`.

    Processor time of all threads is compared, the least of `rounds` that alternate.

    Args:
        count: Files that are checked.
        distinct: Of these so many are different, and these are decoded.

    Returns:
        `decode_us`, `first_us`, `second_us`: microseconds a file, of decoding to 224 pixels, of the first check and
        of one that finds nothing changed; `first_share`, `second_share`: of decoding.
    """
    originals = photos(folder / "a", distinct)
    paths = [f"a/{path.name}" for path in originals]
    for number in range(distinct, count):
        paths.append(f"a/{number:05d}.jpg")
        shutil.copyfile(originals[number % distinct], folder / paths[-1])
    samples = Samples.build(folder, ["a"], paths, [0] * count)
    read = Preprocessing((SIDE, SIDE))
    cache = folder.with_name(f"{folder.name}_cache")  # nothing is kept inside the data

    def decode_all() -> None:
        for path in originals:
            read(path)

    def check_all() -> None:
        check_images(samples, "quick", cache)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the workers of a loader
    times: dict[str, list[float]] = {"decode_us": [], "first_us": [], "second_us": []}
    for _ in range(rounds):
        shutil.rmtree(cache, ignore_errors=True)
        times["decode_us"].append(_seconds(decode_all) / distinct)
        times["first_us"].append(_seconds(check_all) / count)
        times["second_us"].append(_seconds(check_all) / count)
    torch.set_num_threads(threads)
    shutil.rmtree(cache, ignore_errors=True)
    least = {name: min(values) * 1e6 for name, values in times.items()}
    shares = {f"{name}_share": least[f"{name}_us"] / least["decode_us"] for name in ("first", "second")}
    return {**least, **shares}


def _seconds(work: Callable[[], None]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start
