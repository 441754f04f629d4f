"""Training fed from files beside training fed from memory: whether the data keeps up with the device."""

import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.decoding import RATIO, SCALE
from benchmarks.networks import BareLoop, Case
from benchmarks.photos import images_of, make_photos
from benchmarks.timing import Result, results, table, take_turns
from classifier.data.loader import EpochSampler, ImageDataset, ResumableLoader
from classifier.data.transforms import Augmentation, Preprocessing
from classifier.models import timm_model
from classifier.parallel import worker_count

RESNET50 = Case("ResNet-50 at 224", partial(timm_model, "resnet50", pretrained=False), 224, 256)
MEMORY = "from memory (reference)"


def measure(folder: Path, count: int, steps: int, rounds: int, console: Console, case: Case = RESNET50) -> list[Result]:
    """Training steps in bf16, channels_last.

    Args:
        folder: Where the photos are made.
        count: Number of photos of 500x375, from which random crops are cut.
        steps: Of a turn.
    """
    network = case.build().to(memory_format=torch.channels_last)
    loop = BareLoop(network, bf16=True)
    batches = [{name: value.to(loop.device) for name, value in batch.items()} for batch in case.batches(2)]
    workers = worker_count("auto")
    files = file_loader(make_photos(folder, count)[0].path.parents[1], case, steps, workers)

    def from_files(number: int) -> int:
        files.epoch_sampler.set_epoch(number)
        return loop.train(files)

    ways = {
        MEMORY: lambda _: loop.train(batches[number % 2] for number in range(steps)),
        f"from JPEG files, {workers} workers": from_files,
    }
    lines = results(case.name, take_turns(ways, rounds, console, case.name), MEMORY)
    share = lines[0].images_per_second * flops_an_image(loop, case) / matrix_rate(loop.device)
    console.print(table(f"train: {case.name}, batch {case.batch_size}, bf16, {rounds} rounds", lines))
    console.print(f"from memory, {share:.0%} of the rate at which this device multiplies large bf16 matrices")
    return lines


def file_loader(root: Path, case: Case, steps: int, workers: int) -> ResumableLoader:
    """A loader of `steps` batches of random crops an epoch."""
    wanted = steps * case.batch_size
    paths = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.jpg"))
    paths = (paths * -(-wanted // len(paths)))[:wanted]
    images = images_of(root, paths)
    augmentation = Augmentation(Preprocessing((case.size, case.size)), {"scale": SCALE, "ratio": RATIO})
    settings: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0}
    return ResumableLoader(
        ImageDataset(images, np.arange(wanted), augmentation),
        EpochSampler(wanted, case.batch_size, seed=0),
        pin_memory=torch.cuda.is_available(),
        **settings,
    )


def flops_an_image(loop: BareLoop, case: Case) -> float:
    """Floating-point operations of a training step, forward and backward, for each image."""
    with FlopCounterMode(display=False) as counter:
        loop.train(case.batches(1))
    return float(counter.get_total_flops()) / case.batch_size


def matrix_rate(device: torch.device) -> float:
    """Floating-point operations a second in a product of large bf16 matrices: the best of ten."""
    side = 8192 if device.type == "cuda" else 1024
    matrix = torch.randn(side, side, dtype=torch.bfloat16, device=device)
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        float((matrix @ matrix)[0, 0])  # waits for the device
        seconds.append(time.perf_counter() - start)
    return float(2 * side**3 / min(seconds))
