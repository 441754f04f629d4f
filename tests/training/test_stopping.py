"""A run that is stopped at any moment resumes to the bits of one that was not."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from classifier.data import ClassificationDataModule, ImageFolderDataModule
from classifier.errors import UserError
from classifier.training.averaging import WeightAverage
from classifier.training.stopping import LastCheckpoint, RunEarlyStopping, ending_on_sigterm
from tests.training import runs

DATA_SETTINGS: dict[str, Any] = {"image_size": 8, "channels": 1, "num_workers": 0, "batch_size": 8,
                                 "val_fraction": 0.3, "test_fraction": 0.0}  # fmt: skip
EPOCHS = 3
STEPS = 6  # an epoch: 42 images in batches of 8; 18 images are validated in 3
RHYTHMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated": {"accumulate_grad_batches": 4},
    "validated within": {"val_check_interval": 3},
    "both": {"accumulate_grad_batches": 2, "val_check_interval": 3},
}
MOMENTS = {"on_train_batch_start": (1, 8), "on_before_zero_grad": (3,), "on_train_batch_end": (3, 6),
           "on_validation_start": (1,), "on_validation_batch_end": (1, 2, 6), "on_validation_end": (2,),
           "on_train_epoch_end": (2, 3), "on_train_end": (1,)}  # fmt: skip


class At(pl.Callback):
    """Notes epoch and step at each call of a hook, and does something at the n-th."""

    def __init__(self, hook: str, number: int = 0, do: Callable[[], None] = lambda: None) -> None:
        self.number, self.do = number, do
        self.seen: list[tuple[int, int]] = []
        setattr(self, hook, self.called)

    def called(self, trainer: pl.Trainer, *arguments: Any, **keywords: Any) -> None:
        self.seen.append((trainer.current_epoch, trainer.global_step))
        if len(self.seen) == self.number:
            self.do()


def sigterm() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """As the verb `train` runs; and each test leaves the handlers as they were."""
    with ending_on_sigterm():
        before = [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)]
        yield
        assert [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)] == before


def fit(run_dir: Path, data: Path | ClassificationDataModule, *more: pl.Callback, **settings: Any) -> pl.Trainer:
    """Train, or resume, with a checkpoint at each epoch's end."""
    last = run_dir / "checkpoints" / "last.ckpt"
    callbacks = [*more]
    if not any(isinstance(callback, LastCheckpoint) for callback in more):
        callbacks.append(LastCheckpoint(dirpath=last.parent))
    trainer = runs.trainer(run_dir, callbacks, **{"max_epochs": EPOCHS, **settings})
    datamodule = ImageFolderDataModule(data, **DATA_SETTINGS) if isinstance(data, Path) else data
    path = last if last.exists() else None
    trainer.fit(runs.make_classifier(), datamodule=datamodule, ckpt_path=path, weights_only=True)
    return trainer


