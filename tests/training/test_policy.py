"""Which checkpoints there are, and that a run resumes from each to the bits of one that was never stopped."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from classifier.data import ClassificationDataModule
from classifier.data.modules import ImageFolderDataModule
from classifier.errors import UserError
from classifier.training.checkpoints import BestCheckpoint
from classifier.training.stopping import LastCheckpoint
from classifier.training.module import Batch
from tests.training import runs

DATA_SETTINGS: dict[str, Any] = {"image_size": 8, "channels": 1, "num_workers": 0, "batch_size": 8,
                                 "val_fraction": 0.3, "test_fraction": 0.0}  # fmt: skip
EPOCHS = 3
DATA = "ImageFolderDataModule"
STEPS = 6  # an epoch: 42 images in batches of 8; 18 images are validated in 3


class At(pl.Callback):
    """Does something at the n-th call of a hook."""

    def __init__(self, hook: str, number: int, do: Callable[[], None]) -> None:
        self.left = number
        self.do = do
        setattr(self, hook, self.called)

    def called(self, *arguments: Any, **keywords: Any) -> None:
        self.left -= 1
        if self.left == 0:
            self.do()


def sigterm() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def error() -> None:
    raise ZeroDivisionError


def data(folder: Path) -> ClassificationDataModule:
    return ImageFolderDataModule(folder, **DATA_SETTINGS)


def fit(run_dir: Path, folder: Path, *more: pl.Callback, **settings: Any) -> pl.Trainer:
    """Train, or go on, with a checkpoint at each epoch's end."""
    checkpoints = run_dir / "checkpoints"
    callbacks = [*more]
    if not any(isinstance(callback, LastCheckpoint) for callback in more):
        callbacks.append(LastCheckpoint(dirpath=checkpoints))
    trainer = runs.trainer(run_dir, callbacks, **{"max_epochs": EPOCHS, **settings})
    last = checkpoints / "last.ckpt"
    trainer.fit(
        runs.make_classifier(), datamodule=data(folder), ckpt_path=last if last.exists() else None, weights_only=True
    )
    return trainer


def state(run_dir: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    return loaded


def assert_same(first: Path, second: Path) -> None:
    """Weights, optimiser, schedule, counts and place, bit by bit."""
    one, two = state(first), state(second)
    [optimizer], [other] = one["optimizer_states"], two["optimizer_states"]
    assert optimizer.pop("param_groups") == other.pop("param_groups")
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "train_counts", "global_step", "epoch"):
        torch.testing.assert_close(one[key], two[key], rtol=0, atol=0)
    assert one[DATA] == two[DATA]


RHYTHMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated": {"accumulate_grad_batches": 4},
    "validated within": {"val_check_interval": 3},
    "both": {"accumulate_grad_batches": 2, "val_check_interval": 3},
}
MOMENTS = [
    ("on_train_start", 1),
    ("on_train_batch_start", 1),
    ("on_train_batch_start", 8),
    ("on_before_zero_grad", 3),
    ("on_train_batch_end", 3),
    ("on_train_batch_end", 6),
    ("on_validation_start", 1),
    ("on_validation_batch_end", 2),
    ("on_validation_end", 2),
    ("on_train_epoch_end", 2),
    ("on_train_epoch_end", 3),
]


