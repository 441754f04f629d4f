"""resume=auto resumes the run that the same command has begun; and what may change when a run is resumed."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests import generate
from tests.verbs.command import QUICK, metrics, run, runs

RUN = ("experiment=folder_cnn", *QUICK, "model=simple_cnn", "data.root=photos")
CONTENTS = {"checkpoints", "config.yaml", "metrics.csv", "metrics.json", "split.csv", "starts.jsonl"}


@pytest.fixture(scope="module")
def done(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos/ and the run of one epoch that RUN makes of it; not to be changed."""
    cwd = tmp_path_factory.mktemp("done")
    generate.copy(folder, cwd / "photos")
    result = run("train", *RUN, "resume=auto", cwd=cwd)
    assert result.code == 0, result.err
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
    before = {path: path.stat().st_mtime_ns for path in only_run(cwd).rglob("*")}
    result = run("train", *RUN, "resume=auto", cwd=cwd)
    assert result.code == 0
    assert str(only_run(cwd).relative_to(cwd)) in result.out
    assert {path: path.stat().st_mtime_ns for path in only_run(cwd).rglob("*")} == before


def test_what_was_stopped_in_its_test_is_tested(cwd: Path) -> None:
    expected = metrics(only_run(cwd))
    (only_run(cwd) / "metrics.json").unlink()
    assert run("train", "resume=auto", *reversed(RUN), cwd=cwd).code == 0  # in another order
    found = metrics(only_run(cwd))
    del expected["fit_seconds"], found["fit_seconds"]
    assert found == expected


def test_another_command_begins_another_run(cwd: Path) -> None:
    (only_run(cwd) / "metrics.json").unlink()
    assert run("train", *RUN, "seed=1", "resume=auto", cwd=cwd).code == 0
    assert len(runs(cwd / "logs")) == 2


def test_auto_with_a_run_directory(cwd: Path) -> None:
    for code in (0, 0):
        assert run("train", *RUN, "run_dir=mine", "resume=auto", cwd=cwd).code == code
    assert len(starts(cwd / "mine")) == 1
    longer = [text.replace("max_epochs=1", "max_epochs=2") for text in RUN]
    assert run("train", *longer, "run_dir=mine", "resume=auto", cwd=cwd).code == 0
    assert metrics(cwd / "mine")["epoch"] == 2
    assert len(starts(cwd / "mine")) == 2
    result = run("train", *RUN[1:], "run_dir=mine", "resume=auto", cwd=cwd)
    assert result.code == 2
    assert "run_dir=mine" in result.err
    assert "experiment=folder_cnn" in result.err


def test_auto_is_for_one_run_and_the_same_weights(cwd: Path) -> None:
    result = run("train", "-m", *RUN, "resume=auto", cwd=cwd)
    assert (result.code, "-m" in result.err) == (2, True)
    result = run("train", *RUN, "resume=auto", "init_from=latest", cwd=cwd)
    assert (result.code, "init_from=latest" in result.err) == (2, True)


@pytest.mark.parametrize("override", ["optimizer=sgd", "scheduler=null", "data=digits", "seed=3"])
def test_what_cannot_change_is_refused(override: str, cwd: Path) -> None:
    """The list of what can is in `runs.RESUME_MAY_CHANGE`."""
    run_dir = only_run(cwd)
    before = (run_dir / "config.yaml").read_bytes()
    result = run("train", f"resume={run_dir}", "trainer.max_epochs=2", override, cwd=cwd)
    assert (result.code, "Traceback" in result.err + result.out) == (2, False), result.out
    assert override.partition("=")[0] in result.err
    assert "init_from=" in result.err
    assert (run_dir / "config.yaml").read_bytes() == before
    assert metrics(run_dir)["epoch"] == 1


