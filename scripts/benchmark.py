"""How fast this project is on this machine, as ratios to the usual ways of doing the same.

python scripts/benchmark.py data        files to uint8 batches: decoding, loaders, cache, memory, check, a large table
python scripts/benchmark.py train       a run beside a bare loop; channels_last, bf16, torch.compile; fed from files
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import checking, decoding, feeding, listing, loading, memory, options, steps
from classifier.training.trainer import quiet

DATA_PARTS = ("decoding", "loading", "memory", "checking", "table")
TRAIN_PARTS = ("steps", "options", "feeding")


def benchmark_data(arguments: argparse.Namespace, folder: Path, console: Console) -> Iterator[tuple[str, Any]]:
    """Name of a part and its results, one part at a time."""
    photos = (folder, arguments.images, arguments.large, arguments.rounds)
    if "decoding" in arguments.parts:
        lines = decoding.measure(*photos, only=arguments.only, console=console)
        yield "decoding", [asdict(line) for line in lines]
    if "loading" in arguments.parts:
        lines = loading.measure(folder, arguments.images, arguments.rounds, console)
        yield "loading", [asdict(line) for line in lines]
    if "memory" in arguments.parts:
        yield "memory", memory.measure(arguments.samples, console)
    if "checking" in arguments.parts:
        yield "checking", checking.measure(folder, arguments.images, arguments.rounds, console)
    if "table" in arguments.parts:
        yield "table", listing.measure(arguments.samples, arguments.rounds, console)


def benchmark_train(arguments: argparse.Namespace, folder: Path, console: Console) -> Iterator[tuple[str, Any]]:
    """Name of a part and its results, one part at a time."""
    quiet()
    if "steps" in arguments.parts:
        yield "steps", steps.measure(arguments.rounds, console)
    if "options" in arguments.parts:
        lines = options.measure(arguments.rounds, arguments.steps, console)
        yield "options", [asdict(line) for line in lines]
    if "feeding" in arguments.parts:
        sizes = (arguments.images, arguments.steps, arguments.rounds)
        yield "feeding", [asdict(line) for line in feeding.measure(folder, *sizes, console)]


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    data = commands.add_parser("data", help="files to uint8 batches")
    data.add_argument("--parts", nargs="+", choices=DATA_PARTS, default=DATA_PARTS, help="what to measure (all)")
    data.add_argument("--large", type=int, default=4, help="photos of 4000x3000 pixels (%(default)s)")
    data.add_argument("--samples", type=int, default=1_000_000, help="of the table (%(default)s)")
    data.add_argument("--only", nargs="+", metavar="WORD", default=(), help="ways to decode with a WORD in their name")
    train = commands.add_parser("train", help="batches to weights")
    train.add_argument("--parts", nargs="+", choices=TRAIN_PARTS, default=TRAIN_PARTS, help="what to measure (all)")
    train.add_argument("--steps", type=int, default=4, help="of a turn of options and feeding (%(default)s)")
    for command in (data, train):
        command.add_argument("--images", type=int, default=300, help="photos of 500x375 pixels (%(default)s)")
        command.add_argument("--folder", type=Path, help="make the photos here, and keep them (a temporary folder)")
        command.add_argument("--rounds", type=int, default=5, help="turns of each way (%(default)s)")
        command.add_argument("--json", type=Path, metavar="FILE", help="write the results here, too")
    return parser.parse_args(words)


def main(words: Sequence[str]) -> None:
    arguments = parse_arguments(words)
    versions = {name: version(name) for name in ("torch", "torchvision", "timm", "pillow")}
    report: dict[str, Any] = {"versions": versions, "threads": torch.get_num_threads()}
    with tempfile.TemporaryDirectory() as temporary:
        measure = benchmark_data if arguments.command == "data" else benchmark_train
        for name, found in measure(arguments, arguments.folder or Path(temporary), Console()):
            report[name] = found
            if arguments.json:
                arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
