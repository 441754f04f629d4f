"""Files, or a cache of them, to shuffled batches: loaders with and without workers."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from timm.data.loader import fast_collate
from torch.utils.data import ConcatDataset, DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, PILToTensor, RandomResizedCrop

from benchmarks.decoding import RATIO, SCALE, timm_crops
from benchmarks.photos import images_of, make_photos
from benchmarks.timing import Result, results, table, take_turns
from classifier.data.cache import cached
from classifier.data.loader import EpochSampler, ImageDataset, Images, ResumableLoader
from classifier.data.transforms import Augmentation, Preprocessing

BATCH = 64
WORKERS = 2
LEAST = 2000  # images an epoch, so that its beginning weighs little
REFERENCE = f"torchvision, {WORKERS} workers (reference)"


def measure(folder: Path, count: int, rounds: int, console: Console) -> list[Result]:
    """Epochs over photos of 500x375 as random crops of 224 and of 64 pixels.

    Args:
        folder: Where the photos are made.
        count: Number of photos; an epoch goes over them several times.
    """
    root = make_photos(folder, count)[0].path.parents[1]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found: list[Result] = []
    for size in (224, 64):
        with tempfile.TemporaryDirectory() as cache:
            ways = loaders(root, size, -(-LEAST // count), Path(cache))
            case = f"epochs at {size}"
            runs = {name: epochs(way) for name, way in ways.items()}
            lines = results(case, take_turns(runs, rounds, console, case), REFERENCE)
        console.print(table(f"{case}: {count} JPEGs of 500x375, {rounds} rounds", lines))
        found += lines
    torch.set_num_threads(threads)
    return found


def epochs(loader: "DataLoader[Any]") -> Callable[[int], int]:
    """A run over a loader."""

    def run(number: int) -> int:
        if isinstance(loader, ResumableLoader):
            loader.epoch_sampler.set_epoch(number)
        return sum(len(batch["image"] if isinstance(batch, dict) else batch[0]) for batch in loader)

    return run


def loaders(root: Path, size: int, times: int, cache_dir: Path) -> dict[str, "DataLoader[Any]"]:
    """Name -> loader that gives random crops of `size` of all photos below `root`, each `times` an epoch."""
    torchvision_v1 = Compose([RandomResizedCrop(size, SCALE, RATIO), PILToTensor()])

    def usual(transform: Any, workers: int, **settings: Any) -> "DataLoader[Any]":
        dataset: ConcatDataset[Any] = ConcatDataset([ImageFolder(str(root), transform)] * times)
        return DataLoader(dataset, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0, **settings)

    paths = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.jpg")) * times
    images = images_of(root, paths)
    rows = np.arange(len(paths))
    preprocessing = Preprocessing((size, size))
    augmentation = Augmentation(preprocessing, {"scale": SCALE, "ratio": RATIO})

    def ours(source: Images, workers: int) -> "DataLoader[Any]":
        dataset = ImageDataset(source, rows, augmentation)
        sampler = EpochSampler(len(rows), BATCH, seed=0)
        return ResumableLoader(dataset, sampler, num_workers=workers, persistent_workers=workers > 0)

    in_cache = cached(images, rows, preprocessing, cache_dir, round(size * 8 / 7))
    return {
        REFERENCE: usual(torchvision_v1, WORKERS),
        f"timm, {WORKERS} workers": usual(timm_crops(size), WORKERS, collate_fn=fast_collate),
        "this project, in process": ours(images, 0),
        f"this project, {WORKERS} workers": ours(images, WORKERS),
        "this project's cache, in process": ours(in_cache, 0),
        f"this project's cache, {WORKERS} workers": ours(in_cache, WORKERS),
    }
