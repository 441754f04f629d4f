"""Optimisers and learning-rate schedules out of a config."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, ReduceLROnPlateau, StepLR

from classifier.errors import UserError
from classifier.instantiate import build


def build_optimizer(config: Mapping[str, Any], parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Build `_target_` with its arguments over `parameters`.

    Raises:
        UserError: No such optimiser, or it does not take one of the arguments.
    """
    optimizer: Optimizer = build(config, "optimizer", list(parameters))
    return optimizer


def build_scheduler(
    config: Mapping[str, Any], optimizer: Optimizer, total_steps: float, steps_per_epoch: float
) -> LRScheduler | ReduceLROnPlateau:
    """Build the schedule that `_target_` names, one of the functions below.

    Args:
        total_steps: Optimiser steps of the whole run, as the Trainer counts them; infinite where it has no end.
        steps_per_epoch: Optimiser steps of one epoch.

    Raises:
        UserError: The run has no end in steps, or the config does not fit the schedule.
    """
    if total_steps in (float("inf"), -1):
        raise UserError(
            "the learning-rate schedule needs to know its end: use trainer.max_epochs=... or scheduler=null"
        )
    scheduler: LRScheduler | ReduceLROnPlateau = build(
        config,
        "scheduler",
        optimizer,
        total_steps=max(1, int(total_steps)),
        steps_per_epoch=max(1, int(steps_per_epoch)),
    )
    return scheduler


def cosine(
    optimizer: Optimizer, *, total_steps: int, steps_per_epoch: int, warmup_epochs: float = 0.0, min_lr: float = 0.0
) -> LRScheduler:
    """Half a cosine from the optimiser's rate down to `min_lr`, after a linear warm-up; a step a batch.

    Source: I. Loshchilov, F. Hutter, SGDR, ICLR 2017; warm-up: P. Goyal et al., arXiv:1706.02677.
    """
    warmup = min(round(warmup_epochs * steps_per_epoch), total_steps - 1)
    base = optimizer.param_groups[0]["lr"]
    floor = min_lr / base if base else 1.0

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = min(1.0, (step - warmup) / (total_steps - warmup))
        return float(floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2)

    # torch's CosineAnnealingLR goes from each rate to the next one and keeps its length in the checkpoint: a run that
    # is resumed with more epochs would climb again. A function of the step alone takes up the longer schedule.
    return LambdaLR(optimizer, factor)


def one_cycle(
    optimizer: Optimizer,
    *,
    total_steps: int,
    steps_per_epoch: int,
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
) -> LRScheduler:
    """Up to the optimiser's rate and down again, momentum the other way; a step a batch.

    Source: L. Smith, N. Topin, Super-Convergence, arXiv:1708.07120; the arguments are those of torch's OneCycleLR.
    """
    return OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=total_steps + 1,  # it refuses the step that Lightning takes after the last batch
        pct_start=pct_start,
        div_factor=div_factor,
        final_div_factor=final_div_factor,
    )


def step(
    optimizer: Optimizer, *, total_steps: int, steps_per_epoch: int, every_epochs: float = 10, gamma: float = 0.1
) -> LRScheduler:
    """Times `gamma` every `every_epochs` epochs."""
    return StepLR(optimizer, step_size=max(1, round(every_epochs * steps_per_epoch)), gamma=gamma)


def plateau(
    optimizer: Optimizer,
    *,
    total_steps: int,
    steps_per_epoch: int,
    monitor: str,
    mode: str,
    factor: float = 0.1,
    patience: int = 5,
) -> ReduceLROnPlateau:
    """Times `factor` when `monitor` has not become better for more than `patience` epochs."""
    return ReduceLROnPlateau(optimizer, mode=mode, factor=factor, patience=patience)  # type: ignore[arg-type]


LENGTH_KEYS = ("total_steps", "_schedule_phases")


def forget_length(state: dict[str, Any]) -> None:
    """Take out of a OneCycleLR's saved state how long the run was, so that a longer one can go on from it."""
    for key in LENGTH_KEYS:
        state.pop(key, None)