@pytest.fixture(scope="module", params=RHYTHMS)
def whole(request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A rhythm, and a run in it that was not interrupted."""
    run_dir = tmp_path_factory.mktemp("whole")
    fit(run_dir, folder, **RHYTHMS[request.param])
    return request.param, run_dir


@pytest.mark.parametrize(("hook", "number"), MOMENTS)
def test_sigterm_at_any_moment(hook: str, number: int, whole: tuple[str, Path], folder: Path, tmp_path: Path) -> None:
    rhythm, uninterrupted = whole
    with pytest.raises(SystemExit) as stop:
        fit(tmp_path, folder, At(hook, number, sigterm), **RHYTHMS[rhythm])
    assert stop.value.code == 143
    saved = state(tmp_path)["global_step"]
    assert saved > 0
    trainer = fit(tmp_path, folder, **RHYTHMS[rhythm])
    assert trainer.global_step == state(uninterrupted)["global_step"]
    assert_same(tmp_path, uninterrupted)


def test_stops_within_the_step_and_within_the_validation(folder: Path, tmp_path: Path) -> None:
    steps: list[int] = []
    for number, (hook, count) in enumerate((("on_train_batch_start", 2), ("on_validation_batch_end", 1))):
        run_dir = tmp_path / str(number)
        validations: list[None] = []
        ended = At("on_validation_end", 1, lambda seen=validations: seen.append(None))  # type: ignore[misc]
        with pytest.raises(SystemExit):
            fit(run_dir, folder, At(hook, count, sigterm), ended)
        steps.append(state(run_dir)["global_step"])
        assert not validations
    assert steps == [2, STEPS]


def test_a_cut_validation_is_made_once(folder: Path, tmp_path: Path) -> None:
    """Also where the run stops again directly behind it."""
    for hook in ("on_validation_batch_end", "on_validation_end", "on_validation_start"):
        with pytest.raises(SystemExit):
            fit(tmp_path, folder, At(hook, 1, sigterm))
    ends: list[int] = []
    seen = At("on_validation_end", -1, error)
    seen.called = lambda *arguments: ends.append(arguments[0].current_epoch)  # type: ignore[method-assign]
    seen.on_validation_end = seen.called  # type: ignore[method-assign]
    fit(tmp_path, folder, seen)
    assert ends == [1, 2]


def test_a_second_ctrl_c_stops_at_once(folder: Path, tmp_path: Path) -> None:
    last = LastCheckpoint(dirpath=tmp_path / "checkpoints")

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # the same one, heard of twice
        last.signals._since -= 2
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(SystemExit) as stop:
        fit(tmp_path, folder, At("on_train_batch_start", 2, twice), last)
    assert stop.value.code == 1  # Lightning's, which `train` makes 130
    assert not list(tmp_path.rglob("*.ckpt"))


def test_handlers_are_put_back(folder: Path, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit):
        fit(tmp_path, folder, At("on_train_batch_end", 2, sigterm))
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


class BrokenData(ImageFolderDataModule):
    """The disk goes away while the n-th training batch is read."""

    def __init__(self, folder: Path, at: int) -> None:
        super().__init__(folder, **DATA_SETTINGS)
        self.at = at

    def train_dataloader(self) -> Any:
        made = super().train_dataloader()
        collate, calls = made.collate_fn, iter(range(1, 100))

        def failing(items: list[Any]) -> Batch:
            if next(calls) == self.at:
                raise OSError("gone")
            batch: Batch = collate(items)
            return batch

        made.collate_fn = failing
        return made


@pytest.mark.parametrize("rhythm", RHYTHMS)
@pytest.mark.parametrize("at", [3, 4, 9])
def test_an_error_between_two_steps_loses_none(at: int, rhythm: str, folder: Path, tmp_path: Path) -> None:
    settings = {"max_epochs": EPOCHS, **RHYTHMS[rhythm]}
    for name, broken in (("broken", BrokenData(folder, at)), ("whole", data(folder))):
        last = LastCheckpoint(dirpath=tmp_path / name / "checkpoints")
        trainer = runs.trainer(tmp_path / name, [last], **settings)
        if name == "whole":
            trainer.fit(runs.make_classifier(), datamodule=broken)
        else:
            with pytest.raises(OSError, match="gone"):
                trainer.fit(runs.make_classifier(), datamodule=broken)
    at_boundary = (at - 1) % STEPS % settings.get("accumulate_grad_batches", 1) == 0
    validated = (at - 1) % settings.get("val_check_interval", STEPS) == 0
    if at_boundary and not validated:
        assert state(tmp_path / "broken")["global_step"] == trainer.global_step * 0 + _steps(at - 1, settings)
    fit(tmp_path / "broken", folder, **RHYTHMS[rhythm])
    assert_same(tmp_path / "broken", tmp_path / "whole")


def _steps(batches: int, settings: dict[str, Any]) -> int:
    accumulated = settings.get("accumulate_grad_batches", 1)
    epochs, rest = divmod(batches, STEPS)
    return int(epochs * -(-STEPS // accumulated) + rest // accumulated)


@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_before_zero_grad", "on_validation_batch_end"])
def test_an_error_within_a_step_leaves_the_checkpoint_before(hook: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path, folder, At(hook, 9 if "train" in hook or "zero" in hook else 5, error))
    assert state(tmp_path)["global_step"] % STEPS == 0
    fit(tmp_path / "whole", folder)
    fit(tmp_path, folder)
    assert_same(tmp_path, tmp_path / "whole")


class Steps(pl.Callback):
    """Notes at which steps there is a new checkpoint."""

    def __init__(self) -> None:
        self.at: list[int] = []

    def on_save_checkpoint(self, trainer: pl.Trainer, *arguments: Any) -> None:
        self.at.append(trainer.global_step)


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
def test_when_the_last_is_written(
    when: dict[str, Any], settings: dict[str, Any], expected: list[int], folder: Path, tmp_path: Path
) -> None:
    steps = Steps()
    fit(tmp_path, folder, LastCheckpoint(dirpath=tmp_path / "checkpoints", **when), steps, max_epochs=2, **settings)
    assert steps.at == expected
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]


class Scores(pl.Callback):
    """Gives each epoch's validation a score."""

    def __init__(self, scores: list[float]) -> None:
        self.scores = scores

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.log("score", torch.tensor(self.scores[trainer.current_epoch]))


@pytest.mark.parametrize(
    ("arguments", "kept", "best"),
    [
        ({}, [], 18),
        ({"mode": "min"}, [], 12),
        ({"save_top_k": 2}, [6, 18], 18),
        ({"save_top_k": -1}, [6, 12, 18, 24], 18),
        ({"from_epoch": 4}, [], 24),
        ({"from_epoch": 5}, [], None),
    ],
)
def test_the_best(arguments: dict[str, Any], kept: list[int], best: int | None, folder: Path, tmp_path: Path) -> None:
    policy = BestCheckpoint(dirpath=tmp_path / "checkpoints", monitor="score", **{"mode": "max", **arguments})
    fit(tmp_path, folder, policy, Scores([0.5, 0.1, 0.9, 0.2]), max_epochs=4)
    found = {path.name: torch.load(path)["global_step"] for path in (tmp_path / "checkpoints").iterdir()}
    expected = {"last.ckpt": 24, **{f"best_step{step:06d}.ckpt": step for step in kept}}
    assert found == expected | ({"best.ckpt": best} if best is not None else {})


def test_the_best_of_several_where_links_are_unknown(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*arguments: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", no_links)
    policy = BestCheckpoint(dirpath=tmp_path / "checkpoints", monitor="score", mode="max", save_top_k=2)
    fit(tmp_path, folder, policy, Scores([0.5, 0.1, 0.9]))
    assert torch.load(tmp_path / "checkpoints" / "best.ckpt")["global_step"] == 18


def test_the_best_are_remembered_by_a_resume(folder: Path, tmp_path: Path) -> None:
    """And so is best.ckpt, when the run was stopped between the best and the last of an epoch."""
    scores = Scores([0.5, 0.7, 0.1, 0.6])

    def policy() -> BestCheckpoint:
        return BestCheckpoint(dirpath=tmp_path / "checkpoints", monitor="score", mode="max", save_top_k=2)

    fit(tmp_path, folder, policy(), scores, max_epochs=1)
    before = (tmp_path / "checkpoints" / "last.ckpt").read_bytes()
    fit(tmp_path, folder, policy(), scores, max_epochs=2)
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(before)
    fit(tmp_path, folder, policy(), scores, max_epochs=4)
    found = {path.name: torch.load(path)["global_step"] for path in (tmp_path / "checkpoints").glob("best*")}
    assert found == {"best.ckpt": 12, "best_step000012.ckpt": 12, "best_step000024.ckpt": 24}


@pytest.mark.parametrize(
    ("policy", "arguments", "message"),
    [
        (BestCheckpoint, {"monitor": "score", "mode": "max", "save_top_k": 0}, r"callbacks.best.save_top_k=0 must be"),
        (BestCheckpoint, {"monitor": "score", "mode": "max", "from_epoch": 0}, r"callbacks.best.from_epoch=0 must be"),
        (LastCheckpoint, {"every_n_train_steps": 0}, r"callbacks.last.every_n_train_steps=0 must be"),
        (LastCheckpoint, {"every_n_minutes": 0}, r"callbacks.last.every_n_minutes=0 must be a number above 0"),
        (LastCheckpoint, {"every_n_minutes": "five"}, r"callbacks.last.every_n_minutes=five must be a number"),
    ],
)
def test_wrong_policies(policy: Any, arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        policy(dirpath=tmp_path, **arguments)
