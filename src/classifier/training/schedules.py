"""Learning-rate schedules: each a function of the optimiser's steps and of the run's length."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Timer
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from classifier.errors import UserError, require_number

LONGEST_WARMUP = 0.3  # share of the run, as in one_cycle: a short run needs its full rate for most of its steps


@dataclass(frozen=True)
class RunLength:
    """How long a run is, in the optimiser's steps.

    Args:
        total_steps: Of the whole run; infinite where it has no end in steps.
        steps_per_epoch: Of one epoch.
        time_share: Gives the share of `trainer.max_time` that has passed; None without such a limit.
    """

    total_steps: float
    steps_per_epoch: int
    time_share: Callable[[], float] | None = None


def run_length(trainer: pl.Trainer) -> RunLength:
    """The length of the run that the Trainer has been set up for."""
    trainer.fit_loop.setup_data()  # the number of batches is known from here on
    total = trainer.estimated_stepping_batches
    per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
    # trainer.max_time is a Timer too; a resumed one has counted the time before
    timers = [item for item in trainer.callbacks if isinstance(item, Timer)]  # type: ignore[attr-defined]
    limits = [(timer, timer.time_elapsed() + rest) for timer in timers if (rest := timer.time_remaining()) is not None]

    def time_share() -> float:  # the first process decides, as all have to step at the same rate
        return trainer.strategy.broadcast(max(timer.time_elapsed() / max(limit, 1e-9) for timer, limit in limits))

    return RunLength(math.inf if total == -1 else max(1, total), max(1, per_epoch), time_share if limits else None)


def cosine(optimizer: Optimizer, length: RunLength, *, warmup_epochs: float = 0.0, min_lr: float = 0.0) -> LRScheduler:
    """Half a cosine from the optimiser's rate down to `min_lr`, after a linear warm-up.

    In a run that is limited in steps and in time, it follows whichever is nearer to its end.

    Source: I. Loshchilov, F. Hutter, SGDR, ICLR 2017; warm-up: P. Goyal et al., arXiv:1706.02677.
    """
    if math.isinf(length.total_steps) and length.time_share is None:
        raise UserError(
            "scheduler=cosine needs trainer.max_epochs=... or trainer.max_time=...: or use scheduler=constant"
        )
    base = optimizer.defaults["lr"]
    require_number("scheduler.min_lr", min_lr, least=0, most=base)
    floor = min_lr / base if base else 1.0
    warmup = _warmup_steps(length, warmup_epochs)

    @lru_cache(maxsize=1)  # all groups of parameters ask, and time goes by
    def time_share(step: int) -> float:
        return 0.0 if length.time_share is None else min(1.0, length.time_share())

    def factor(step: int) -> float:
        done = (step - warmup) / (length.total_steps - warmup)
        done = min(1.0, max(0.0, done, time_share(step)))
        warm = max((step + 1) / (warmup + 1), time_share(step) / LONGEST_WARMUP)
        return min(1.0, warm) * (floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2)

    # torch's CosineAnnealingLR computes each rate from the last one, and its state holds its length: a run resumed with
    # more epochs would climb again. A function of the step alone continues with the longer curve.
    return LambdaLR(optimizer, factor)


def one_cycle(
    optimizer: Optimizer, length: RunLength, *, pct_start: float, div_factor: float, final_div_factor: float
) -> LRScheduler:
    """Up to the optimiser's rate and down again, by steps alone; momentum, if there is any, the other way.

    Source: L. Smith, N. Topin, Super-Convergence, arXiv:1708.07120; the arguments are those of torch's OneCycleLR.
    """
    if math.isinf(length.total_steps):
        raise UserError("scheduler=one_cycle needs a number of steps: use trainer.max_epochs=..., or scheduler=cosine")
    curve: dict[str, Any] = {"pct_start": pct_start, "div_factor": div_factor, "final_div_factor": final_div_factor}
    steps = int(length.total_steps) + 1  # it refuses the step that Lightning takes after the last batch
    momentum = bool({"momentum", "betas"} & optimizer.defaults.keys())
    rates = [group["lr"] for group in optimizer.param_groups]
    return OneCycleLR(optimizer, rates, steps, cycle_momentum=momentum, **curve)


def step(
    optimizer: Optimizer, length: RunLength, *, every_epochs: float, gamma: float, warmup_epochs: float = 0.0
) -> LRScheduler:
    """Multiply the rate by `gamma` every `every_epochs` epochs, after a linear warm-up (which is part of them)."""
    require_number("scheduler.every_epochs", every_epochs, above=0)
    require_number("scheduler.gamma", gamma, above=0, most=1)
    size = max(1, round(every_epochs * length.steps_per_epoch))
    warmup = _warmup_steps(length, warmup_epochs)
    return LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / (warmup + 1)) * float(gamma) ** (step // size))


def constant(optimizer: Optimizer, length: RunLength, *, warmup_epochs: float = 0.0) -> LRScheduler:
    """The optimiser's rate, after a linear warm-up; the run may be endless."""
    return step(optimizer, length, every_epochs=1, gamma=1, warmup_epochs=warmup_epochs)


def plateau(
    optimizer: Optimizer, length: RunLength, *, monitor: str, mode: str, factor: float, patience: int
) -> ReduceLROnPlateau:
    """Multiply the rate by `factor` when `monitor` has not improved for more than `patience` epochs."""
    return ReduceLROnPlateau(optimizer, mode=mode, factor=factor, patience=patience)  # type: ignore[arg-type]


def _warmup_steps(length: RunLength, epochs: float) -> int:
    require_number("scheduler.warmup_epochs", epochs, least=0)
    return int(min(round(epochs * length.steps_per_epoch), LONGEST_WARMUP * length.total_steps))


def forget_length(state: dict[str, Any]) -> None:
    """Remove the run's length from a OneCycleLR's saved state, so that a longer run can resume from it."""
    for key in ("total_steps", "_schedule_phases"):
        state.pop(key, None)
