"""Training, from the command line to the run directory."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from classifier.training import ImageClassifier
from tests.verbs.command import BARE, QUICK, REPOSITORY, metrics, numbers, refuse, rows, runs, succeed
from tests.verbs.conftest import TRAINED


def test_run_directory(trained: Path) -> None:
    assert trained.parent.name == "folder_cnn"
    names = {path.name for path in trained.iterdir() if not path.name.startswith(("events.out", "git_"))}
    assert names >= {"checkpoints", "config.yaml", "metrics.csv", "metrics.json", "split.csv", "starts.jsonl"}
    assert {path.name for path in (trained / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    text = (trained / "config.yaml").read_text()
    assert yaml.safe_load(text)["trainer"]["max_epochs"] == 4
    assert "${" not in text


def test_metrics_files(trained: Path) -> None:
    found = metrics(trained)
    expected = {f"{split}/{name}" for split in ("train", "val", "test") for name in ("loss", "acc")}
    assert set(found) == expected | {"val/f1", "test/f1", "epoch", "best_epoch", "global_step", "fit_seconds"}
    assert found["epoch"] == 4
    assert found["global_step"] == 4 * 5  # 40 images in batches of 8
    table = rows(trained / "metrics.csv")
    assert [row["epoch"] for row in table[:4]] == ["1", "2", "3", "4"]
    assert [row["step"] for row in table[:4]] == ["5", "10", "15", "20"]
    assert all(row["train/loss"] and row["val/acc"] and row["train/images_per_second"] for row in table[:4])
    best = table[int(found["best_epoch"]) - 1]  # of training too, not of the epoch before
    for name in ("train/loss", "train/acc", "val/loss", "val/acc"):
        assert float(best[name]) == pytest.approx(found[name], rel=1e-4)


def test_it_learns(trained: Path) -> None:
    assert metrics(trained)["test/acc"] > 0.9


def test_a_checkpoint_is_plain_data(trained: Path) -> None:
    def require_plain(value: object) -> None:
        assert isinstance(value, dict | list | tuple | str | int | float | torch.Tensor | None), type(value)
        for inner in (*value.keys(), *value.values()) if isinstance(value, dict) else ():
            require_plain(inner)
        for inner in value if isinstance(value, list | tuple) else ():
            require_plain(inner)

    path = trained / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    require_plain(checkpoint)
    assert checkpoint["hyper_parameters"]["classes"] == ["blue", "green", "red"]
    assert checkpoint["run"]["config"]["data"]["batch_size"] == 8
    assert len(checkpoint["run"]["data_fingerprint"]) == 64
    assert checkpoint["run"]["versions"]["torch"] == torch.__version__
    assert "val/acc" in checkpoint["run"]["metrics"]
    model = ImageClassifier.load_from_checkpoint(trained)  # its best
    assert model.state_dict().keys() == checkpoint["state_dict"].keys()
    assert model.classes == ("blue", "green", "red")
    assert model(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, 3)


@pytest.mark.slow
def test_seeds_and_workers(workplace: Path, trained: Path, tmp_path: Path) -> None:
    """The same seed gives the same numbers, whoever reads; another one other weights and the same split."""
    several = ("seed=0,1", "data.num_workers=2", f"data.root={workplace / 'photos'}", "logger.tensorboard=null")
    succeed("train", "-m", *TRAINED, *several, cwd=tmp_path)
    (sweep,) = (tmp_path / "logs" / "folder_cnn").iterdir()
    assert re.fullmatch(r"multirun_\d{4}(-\d\d){2}_\d\d(-\d\d){2}-\d{6}", sweep.name)  # one a sweep
    assert runs(tmp_path) == [sweep / "0", sweep / "1"]
    assert numbers(sweep / "0") == numbers(trained)
    assert metrics(sweep / "1")["train/loss"] != metrics(trained)["train/loss"]
    assert (sweep / "1" / "split.csv").read_text() == (trained / "split.csv").read_text()


@pytest.mark.parametrize(
    ("pattern", "more"),
    [(r"(\d)\.", ("data.fold=0,1,2", "data.num_folds=3", "-m")), (r"^([^_]+)\.jpg", ()), (r"[0-9]\.", ())],
)
def test_groups_and_folds(pattern: str, more: tuple[str, ...], folder: Path, tmp_path: Path) -> None:
    """No group is in two parts; over all folds, each image is tested once."""
    short = (f"data.root={folder}", "data.batch_size=4", "trainer.limit_train_batches=1")
    succeed("train", *BARE, *short, f"data.group_pattern={pattern}", *more, cwd=tmp_path)
    tested: list[str] = []
    for run_dir in runs(tmp_path):
        sides: dict[str, set[str]] = {}
        for row in rows(run_dir / "split.csv"):
            found = re.search(pattern, row["path"])
            assert found is not None
            sides.setdefault(found[found.re.groups], set()).add(row["split"])
            tested += [row["path"]] * (row["split"] == "test")
        assert all("test" not in side or side == {"test"} for side in sides.values()), sides
        assert {"test"} in sides.values()
    assert len(tested) == len(set(tested))
    assert (len(tested) == 60) == ("-m" in more)


def test_the_default_experiment_is_for_its_own_data(folder: Path, tmp_path: Path) -> None:
    succeed("train", "data=folder", f"data.root={folder}", "model=simple_cnn_64", *BARE[2:], cwd=tmp_path)
    (run_dir,) = runs(tmp_path / "logs")
    assert run_dir.parent.name == "folder"
    assert yaml.safe_load((run_dir / "config.yaml").read_text())["optimizer"]["lr"] == 0.001


def test_the_loss_of_a_step_is_shown_at_that_step(folder: Path, tmp_path: Path) -> None:
    """In epochs of one batch, the loss of the step is that of the epoch."""
    one_batch = (f"data.root={folder}", "trainer.max_epochs=3", "data.batch_size=32", "data.drop_last=true")
    shown = ("trainer.log_every_n_steps=1", "callbacks.first_batch=null", "callbacks.confusion_matrix=null")
    succeed("train", *BARE[:2], *QUICK, *one_batch, *shown, "test=false", "run_dir=run", cwd=tmp_path)
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    steps = [(event.step, event.value) for event in events.Scalars("train/loss_step")]
    assert [step for step, _ in steps] == [1, 2, 3]
    epochs = [event.value for event in events.Scalars("train/loss")]
    assert [value for _, value in steps] == pytest.approx(epochs, rel=1e-5)
    assert "test/acc" not in metrics(tmp_path / "run")


@pytest.mark.parametrize("name", ["fast_dev_run", "overfit", "profiler"])
def test_debug_presets(name: str, folder: Path, tmp_path: Path) -> None:
    succeed("train", *BARE, f"data.root={folder}", f"debug={name}", "data.batch_size=4", cwd=tmp_path)
    assert bool(runs(tmp_path)) == (name != "fast_dev_run")


def test_help_does_without_torch(tmp_path: Path) -> None:
    script = str(REPOSITORY / "src" / "train.py")
    command = [sys.executable, "-X", "importtime", script, "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "trainer:" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "hydra" in imported
    assert not imported & {"torch", "pandas", "matplotlib"}
    assert list(tmp_path.iterdir()) == []


def test_several_nodes_need_a_launcher(folder: Path, tmp_path: Path) -> None:
    message = refuse("train", *BARE, "trainer=ddp_sim", "trainer.num_nodes=2", f"data.root={folder}", cwd=tmp_path)
    assert "trainer.num_nodes=2" in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
@pytest.mark.parametrize(
    ("typed", "use"),
    [
        ("trainer.sync_batchnorm=true", "trainer.sync_batchnorm=false"),
        ("trainer=fsdp", "trainer=cpu"),
        ("trainer.strategy=sharded trainer.precision=16-mixed", "trainer.precision=bf16-mixed"),
    ],
)
def test_what_needs_a_gpu(typed: str, use: str, folder: Path, tmp_path: Path) -> None:
    arguments = ("trainer=ddp_sim", "speed.channels_last=false", *typed.split(), f"data.root={folder}")
    assert use in refuse("train", *BARE, *arguments, cwd=tmp_path)


@pytest.mark.slow
def test_the_default_reaches_its_accuracy(tmp_path: Path) -> None:
    """As `make train`: 0.989 to 0.992 over four seeds."""
    succeed("train", "trainer=cpu", "run_dir=run", cwd=tmp_path)
    assert metrics(tmp_path / "run")["test/acc"] >= 0.985
