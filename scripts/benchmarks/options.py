"""What channels_last, bf16 and torch.compile bring on this machine, beside eager float32."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from rich.console import Console

from benchmarks.networks import RESNET18, SMALL_CNN, BareLoop, Case
from benchmarks.timing import Result, results, table, take_turns

REFERENCE = "eager float32 (reference)"


@dataclass(frozen=True)
class Option:
    """A way to run a network."""

    channels_last: bool = False
    bf16: bool = False
    compile: bool = False


OPTIONS = {
    REFERENCE: Option(),
    "channels_last": Option(channels_last=True),
    "bf16": Option(bf16=True),
    "channels_last, bf16": Option(channels_last=True, bf16=True),
    "channels_last, compile": Option(channels_last=True, compile=True),
    "channels_last, bf16, compile": Option(channels_last=True, bf16=True, compile=True),
}


def measure(rounds: int, steps: int, console: Console) -> list[Result]:
    """Training and evaluation of two networks, by turns of `steps` batches."""
    found: list[Result] = []
    for case in (RESNET18, SMALL_CNN):
        for what in ("train", "evaluate"):
            candidates = {name: run(case, option, what, steps) for name, option in OPTIONS.items()}
            title = f"{what}: {case.name}"
            lines = results(title, take_turns(candidates, rounds, console, title), REFERENCE)
            console.print(table(f"{title}, batch {case.batch_size}, {rounds} rounds", lines))
            found += lines
    return found


def run(case: Case, option: Option, what: str, steps: int) -> Callable[[int], int]:
    """A turn of an option."""
    network = case.build()
    if option.channels_last:
        network.to(memory_format=torch.channels_last)
    if option.compile:
        network.compile()
    loop = BareLoop(network, option.bf16)
    batches = case.batches(2, option.channels_last)
    turn = [batches[number % len(batches)] for number in range(steps)]
    return lambda _: (loop.train if what == "train" else loop.evaluate)(turn)
