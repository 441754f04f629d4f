import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import LambdaCallback, Timer
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from classifier.errors import UserError
from classifier.instantiate import build
from classifier.training.schedules import RunLength, forget_length, run_length
from tests.training import runs

SCHEDULES = "classifier.training.schedules"
COSINE = {"_target_": f"{SCHEDULES}.cosine", "warmup_epochs": 1}
ONE_CYCLE = {"_target_": f"{SCHEDULES}.one_cycle", "pct_start": 0.4, "div_factor": 10.0, "final_div_factor": 100.0}
STEP = {"_target_": f"{SCHEDULES}.step", "every_epochs": 2, "gamma": 0.5}
CONSTANT = {"_target_": f"{SCHEDULES}.constant", "warmup_epochs": 1}


def sgd() -> Optimizer:
    return SGD([nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)


def schedule(config: dict[str, Any], optimizer: Optimizer, total: float) -> Any:
    return build(config, "scheduler", optimizer, RunLength(total, steps_per_epoch=4))


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
        # 4 steps of warm-up, then half a cosine over the other 16
        (COSINE, [0.2, 0.4, 0.6, 0.8, *((1 + math.cos(math.pi * step / 16)) / 2 for step in range(16)), 0.0]),
        ({**COSINE, "warmup_epochs": 0, "min_lr": 0.5}, [1.0, 0.5 + 0.25 * (1 + math.cos(math.pi / 20))]),
        # three tenths of the run, as one epoch of the 5 would be more
        ({**COSINE, "warmup_epochs": 99}, [*(step / 7 for step in range(1, 7)), 1.0]),
        (STEP, [1.0] * 8 + [0.5] * 8 + [0.25] * 2),
        (CONSTANT, [0.2, 0.4, 0.6, 0.8, *[1.0] * 10]),
    ],
)
def test_curves(config: dict[str, Any], expected: list[float]) -> None:
    optimizer = sgd()
    scheduler = schedule(config, optimizer, total=20)
    assert values(optimizer, scheduler, len(expected)) == pytest.approx(expected, abs=1e-12)


def test_one_cycle_equals_torch() -> None:
    arguments: dict[str, Any] = {key: value for key, value in ONE_CYCLE.items() if key != "_target_"}
    for key in ("lr", "momentum"):
        ours, theirs = sgd(), sgd()
        expected = values(theirs, OneCycleLR(theirs, 1.0, 21, **arguments), 20, key)
        assert values(ours, schedule(ONE_CYCLE, ours, total=20), 20, key) == pytest.approx(expected, rel=1e-12)
    schedule(ONE_CYCLE, torch.optim.Adagrad([nn.Parameter(torch.zeros(1))]), total=20)  # which has no momentum


@pytest.mark.parametrize("config", [{**COSINE, "min_lr": 0.5}, ONE_CYCLE, STEP, CONSTANT])
def test_groups_of_other_rates_keep_their_share(config: dict[str, Any]) -> None:
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 0.1)]
    optimizer = SGD(groups, lr=1.0, momentum=0.9)
    scheduler = schedule(config, optimizer, total=20)
    for _ in range(20):
        assert optimizer.param_groups[1]["lr"] == pytest.approx(0.1 * optimizer.param_groups[0]["lr"])
        values(optimizer, scheduler, 1)


def resume(config: dict[str, Any], done: int, before: int, after: int) -> tuple[Optimizer, LRScheduler]:
    """The schedule after `done` steps of a run of `before` steps, resumed by a run of `after` steps."""
    first, optimizer = sgd(), sgd()
    shorter, scheduler = schedule(config, first, before), schedule(config, optimizer, after)
    values(first, shorter, done)
    state = shorter.state_dict()
    forget_length(state)
    optimizer.load_state_dict(first.state_dict())
    scheduler.load_state_dict(state)
    return optimizer, scheduler


@pytest.mark.parametrize("after", [16, 40])
@pytest.mark.parametrize("config", [COSINE, ONE_CYCLE, STEP, CONSTANT])
def test_resumed_schedule_continues_the_curve_of_a_run_of_that_length(config: dict[str, Any], after: int) -> None:
    optimizer = sgd()
    whole = values(optimizer, schedule(config, optimizer, after), after)
    for done in (1, 5, 9, 15):
        resumed = values(*resume(config, done, before=16, after=after), steps=after - done)
        # the first step was already set when the shorter run stopped
        assert resumed[1:] == pytest.approx(whole[done + 1 :], rel=1e-12)
        assert after != 16 or resumed[0] == whole[done]


class Clock(Timer):
    """Time goes by in steps: each takes a second of a run that has `seconds`."""

    def __init__(self, seconds: int) -> None:
        super().__init__({"seconds": seconds})
        self.steps = 0

    def time_elapsed(self, stage: str = "train") -> float:
        return self.steps

    def on_before_zero_grad(self, *arguments: Any) -> None:
        self.steps += 1


@pytest.mark.parametrize(("warmup", "top"), [(0, 0), (100, 0.3)])
def test_cosine_ends_with_the_time(warmup: int, top: float, tmp_path: Path) -> None:
    """The warm-up is a part of it."""
    rates: list[float] = []
    record = LambdaCallback(on_before_optimizer_step=lambda _, __, used: rates.append(used.param_groups[0]["lr"]))
    scheduler = {**COSINE, "warmup_epochs": warmup}
    model = runs.make_classifier(scheduler=scheduler, optimizer={"_target_": "torch.optim.SGD", "lr": 1.0})
    runs.trainer(tmp_path, [record, Clock(100)], max_epochs=-1).fit(model, runs.loader())
    assert rates.index(max(rates)) / len(rates) == pytest.approx(top, abs=0.05)
    assert rates[-1] == pytest.approx(0.0, abs=0.01)


def test_time_before_a_resume_counts(tmp_path: Path) -> None:
    trainer = runs.trainer(tmp_path, max_epochs=-1, max_time="00:00:01:40")
    [timer] = [callback for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
    timer.load_state_dict({"time_elapsed": {"train": 75.0}})
    trainer.strategy.connect(runs.make_classifier())
    trainer.fit_loop._data_source.instance = runs.loader()
    length = run_length(trainer)
    assert length.total_steps == math.inf
    assert length.time_share is not None
    assert length.time_share() == 0.75


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**COSINE, "warmup_epochs": -1}, "warmup_epochs=-1"),
        ({**ONE_CYCLE, "pct_start": 3}, "pct_start"),
        ({"_target_": f"{SCHEDULES}.plateau"}, "monitor"),
    ],
)
def test_bad_schedules_are_wrong_input(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refusal:
        schedule(config, sgd(), total=10)
    assert message in str(refusal.value)
    assert "scheduler." in str(refusal.value)


@pytest.mark.parametrize("config", [COSINE, ONE_CYCLE])
def test_endless_run_needs_an_end(config: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"trainer\.max_epochs="):
        schedule(config, sgd(), math.inf)
