"""A training run with everything on, beside a bare loop over the same network and batches."""

import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
import pytorch_lightning as pl
import torch
from rich.console import Console
from torch.utils.data import DataLoader

from benchmarks.networks import CLASSES, NO_WEIGHT, RESNET18, SMALL_CNN, BareLoop, Case, wait
from classifier.data.loader import Batch
from classifier.runs import CONFIG_DIR, plain
from classifier.training.finetune import FineTuning
from classifier.training.hardware import speed_up
from classifier.training.module import ImageClassifier
from classifier.training.trainer import build_trainer

WARM_UP = 2  # turns that do not count


@dataclass(frozen=True)
class Turns:
    """Seconds a step of each turn, of the run and of the bare loop after it."""

    run: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Speed of the run as a share of the bare loop's: the median over the turns."""
        return statistics.median(bare / run for run, bare in zip(self.run, self.bare, strict=True))

    @property
    def cost(self) -> float:
        """Seconds that a step of the run takes beyond the bare loop's: the median over the turns."""
        return statistics.median(run - bare for run, bare in zip(self.run, self.bare, strict=True))


class TakeTurns(pl.Callback):
    """Stops the clock of the run every so many batches, for the bare loop to take them as well."""

    def __init__(self, bare: BareLoop, batches: Sequence[Batch]) -> None:
        self.bare = bare
        self.batches = batches
        self.turns = Turns()
        self.count = 0
        self.resumed = 0.0

    def on_train_batch_start(self, *arguments: Any) -> None:
        turn, step = divmod(self.count, len(self.batches))
        self.count += 1
        if step > 0:
            return
        wait()
        stopped = time.perf_counter()
        self.bare.train(self.batches)
        if turn > WARM_UP:
            self.turns.run.append((stopped - self.resumed) / len(self.batches))
            self.turns.bare.append((time.perf_counter() - stopped) / len(self.batches))
        self.resumed = time.perf_counter()


# network, and steps of a turn
CASES = ((NO_WEIGHT, 500), (SMALL_CNN, 40), (RESNET18, 4))


def measure(rounds: int, console: Console, cases: Sequence[tuple[Case, int]] = CASES) -> list[dict[str, Any]]:
    """Networks, and one that does nothing, whose step shows what the loop takes.

    Args:
        rounds: Turns of each; one takes a few seconds.
    """
    found = []
    console.print(f"a run with everything on, {rounds} turns by turns with a bare loop")
    for case, steps in cases:
        turns = take_turns(case, steps=steps, turns=rounds, epoch=10 * steps)
        run, bare = (case.batch_size / statistics.median(seconds) for seconds in (turns.run, turns.bare))
        found.append({"case": case.name, "run": run, "bare": bare, "ratio": turns.ratio, "cost": turns.cost})
        console.print(
            f"{case.name}: {run:,.1f} images/s, bare {bare:,.1f}, x bare {turns.ratio:.3f}, "
            f"ms a step beyond {1000 * turns.cost:.2f}"
        )
    return found


def take_turns(case: Case, *, steps: int, turns: int, epoch: int) -> Turns:
    """A run as `python src/train.py` makes it, with all its callbacks and loggers, and a bare loop by turns.

    Args:
        steps: Of a turn.
        epoch: Steps of an epoch, at whose end the run writes its checkpoints.
    """
    with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        words = ["~experiment", "data=folder", "data.root=none", "optimizer=sgd", "monitor=train/loss", "mode=min"]
        config = hydra.compose("train", words)
    batches = case.batches(2)
    with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w") as nowhere:
        config.run_dir, config.name = folder, "benchmark"
        settings = plain(config)
        # drawn, but not over the results
        settings["callbacks"]["progress_bar"]["console_kwargs"] = {"force_terminal": True, "file": nowhere}
        settings["callbacks"]["early_stopping"]["patience"] = 1_000_000
        settings["trainer"] |= {"max_epochs": 1 + (turns + WARM_UP) * steps // epoch, "enable_model_summary": False}
        model = ImageClassifier(
            model=settings["model"],
            classes=[f"class {number}" for number in range(CLASSES)],
            preprocessing={"image_size": [case.size, case.size], "channels": 3},
            optimizer=settings["optimizer"],
            scheduler=settings["scheduler"],
            trusted=True,
        )
        model.network = case.build()
        model.finetuning = FineTuning(model.network)  # whose parameters the optimiser takes
        speed_up(model.network, **settings["speed"])
        network = case.build().to(memory_format=torch.channels_last)
        alternation = TakeTurns(BareLoop(network), [batches[number % 2] for number in range(steps)])
        trainer = build_trainer(settings, Path(folder), [alternation])
        loader = DataLoader([batches[number % 2] for number in range(epoch)], batch_size=None)  # type: ignore[var-annotated,arg-type]
        trainer.fit(model, loader)
        _require_trained(model, case)
    return alternation.turns


def _require_trained(model: ImageClassifier, case: Case) -> None:
    """The figures would be of something else, had the run's optimiser left its network alone."""
    for trained, new in zip(model.network.parameters(), case.build().parameters(), strict=True):
        assert not torch.equal(trained.cpu(), new), "a parameter was not trained"
