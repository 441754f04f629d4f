"""resume=auto resumes the run that the same command has begun; and what may change when a run is resumed."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests import generate
from tests.verbs.command import QUICK, metrics, numbers, refuse, runs, succeed

RUN = ("experiment=folder_cnn", *QUICK, "model=simple_cnn", "data.root=photos")
CONTENTS = {"checkpoints", "config.yaml", "metrics.csv", "metrics.json", "split.csv", "starts.jsonl"}


@pytest.fixture(scope="module")
def done(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos/ and the run of one epoch that RUN makes of it; not to be changed."""
    cwd = tmp_path_factory.mktemp("done")
    generate.copy(folder, cwd / "photos")
    succeed("train", *RUN, "resume=auto", cwd=cwd)
    return cwd


@pytest.fixture
def cwd(done: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    return Path(shutil.copytree(done, tmp_path / "cwd"))


def only_run(cwd: Path) -> Path:
    (run_dir,) = runs(cwd / "logs")
    return run_dir


def starts(run_dir: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run_dir / "starts.jsonl").read_text().splitlines()]


def test_auto_begins_a_run(done: Path) -> None:
    names = {path.name for path in only_run(done).iterdir() if not path.name.startswith(("events.", "git_"))}
    assert names == CONTENTS
    assert starts(only_run(done))[0]["overrides"] == list(RUN)


def test_a_finished_run_is_left_alone(cwd: Path) -> None:
    """Also where its data is gone, or where what is typed does not prolong it."""
    before = {path: path.stat().st_mtime_ns for path in only_run(cwd).rglob("*")}
    (cwd / "photos").rename(cwd / "gone")
    for again in ((*RUN, "resume=auto"), ("resume=latest", "data.num_workers=1", "trainer=default")):
        said = succeed("train", *again, cwd=cwd).out
        assert str(only_run(cwd).relative_to(cwd)) in said
        assert "trainer.max_epochs=N" in said
    assert {path: path.stat().st_mtime_ns for path in only_run(cwd).rglob("*")} == before


def test_what_was_stopped_in_its_test_is_tested(cwd: Path) -> None:
    """By the same command in another order; another command begins another run."""
    expected = numbers(only_run(cwd))
    (only_run(cwd) / "metrics.json").unlink()
    succeed("train", "resume=auto", *reversed(RUN), cwd=cwd)
    assert numbers(only_run(cwd)) == expected
    (only_run(cwd) / "metrics.json").unlink()
    succeed("train", *RUN, "seed=1", "resume=auto", cwd=cwd)
    assert len(runs(cwd / "logs")) == 2


@pytest.mark.slow
def test_auto_with_a_run_directory(cwd: Path) -> None:
    for _ in range(2):
        succeed("train", *RUN, "run_dir=mine", "resume=auto", cwd=cwd)
    assert len(starts(cwd / "mine")) == 1
    longer = [text.replace("max_epochs=1", "max_epochs=2") for text in RUN]
    succeed("train", *longer, "run_dir=mine", "resume=auto", cwd=cwd)
    assert metrics(cwd / "mine")["epoch"] == 2
    assert len(starts(cwd / "mine")) == 2
    shorter = [text for text in RUN if "max_epochs" not in text]
    message = refuse("train", *shorter, "run_dir=mine", "resume=auto", cwd=cwd)
    assert "run_dir=mine" in message
    assert "trainer.max_epochs=1" in message


def test_auto_is_for_one_run_and_the_same_weights(cwd: Path) -> None:
    assert "-m" in refuse("train", "-m", *RUN, "resume=auto", cwd=cwd)
    assert "init_from=latest" in refuse("train", *RUN, "resume=auto", "init_from=latest", cwd=cwd)


