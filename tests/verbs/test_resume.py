"""Resuming a run: to the bits of one that was never stopped."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from classifier.training.averaging import TRAINING_WEIGHTS
from tests.verbs.command import BARE, metrics, numbers, refuse, rows, runs, succeed

# a checkpoint every 3 steps, kept by name, so that each can be resumed from
EVERY_THREE = ("callbacks.last.every_n_train_steps=3", '+callbacks.last.filename="step={step}"')
RUN = (*BARE, "trainer.max_epochs=2", "augment=standard")


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    content = torch.load(checkpoint, weights_only=True)
    training = {f"training {name}": value for name, value in content.get(TRAINING_WEIGHTS, {}).items()}
    return {**content["state_dict"], **training}


def trained(folder: Path, cwd: Path, *options: str) -> Path:
    """The directory of a whole run, with a checkpoint every three steps."""
    succeed("train", *RUN, *EVERY_THREE, *options, f"data.root={folder}", "run_dir=whole", cwd=cwd)
    return cwd / "whole"


@pytest.fixture(scope="module")
def uninterrupted(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 steps in 2 epochs."""
    return trained(folder, tmp_path_factory.mktemp("resume"))


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.stem.partition("=")[2])


def checkpoints(run_dir: Path) -> list[Path]:
    """In the order of their steps."""
    return sorted((run_dir / "checkpoints").glob("step*"), key=step_of)


def stopped_at(checkpoint: Path, target: Path) -> Path:
    """What a run looks like that was stopped just after it wrote this checkpoint."""
    run_dir = checkpoint.parents[1]
    shutil.copytree(run_dir, target, ignore=shutil.ignore_patterns("checkpoints", "metrics.*", "events*"))
    (target / "checkpoints").mkdir()
    shutil.copy(checkpoint, target / "checkpoints" / "last.ckpt")
    best = run_dir / "checkpoints" / "best.ckpt"
    if torch.load(best, weights_only=True)["global_step"] <= step_of(checkpoint):
        shutil.copy(best, target / "checkpoints")
    return target


def require_same_bits(run_dir: Path, whole: Path) -> None:
    end = checkpoints(whole)[-1]
    expected, found = weights(end), weights(run_dir / "checkpoints" / end.name)
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert numbers(run_dir) == numbers(whole)


@pytest.mark.parametrize(("step", "workers"), [(3, 2), (6, 0), (9, 2)])  # 6 is the end of an epoch
def test_same_bits(step: int, workers: int, uninterrupted: Path, tmp_path: Path) -> None:
    [checkpoint] = [path for path in checkpoints(uninterrupted) if step_of(path) == step]
    run_dir = stopped_at(checkpoint, tmp_path / "stopped")
    said = succeed("train", f"resume={run_dir}", f"data.num_workers={workers}", cwd=tmp_path).out
    assert re.findall(r"step (\d+),.* epoch (\d+)", said) == [(str(step), "1" if step <= 6 else "2")]
    require_same_bits(run_dir, uninterrupted)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("trainer.limit_train_batches=4",), marks=pytest.mark.slow),
        ("trainer.accumulate_grad_batches=2", "data.batch_size=4"),
        pytest.param(("trainer.val_check_interval=2", "ema=0.99"), marks=pytest.mark.slow),
        pytest.param(
            ("data.train_size=[[1,16],[2,24]]", "ema=0.9", "model=simple_cnn_64", "model.head=avg"),
            marks=pytest.mark.slow,
        ),
        ("data.sampler=balanced", "mix.mixup=0.4", "mix.cutmix=1.0", "loss.class_weight=balanced", "data.cache=disk"),
        pytest.param(("finetune=gradual", "finetune.head_epochs=1", "model.batch_norm=true"), marks=pytest.mark.slow),
    ],
    ids=lambda options: options[0],
)
def test_same_bits_with_other_rhythms(options: tuple[str, ...], folder: Path, tmp_path: Path) -> None:
    """Shorter epochs, validations in between, several batches a step, growing images, parts that are frozen."""
    whole = trained(folder, tmp_path, *options, "scheduler=step")
    first, *_, before_last, _ = checkpoints(whole)
    for checkpoint in (first, before_last):
        run_dir = stopped_at(checkpoint, tmp_path / checkpoint.stem)
        succeed("train", f"resume={run_dir}", cwd=tmp_path)
        require_same_bits(run_dir, whole)


def test_before_the_first_checkpoint(uninterrupted: Path, tmp_path: Path) -> None:
    run_dir = stopped_at(checkpoints(uninterrupted)[0], tmp_path / "stopped")
    (run_dir / "checkpoints" / "last.ckpt").unlink()
    succeed("train", f"resume={run_dir}", cwd=tmp_path)
    assert numbers(run_dir) == numbers(uninterrupted)


def test_fewer_epochs_than_are_done(uninterrupted: Path, tmp_path: Path) -> None:
    run_dir = stopped_at(checkpoints(uninterrupted)[-1], tmp_path / "stopped")
    message = refuse("train", f"resume={run_dir}", "trainer.max_epochs=1", cwd=tmp_path)
    assert "trainer.max_epochs=3" in message


@pytest.mark.parametrize(
    "scheduler",
    ["cosine", pytest.param("one_cycle", marks=pytest.mark.slow), pytest.param("plateau", marks=pytest.mark.slow)],
)
def test_a_finished_run_is_prolonged(scheduler: str, folder: Path, tmp_path: Path) -> None:
    """On another device, which by itself changes how long it trains."""
    succeed("train", *RUN, f"data.root={folder}", f"scheduler={scheduler}", cwd=tmp_path)
    (run_dir,) = runs(tmp_path / "logs")
    succeed("train", "resume=latest", "trainer.max_epochs=3", "trainer=cpu", cwd=tmp_path)
    assert runs(tmp_path / "logs") == [run_dir]
    assert metrics(run_dir)["epoch"] == 3
    assert sorted({row["epoch"] for row in rows(run_dir / "metrics.csv")}) == ["1", "2", "3"]


def test_the_best_is_kept_when_the_run_was_moved(folder: Path, tmp_path: Path) -> None:
    standing = ("optimizer.lr=0", "scheduler=constant", "trainer.max_epochs=1")
    succeed("train", *RUN, *standing, f"data.root={folder}", cwd=tmp_path)
    (run_dir,) = runs(tmp_path / "logs")
    moved = run_dir.rename(tmp_path / "moved")
    best = (moved / "checkpoints" / "best.ckpt").read_bytes()
    succeed("train", f"resume={moved}", "trainer.max_epochs=2", cwd=tmp_path)
    assert (moved / "checkpoints" / "best.ckpt").read_bytes() == best
    assert runs(tmp_path / "logs") == []