def state(run_dir: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    return loaded


def assert_same(first: Path, second: Path) -> None:
    """Weights, optimiser, schedule, counts and place, bit by bit."""
    one, two = state(first), state(second)
    [optimizer], [other] = one["optimizer_states"], two["optimizer_states"]
    assert optimizer.pop("param_groups") == other.pop("param_groups")
    keys = ("state_dict", "optimizer_states", "lr_schedulers", "train_counts", "global_step", "epoch")
    torch.testing.assert_close({key: one[key] for key in keys}, {key: two[key] for key in keys}, rtol=0, atol=0)
    assert one["ImageFolderDataModule"] == two["ImageFolderDataModule"]


@pytest.fixture(scope="module", params=RHYTHMS)
def whole(request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A rhythm, and a run in it that was not interrupted."""
    run_dir = tmp_path_factory.mktemp("whole")
    fit(run_dir, folder, **RHYTHMS[request.param])
    return request.param, run_dir


@pytest.mark.parametrize(("hook", "number"), [(hook, number) for hook, found in MOMENTS.items() for number in found])
def test_sigterm_at_any_moment(hook: str, number: int, whole: tuple[str, Path], folder: Path, tmp_path: Path) -> None:
    rhythm, uninterrupted = whole
    with pytest.raises(SystemExit) as stop:
        fit(tmp_path, folder, At(hook, number, sigterm), **RHYTHMS[rhythm])
    assert stop.value.code == 143
    assert state(tmp_path)["global_step"] > 0
    trainer = fit(tmp_path, folder, **RHYTHMS[rhythm])
    assert trainer.global_step == state(uninterrupted)["global_step"]
    assert_same(tmp_path, uninterrupted)


def test_sigterm_where_nothing_is_lost_stops_at_once(folder: Path, tmp_path: Path) -> None:
    """Before the first step, and in a test."""
    for hook in ("on_sanity_check_start", "on_train_start"):
        with pytest.raises(SystemExit) as stop:
            fit(tmp_path, folder, At(hook, 1, sigterm), num_sanity_val_steps=1)
        assert (stop.value.code, list(tmp_path.rglob("*.ckpt"))) == (143, [])
    last = LastCheckpoint(dirpath=tmp_path)
    trainer = runs.trainer(tmp_path, [last, At("on_test_batch_end", 1, sigterm)], max_epochs=1)
    trainer.fit(runs.make_classifier(), runs.loader())
    with pytest.raises(SystemExit) as stop:
        trainer.test(runs.make_classifier(), runs.loader(), verbose=False)
    assert stop.value.code == 143


@pytest.mark.parametrize("every", [STEPS, 3])
def test_a_signal_ends_the_step_or_the_batch_of_a_validation(every: int, folder: Path, tmp_path: Path) -> None:
    """A validation that has not ended is repeated from its first batch, and no other; none is left out."""
    ended, batches = At("on_validation_end"), At("on_validation_batch_end")
    steps: list[int] = []
    more: dict[str, Any] = {"max_epochs": 8, "val_check_interval": every}
    for hook in ("on_train_batch_start", "on_validation_start", "on_validation_batch_end", "on_validation_end"):
        with pytest.raises(SystemExit):
            fit(tmp_path, folder, At(hook, 2, sigterm), ended, batches, **more)
        steps.append(state(tmp_path)["global_step"])
    fit(tmp_path, folder, ended, batches, **more)
    assert steps == [2, 2 * every, 2 * every, 3 * every]
    assert [step for _, step in ended.seen] == [*range(every, 8 * STEPS + 1, every)]
    assert len(batches.seen) == 1 + 2 + 3 * len(ended.seen)


@pytest.mark.parametrize("settings", [{"max_steps": STEPS}, {}])
def test_the_last_validation_of_a_limited_run_is_finished(settings: Any, folder: Path, tmp_path: Path) -> None:
    """The resume of a run that has reached its limit would leave it out."""

    def end(trainer: pl.Trainer, *_: Any) -> None:
        trainer.should_stop = not settings

    limit, validated = pl.callbacks.LambdaCallback(on_train_batch_end=end), At("on_validation_end")
    with pytest.raises(SystemExit):
        fit(tmp_path, folder, At("on_validation_batch_end", 1, sigterm), limit, validated, **settings)
    assert len(validated.seen) == 1


def test_sigterm_while_averaged_weights_are_validated(folder: Path, tmp_path: Path) -> None:
    fit(tmp_path / "whole", folder, WeightAverage(0.9))
    with pytest.raises(SystemExit):
        fit(tmp_path / "run", folder, WeightAverage(0.9), At("on_validation_batch_end", 2, sigterm))
    assert state(tmp_path / "run")["global_step"] == STEPS
    fit(tmp_path / "run", folder, WeightAverage(0.9))
    assert_same(tmp_path / "run", tmp_path / "whole")
    averages = [state(tmp_path / name)["training_weights"] for name in ("run", "whole")]
    torch.testing.assert_close(*averages, rtol=0, atol=0)


def test_a_second_ctrl_c_stops_at_once(folder: Path, tmp_path: Path) -> None:
    last = LastCheckpoint(dirpath=tmp_path / "checkpoints")

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # the same one, received twice
        last.signals._since -= 2
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(SystemExit) as stop:
        fit(tmp_path, folder, At("on_train_batch_start", 2, twice), last)
    assert stop.value.code == 1  # Lightning's, which `train` makes 130
    assert not list(tmp_path.rglob("*.ckpt"))


class BrokenData(ImageFolderDataModule):
    """The disk goes away while the n-th training batch is read."""

    def __init__(self, folder: Path, at: int) -> None:
        super().__init__(folder, **DATA_SETTINGS)
        self.at = at

    def train_dataloader(self) -> Any:
        made = super().train_dataloader()
        collate, calls = made.collate_fn, iter(range(1, 100))

        def failing(items: list[Any]) -> Any:
            if next(calls) == self.at:
                raise OSError("gone")
            return collate(items)

        made.collate_fn = failing
        return made


@pytest.mark.parametrize(("at", "steps"), [(3, {"plain": 2, "both": 1}), (9, {"plain": 8, "accumulated": 2})])
def test_an_error_between_two_steps_loses_none(
    at: int, steps: dict[str, int], whole: tuple[str, Path], folder: Path, tmp_path: Path
) -> None:
    rhythm, uninterrupted = whole
    with pytest.raises(OSError, match="gone"):
        fit(tmp_path, BrokenData(folder, at), **RHYTHMS[rhythm])
    if rhythm in steps:
        assert state(tmp_path)["global_step"] == steps[rhythm]
    fit(tmp_path, folder, **RHYTHMS[rhythm])
    assert_same(tmp_path, uninterrupted)


def error() -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_before_zero_grad", "on_validation_batch_end"])
def test_an_error_within_a_step_leaves_the_checkpoint_before(hook: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path, folder, At(hook, 5 if "validation" in hook else 9, error))
    assert state(tmp_path)["global_step"] == STEPS


@pytest.mark.parametrize(
    ("when", "settings", "expected"),
    [
        ({}, {}, [6, 12]),
        ({"every_n_train_steps": 4}, {}, [4, 6, 8, 12]),
        ({"every_n_minutes": 1e-9}, {}, [*range(1, 13)]),
        ({"every_n_minutes": 60}, {}, [6, 12]),
        ({"every_n_train_steps": 1}, {"accumulate_grad_batches": 4}, [1, 2, 3, 4]),
        ({"every_n_train_steps": 5}, {"val_check_interval": 3}, [3, 5, 6, 9, 10, 12]),
    ],
)
def test_when_the_last_is_written(when: Any, settings: Any, expected: list[int], folder: Path, tmp_path: Path) -> None:
    saved = At("on_save_checkpoint")
    fit(tmp_path, folder, LastCheckpoint(dirpath=tmp_path / "checkpoints", **when), saved, max_epochs=2, **settings)
    assert [step for _, step in saved.seen] == expected
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize(("key", "value"), [("every_n_train_steps", 0), ("every_n_minutes", "five")])
def test_wrong_rhythm_is_refused(key: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"callbacks.last.{key}={value} "):
        LastCheckpoint(dirpath=tmp_path, **{key: value})


class Score(pl.Callback):
    """A validation score of each epoch: it falls, or is no number from an epoch on."""

    def __init__(self, broken_from: int) -> None:
        self.broken_from = broken_from

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        broken = trainer.current_epoch >= self.broken_from
        pl_module.log("score", torch.tensor(float("nan") if broken else -float(trainer.current_epoch)))


@pytest.mark.parametrize(("broken_from", "epochs"), [(100, 3), (1, 2)])
def test_early_stopping_is_final_unless_there_is_more_patience(
    broken_from: int, epochs: int, folder: Path, tmp_path: Path
) -> None:
    def steps(patience: int) -> int:
        stopping = RunEarlyStopping(monitor="score", mode="max", patience=patience)
        return fit(tmp_path, folder, Score(broken_from), stopping, max_epochs=8).global_step

    longer = 5 if broken_from == 100 else epochs  # no patience mends what is no number
    done = [steps(patience) // STEPS for patience in (2, 2, 4, 4)]
    assert done == [epochs, epochs, longer, longer]


def test_early_stopping_without_a_validation_waits(tmp_path: Path) -> None:
    trainer = runs.trainer(tmp_path, [RunEarlyStopping(monitor="val/loss", patience=1)], max_epochs=2)
    trainer.fit(runs.make_classifier(), runs.loader())
    assert trainer.global_step == 6