@pytest.mark.slow
def test_what_can_change(cwd: Path) -> None:
    run_dir = only_run(cwd)
    (cwd / "photos").rename(cwd / "moved")
    changes = ("data.root=moved", "data.num_workers=1", "trainer.max_epochs=2", "callbacks.early_stopping=null",
               "callbacks.last.every_n_train_steps=2", "data.cache=disk", "logger.tensorboard=null", "trainer=cpu",
               "data.augment.crop=null")  # fmt: skip
    succeed("train", f"resume={run_dir}", *changes, cwd=cwd)
    assert metrics(run_dir)["epoch"] == 2
    succeed("train", f"resume={run_dir}", "trainer.max_epochs=3", cwd=cwd)
    assert "root: moved" in (run_dir / "config.yaml").read_text()


def test_what_does_not_fit_is_refused(cwd: Path) -> None:
    """The list of what can change is `runs.RESUME_MAY_CHANGE`."""
    run_dir = only_run(cwd)
    before = (run_dir / "config.yaml").read_bytes()

    def refused(*overrides: str) -> str:
        message = refuse("train", f"resume={run_dir}", "trainer.max_epochs=2", *overrides, cwd=cwd)
        assert (run_dir / "config.yaml").read_bytes() == before
        return message

    for override in ("optimizer=sgd", "scheduler=null", "data=digits", "seed=3"):
        message = refused(override)
        assert override.partition("=")[0] in message
        assert "init_from=" in message
    assert "data.batch_size=4" in refused("data.batch_size=4")
    last = run_dir / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    state = {**checkpoint["state_dict"], "network.classifier.weight": torch.zeros(1)}
    torch.save({**checkpoint, "state_dict": state}, last)
    assert "network.classifier.weight" in refused()
    generate.copy(cwd / "photos" / "red", cwd / "photos" / "purple")
    assert "'purple'" in refused()
    assert metrics(run_dir)["epoch"] == 1


@pytest.mark.slow
def test_debug_runs_are_not_the_latest(cwd: Path) -> None:
    expected = only_run(cwd)
    succeed("train", *RUN, "debug=limit", cwd=cwd)
    (debugged,) = runs(cwd / "logs" / "debug" / "folder_cnn")
    succeed("train", "-m", *RUN, "debug=limit", "seed=5", cwd=cwd)
    assert len(runs(cwd / "logs" / "debug" / "folder_cnn")) == 2
    succeed("train", "resume=latest", "trainer.max_epochs=2", cwd=cwd)
    assert metrics(expected)["epoch"] == 2
    result = succeed("eval", "ckpt_path=latest", "trainer=cpu", cwd=cwd)
    assert str(expected.relative_to(cwd)) in result.out
    succeed("train", f"resume={debugged}", "trainer.max_epochs=3", cwd=cwd)  # where it is named


def test_where_there_is_no_best(cwd: Path) -> None:
    """`from_epoch` is after the end of the run: the last is tested, and named."""
    result = succeed("train", *RUN, "callbacks.best.from_epoch=2", "run_dir=short", cwd=cwd)
    assert "short/checkpoints/last.ckpt" in result.out
    assert {"val/acc", "test/acc"} <= metrics(cwd / "short").keys()
    message = refuse("eval", "ckpt_path=short", cwd=cwd)
    assert "ckpt_path=short" in message
    assert "checkpoints/last.ckpt" in message


@pytest.mark.parametrize(
    "off",
    [
        "callbacks",
        *(pytest.param(off, marks=pytest.mark.slow) for off in ("logger", "callbacks.last", "callbacks.best")),
    ],
)
def test_what_is_switched_off_writes_nothing(off: str, cwd: Path) -> None:
    succeed("train", *RUN, f"{off}=null", "run_dir=off", cwd=cwd)
    assert "test/acc" in metrics(cwd / "off")
    kept = {path.name for path in (cwd / "off").rglob("*.ckpt")}
    expected = {"callbacks": set(), "callbacks.last": {"best.ckpt"}, "callbacks.best": {"last.ckpt"}}
    assert kept == expected.get(off, {"best.ckpt", "last.ckpt"})
    succeed("train", "resume=off", "trainer.max_epochs=2", cwd=cwd)
