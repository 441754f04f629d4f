import copy
import math
from typing import Any

import pytest
import torch
from classifier.training.optimizers import build_optimizer
from classifier.training.schedules import RunLength, build_scheduler, forget_length
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

from classifier.errors import UserError
from tests.training import runs

OPTIM = "classifier.training.schedules"
COSINE = {"_target_": f"{OPTIM}.cosine", "warmup_epochs": 1}
ONE_CYCLE = {"_target_": f"{OPTIM}.one_cycle"}
STEP = {"_target_": f"{OPTIM}.step", "every_epochs": 2, "gamma": 0.5}


def sgd(lr: float = 1.0) -> Optimizer:
    return SGD([nn.Parameter(torch.zeros(1))], lr=lr, momentum=0.9)


def schedule(config: dict[str, Any], optimizer: Optimizer, total: int, per_epoch: int = 4) -> LRScheduler:
    scheduler = build_scheduler(config, optimizer, total, per_epoch)
    assert isinstance(scheduler, LRScheduler)
    return scheduler


def values(optimizer: Optimizer, scheduler: LRScheduler, steps: int, key: str = "lr") -> list[float]:
    """What each of the next steps is taken with."""
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0][key])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        # 4 steps of warm-up, then half a cosine over the other 6
        (COSINE, [0.2, 0.4, 0.6, 0.8, *((1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)), 0.0]),
        ({**COSINE, "warmup_epochs": 0.5}, [1 / 3, 2 / 3, 1.0, (1 + math.cos(math.pi / 8)) / 2]),
        ({**COSINE, "warmup_epochs": 0, "min_lr": 0.5}, [1.0, 0.5 + 0.25 * (1 + math.cos(math.pi / 10))]),
        ({**COSINE, "warmup_epochs": 99}, [step / 10 for step in range(1, 11)]),  # longer than the run
        (STEP, [1.0] * 8 + [0.5] * 8 + [0.25] * 2),
        ({**STEP, "every_epochs": 0.5}, [1.0, 1.0, 0.5, 0.5, 0.25]),
    ],
)
def test_curves(config: dict[str, Any], expected: list[float]) -> None:
    optimizer = sgd()
    scheduler = schedule(config, optimizer, total=10)
    assert values(optimizer, scheduler, len(expected)) == pytest.approx(expected, abs=1e-12)


def test_cosine_without_warm_up_equals_torch() -> None:
    ours, theirs = sgd(0.3), sgd(0.3)
    config = {"_target_": f"{OPTIM}.cosine", "min_lr": 0.01}
    expected = values(theirs, CosineAnnealingLR(theirs, T_max=25, eta_min=0.01), 26)
    assert values(ours, schedule(config, ours, total=25), 26) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("key", ["lr", "momentum"])
def test_one_cycle_equals_torch(key: str) -> None:
    config = {**ONE_CYCLE, "pct_start": 0.4, "div_factor": 10.0, "final_div_factor": 100.0}
    ours, theirs = sgd(0.3), sgd(0.3)
    reference = OneCycleLR(theirs, max_lr=0.3, total_steps=21, pct_start=0.4, div_factor=10.0, final_div_factor=100.0)
    expected = values(theirs, reference, 20, key)
    assert values(ours, schedule(config, ours, total=20), 20, key) == pytest.approx(expected, rel=1e-12)
    assert len(set(expected)) > 10


def test_no_schedule_is_a_constant_rate() -> None:
    optimizer = runs.make_classifier(scheduler=None).configure_optimizers()
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.param_groups[0]["lr"] == runs.ADAMW["lr"]


def resume(config: dict[str, Any], done: int, before: int, after: int) -> tuple[Optimizer, LRScheduler]:
    """The schedule after `done` steps of a run of `before` steps, taken up by a run of `after` steps."""
    optimizer = sgd()
    scheduler = schedule(config, optimizer, before)
    values(optimizer, scheduler, done)
    states = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
    optimizer = sgd()
    scheduler = schedule(config, optimizer, after)
    forget_length(states[1])
    optimizer.load_state_dict(states[0])
    scheduler.load_state_dict(states[1])
    return optimizer, scheduler


@pytest.mark.parametrize("done", [1, 3, 4, 9, 13])
@pytest.mark.parametrize("config", [COSINE, ONE_CYCLE, STEP], ids=["cosine", "one_cycle", "step"])
def test_resumed_schedule_equals_the_uninterrupted_one(config: dict[str, Any], done: int) -> None:
    optimizer = sgd()
    whole = values(optimizer, schedule(config, optimizer, total=16), 16)
    assert values(*resume(config, done, before=16, after=16), steps=16 - done) == pytest.approx(whole[done:], rel=1e-12)


@pytest.mark.parametrize("done", [9, 16])
@pytest.mark.parametrize("config", [COSINE, ONE_CYCLE, STEP], ids=["cosine", "one_cycle", "step"])
def test_schedule_resumed_for_longer_takes_up_the_longer_curve(config: dict[str, Any], done: int) -> None:
    optimizer = sgd()
    longer = values(optimizer, schedule(config, optimizer, total=40), 40)
    resumed = values(*resume(config, done, before=16, after=40), steps=40 - done)
    # the first step was already set when the shorter run stopped
    assert resumed[1:] == pytest.approx(longer[done + 1 :], rel=1e-12)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_target_": "torch.optim.AdamWW"}, "AdamW"),
        ({"_target_": "no_such_package.SGD"}, "no_such_package"),
        ({"_target_": "torch.optim.SGD", "lr": -1}, "learning rate: -1"),
        ({"_target_": "torch.optim.SGD", "lr": 0.1, "betas": [0.9, 0.99]}, "betas"),
        ({"lr": 0.1}, "optimizer._target_"),
    ],
)
def test_bad_optimizers_are_wrong_input(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refusal:
        build_optimizer(config, [nn.Parameter(torch.zeros(1))])
    assert message in str(refusal.value)
    assert "optimizer." in str(refusal.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_target_": f"{OPTIM}.cosin"}, "cosine"),
        ({**COSINE, "warmup": 1}, "warmup"),
        ({**ONE_CYCLE, "pct_start": 3}, "pct_start"),
        ({**STEP, "every_epochs": "a"}, "scheduler"),
        ({"_target_": f"{OPTIM}.plateau"}, "monitor"),
        ({"_target_": f"{OPTIM}.plateau", "monitor": "val/loss", "mode": "up"}, "up"),
    ],
)
def test_bad_schedules_are_wrong_input(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refusal:
        build_scheduler(config, sgd(), 10, 2)
    assert message in str(refusal.value)
    assert "scheduler." in str(refusal.value)


@pytest.mark.parametrize("total", [float("inf"), -1])
def test_endless_run_needs_an_end(total: float) -> None:
    with pytest.raises(UserError, match=r"trainer\.max_epochs=.* or scheduler=null"):
        build_scheduler(COSINE, sgd(), total, 4)