def test_what_can_change(cwd: Path) -> None:
    run_dir = only_run(cwd)
    (cwd / "photos").rename(cwd / "moved")
    changes = ("data.root=moved", "data.num_workers=1", "trainer.max_epochs=2", "callbacks.early_stopping=null",
               "callbacks.last.every_n_train_steps=2", "data.cache=disk", "logger.tensorboard=null", "trainer=cpu",
               "data.augment.crop=null")  # fmt: skip
    result = run("train", f"resume={run_dir}", *changes, cwd=cwd)
    assert result.code == 0, result.err
    assert metrics(run_dir)["epoch"] == 2
    assert run("train", f"resume={run_dir}", "trainer.max_epochs=3", cwd=cwd).code == 0
    assert "root: moved" in (run_dir / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("data.batch_size=4", ["8", "data.batch_size=4"]),
        ("a new class", ["'purple'"]),
        ("another network", ["network.classifier.weight"]),
    ],
)
def test_what_does_not_fit_is_refused(change: str, said: list[str], cwd: Path) -> None:
    run_dir = only_run(cwd)
    if change == "a new class":
        generate.copy(cwd / "photos" / "red", cwd / "photos" / "purple")
    if change == "another network":
        last = run_dir / "checkpoints" / "last.ckpt"
        checkpoint = torch.load(last, weights_only=True)
        checkpoint["state_dict"]["network.classifier.weight"] = torch.zeros(1)
        torch.save(checkpoint, last)
    before = (run_dir / "config.yaml").read_bytes()
    override = [change] if "=" in change else []
    result = run("train", f"resume={run_dir}", "trainer.max_epochs=2", *override, cwd=cwd)
    assert result.code == 2, result.out
    assert all(word in result.err for word in said), result.err
    assert "Traceback" not in result.err + result.out
    assert (run_dir / "config.yaml").read_bytes() == before


def test_debug_runs_are_not_the_latest(cwd: Path) -> None:
    expected = only_run(cwd)
    assert run("train", *RUN, "debug=limit", cwd=cwd).code == 0
    (debugged,) = runs(cwd / "logs" / "debug" / "folder_cnn")
    assert run("train", "-m", *RUN, "debug=limit", "seed=5", cwd=cwd).code == 0
    assert len(runs(cwd / "logs" / "debug" / "folder_cnn")) == 2
    result = run("train", "resume=latest", "trainer.max_epochs=2", cwd=cwd)
    assert result.code == 0, result.err
    assert metrics(expected)["epoch"] == 2
    result = run("eval", "ckpt_path=latest", "trainer=cpu", cwd=cwd)
    assert str(expected.relative_to(cwd)) in result.out
    assert run("train", f"resume={debugged}", "trainer.max_epochs=3", cwd=cwd).code == 0  # where it is named


def test_where_there_is_no_best(cwd: Path) -> None:
    """`from_epoch` is after the end of the run: the last is tested, and named."""
    result = run("train", *RUN, "callbacks.best.from_epoch=2", "run_dir=short", cwd=cwd)
    assert result.code == 0, result.err
    assert "short/checkpoints/last.ckpt" in result.out
    assert {"val/acc", "test/acc"} <= metrics(cwd / "short").keys()
    result = run("eval", "ckpt_path=short", cwd=cwd)
    assert result.code == 2
    assert "ckpt_path=short/checkpoints/last.ckpt" in result.err


@pytest.mark.parametrize("off", ["callbacks", "logger", "callbacks.last", "callbacks.best"])
def test_what_is_switched_off_writes_nothing(off: str, cwd: Path) -> None:
    result = run("train", *RUN, f"{off}=null", "run_dir=off", cwd=cwd)
    assert result.code == 0, result.err
    assert "test/acc" in metrics(cwd / "off")
    kept = {path.name for path in (cwd / "off").rglob("*.ckpt")}
    expected = {"callbacks": set(), "callbacks.last": {"best.ckpt"}, "callbacks.best": {"last.ckpt"}}
    assert kept == expected.get(off, {"best.ckpt", "last.ckpt"})
    assert run("train", "resume=off", "trainer.max_epochs=2", cwd=cwd).code == 0
