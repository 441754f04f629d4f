import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LambdaCallback, Timer
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from classifier.errors import UserError
from classifier.instantiate import build
from classifier.training.schedules import RunLength, forget_length, run_length
from classifier.training.stopping import LastCheckpoint
from tests.training import runs

SCHEDULES = "classifier.training.schedules"
COSINE = {"_target_": f"{SCHEDULES}.cosine", "warmup_epochs": 1}
ONE_CYCLE = {"_target_": f"{SCHEDULES}.one_cycle"}
STEP = {"_target_": f"{SCHEDULES}.step", "every_epochs": 2, "gamma": 0.5}
CONSTANT = {"_target_": f"{SCHEDULES}.constant", "warmup_epochs": 1}
ENDLESS = math.inf


def sgd(lr: float = 1.0) -> Optimizer:
    return SGD([nn.Parameter(torch.zeros(1))], lr=lr, momentum=0.9)


def schedule(config: dict[str, Any], optimizer: Optimizer, total: float, per_epoch: int = 4) -> LRScheduler:
    scheduler: LRScheduler = build(config, "scheduler", optimizer, RunLength(total, per_epoch))
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
        # 4 steps of warm-up, then half a cosine over the other 16
        (COSINE, [0.2, 0.4, 0.6, 0.8, *((1 + math.cos(math.pi * step / 16)) / 2 for step in range(16)), 0.0]),
        ({**COSINE, "warmup_epochs": 0.5}, [1 / 3, 2 / 3, 1.0, (1 + math.cos(math.pi / 18)) / 2]),
        ({**COSINE, "warmup_epochs": 0, "min_lr": 0.5}, [1.0, 0.5 + 0.25 * (1 + math.cos(math.pi / 20))]),
        # three tenths of the run, as one epoch of the 5 would be more
        ({**COSINE, "warmup_epochs": 99}, [*(step / 7 for step in range(1, 7)), 1.0]),
        (STEP, [1.0] * 8 + [0.5] * 8 + [0.25] * 2),
        ({**STEP, "every_epochs": 0.5}, [1.0, 1.0, 0.5, 0.5, 0.25]),
        ({**STEP, "warmup_epochs": 1}, [0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0, 1.0, 0.5]),
        (CONSTANT, [0.2, 0.4, 0.6, 0.8, *[1.0] * 10]),
    ],
)
def test_curves(config: dict[str, Any], expected: list[float]) -> None:
    optimizer = sgd()
    scheduler = schedule(config, optimizer, total=20)
    assert values(optimizer, scheduler, len(expected)) == pytest.approx(expected, abs=1e-12)


def test_one_cycle_equals_torch() -> None:
    arguments: dict[str, Any] = {"pct_start": 0.4, "div_factor": 10.0, "final_div_factor": 100.0}
    for kind, key in ((SGD, "lr"), (SGD, "momentum"), (torch.optim.Adagrad, "lr")):  # the last one has no momentum
        momentum: dict[str, Any] = {"momentum": 0.9} if kind is SGD else {}
        ours, theirs = (kind([nn.Parameter(torch.zeros(1))], lr=0.3, **momentum) for _ in range(2))
        reference = OneCycleLR(theirs, 0.3, 21, cycle_momentum=kind is SGD, **arguments)
        expected = values(theirs, reference, 20, key)
        found = values(ours, schedule({**ONE_CYCLE, **arguments}, ours, total=20), 20, key)
        assert found == pytest.approx(expected, rel=1e-12)
        assert len(set(expected)) > 10


def test_groups_of_other_rates_keep_their_share() -> None:
    parameters: list[dict[str, Any]] = [{"params": [nn.Parameter(torch.zeros(1))]} for _ in range(2)]
    parameters[1]["lr"] = 0.1
    for config in ({**COSINE, "min_lr": 0.5}, ONE_CYCLE, STEP, CONSTANT):
        optimizer = SGD(copy.deepcopy(parameters), lr=1.0, momentum=0.9)
        scheduler = schedule(config, optimizer, total=20)
        for _ in range(20):
            first, second = (group["lr"] for group in optimizer.param_groups)
            assert second == pytest.approx(0.1 * first)
            optimizer.step()
            scheduler.step()


def resume(config: dict[str, Any], done: int, before: int, after: int) -> tuple[Optimizer, LRScheduler]:
    """The schedule after `done` steps of a run of `before` steps, resumed by a run of `after` steps."""
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


def fit(run_dir: Path, config: dict[str, Any], *callbacks: pl.Callback, **settings: Any) -> list[float]:
    """The rates of a run over 10 batches an epoch."""
    rates: list[float] = []
    record = LambdaCallback(
        on_before_optimizer_step=lambda trainer, model, optimizer: rates.append(optimizer.param_groups[0]["lr"])
    )
    ckpt_path = settings.pop("ckpt_path", None)
    model = runs.make_classifier(scheduler=config, optimizer={"_target_": "torch.optim.SGD", "lr": 1.0})
    trainer = runs.trainer(run_dir, [record, *callbacks], **settings)
    trainer.fit(model, runs.loader(count=40), runs.loader(), ckpt_path=ckpt_path, weights_only=True)
    return rates


def cosine_curve(total: int, warmup: int) -> list[float]:
    """The closed formula."""
    ramp = [(step + 1) / (warmup + 1) for step in range(warmup)]
    return ramp + [(1 + math.cos(math.pi * step / (total - warmup))) / 2 for step in range(total - warmup)]


@pytest.mark.parametrize("every", [1, 3])
def test_resumed_run_has_the_rates_of_one_that_was_not_stopped(every: int, tmp_path: Path) -> None:
    keep = LastCheckpoint(dirpath=tmp_path, filename="step={step}", every_n_train_steps=1)
    settings: dict[str, Any] = {"max_epochs": 2, "accumulate_grad_batches": every}
    per_epoch = math.ceil(10 / every)
    whole = fit(tmp_path, COSINE, keep, **settings)
    assert whole == pytest.approx(cosine_curve(2 * per_epoch, int(0.3 * 2 * per_epoch)), abs=1e-12)
    longer = cosine_curve(4 * per_epoch, per_epoch)
    # in mid-epoch the plain loader of this test starts over, and so the run is longer
    for step in (per_epoch - 1, per_epoch, per_epoch + 1):
        checkpoint = tmp_path / f"step={step}.ckpt"
        resumed = fit(tmp_path, COSINE, ckpt_path=checkpoint, **settings)
        assert resumed[: len(whole) - step] == whole[step:]
        resumed = fit(tmp_path, COSINE, ckpt_path=checkpoint, **{**settings, "max_epochs": 4})
        assert resumed[1 : len(longer) - step] == pytest.approx(longer[step + 1 :], abs=1e-12)


class Clock(Timer):
    """Time goes by in steps: each takes a second of a run that has `seconds`."""

    def __init__(self, seconds: int) -> None:
        super().__init__({"seconds": seconds})
        self.steps = 0

    def time_elapsed(self, stage: str = "train") -> float:
        return self.steps

    def on_before_zero_grad(self, *arguments: Any) -> None:
        self.steps += 1


@pytest.mark.parametrize("max_epochs", [-1, 1000])
def test_cosine_ends_with_the_time(max_epochs: int, tmp_path: Path) -> None:
    rates = fit(tmp_path, {**COSINE, "warmup_epochs": 0}, Clock(50), max_epochs=max_epochs)
    assert len(rates) in (49, 50)
    assert rates == sorted(rates, reverse=True)
    assert [rates[0], rates[25], rates[-1]] == pytest.approx([1.0, 0.5, 0.0], abs=0.05)


def test_cosine_ends_with_what_comes_first(tmp_path: Path) -> None:
    rates = fit(tmp_path, COSINE, Clock(100_000), max_epochs=4)
    assert rates == pytest.approx(cosine_curve(40, 10), abs=1e-3)


def test_warm_up_is_a_part_of_the_time(tmp_path: Path) -> None:
    rates = fit(tmp_path, {**COSINE, "warmup_epochs": 100}, Clock(100), max_epochs=-1)
    top = rates.index(max(rates))
    assert 0.2 < top / len(rates) < 0.32
    assert rates[-1] < 0.01


def test_groups_share_one_moment_of_the_time() -> None:
    times = iter(range(1000))
    optimizer = SGD([{"params": [nn.Parameter(torch.zeros(1))]} for _ in range(5)], lr=1.0)
    build({**COSINE, "warmup_epochs": 0}, "scheduler", optimizer, RunLength(ENDLESS, 4, lambda: next(times) / 1000))
    assert len({group["lr"] for group in optimizer.param_groups}) == 1


def test_time_before_a_resume_counts(tmp_path: Path) -> None:
    trainer = runs.trainer(tmp_path, max_epochs=-1, max_time="00:00:01:40")
    [timer] = [callback for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
    timer.load_state_dict({"time_elapsed": {"train": 75.0}})
    trainer.strategy.connect(runs.make_classifier())
    trainer.fit_loop._data_source.instance = runs.loader()
    length = run_length(trainer)
    assert length.total_steps == ENDLESS
    assert length.time_share is not None
    assert length.time_share() == 0.75


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_target_": f"{SCHEDULES}.cosin"}, "cosine"),
        ({**COSINE, "warmup": 1}, "warmup"),
        ({**COSINE, "warmup_epochs": -1}, "warmup_epochs=-1"),
        ({**ONE_CYCLE, "pct_start": 3}, "pct_start"),
        ({**STEP, "every_epochs": "a"}, "scheduler"),
        ({"_target_": f"{SCHEDULES}.plateau"}, "monitor"),
        ({"_target_": f"{SCHEDULES}.plateau", "monitor": "val/loss", "mode": "up"}, "up"),
    ],
)
def test_bad_schedules_are_wrong_input(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refusal:
        build(config, "scheduler", sgd(), RunLength(10, 2))
    assert message in str(refusal.value)
    assert "scheduler." in str(refusal.value)


@pytest.mark.parametrize("config", [COSINE, ONE_CYCLE])
def test_endless_run_needs_an_end(config: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"trainer\.max_epochs="):
        build(config, "scheduler", sgd(), RunLength(ENDLESS, 4))


@pytest.mark.parametrize("time_share", [None, lambda: 0.0])
def test_one_cycle_warns_of_a_limit_in_time(
    time_share: Callable[[], float] | None, caplog: pytest.LogCaptureFixture
) -> None:
    build(ONE_CYCLE, "scheduler", sgd(), RunLength(10, 2, time_share))
    assert ("max_time" in caplog.text) == (time_share is not None)
