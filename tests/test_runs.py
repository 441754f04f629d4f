"""Run directories: finding them, what they store, what may change on resume, where they came from."""

import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from omegaconf import OmegaConf

from classifier import runs
from classifier.errors import UserError
from classifier.runs import (
    CONFIG_DIR,
    find_checkpoint,
    find_run,
    find_runs,
    find_same_run,
    new_run_dir,
    plain,
    read_starts,
    run_dir_of,
    stored_config,
)


def make_run(log_dir: Path, name: str, started: int, checkpoint: bool = True) -> Path:
    """A run directory that was started `started` seconds after 1970."""
    run = log_dir / name
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text(f"run_dir: {run}\n")
    os.utime(run / "config.yaml", (started, started))
    if checkpoint:
        (run / "checkpoints" / "best.ckpt").touch()
    return run


def test_runs_of_one_second_have_a_directory_each(tmp_path: Path) -> None:
    with ThreadPoolExecutor(20) as pool:
        found = list(pool.map(new_run_dir, [tmp_path / "new" / "digits"] * 20))
    assert len(set(found)) == 20
    assert all(path.is_dir() for path in found)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="log_dir="):
        new_run_dir(tmp_path / "file" / "digits")


def test_runs_are_found_in_the_order_they_started(tmp_path: Path) -> None:
    second = make_run(tmp_path, "b/2026-01-01", started=200)
    third = make_run(tmp_path, "a/2026-01-01", started=300)
    first = make_run(tmp_path, "a/multirun_2026/0", started=100)
    debug = make_run(tmp_path, "debug/a/2026-01-01", started=400)
    (tmp_path / "a" / "no_run").mkdir()
    assert find_runs(tmp_path) == [first, second, third]
    assert find_runs(tmp_path, debug=True)[-1] == debug
    assert find_runs(tmp_path, "a") == [first, third]
    assert find_runs(tmp_path, "c") == find_runs(tmp_path / "none") == []


def test_find_run_and_checkpoint(tmp_path: Path) -> None:
    older = make_run(tmp_path, "a/1", started=100)
    newer = make_run(tmp_path, "b/1", started=200, checkpoint=False)
    assert find_run("latest", tmp_path) == newer
    assert find_run("latest", tmp_path, "a") == older
    assert find_run(str(older), tmp_path / "elsewhere") == older
    best = older / "checkpoints" / "best.ckpt"
    for value in ("latest", str(older), str(best)):
        assert find_checkpoint(value, tmp_path) == best
    assert run_dir_of(best) == older
    copied = tmp_path / "model.ckpt"
    copied.touch()
    assert run_dir_of(find_checkpoint(str(copied), tmp_path)) == tmp_path


@pytest.mark.parametrize("value", ["latest", "logs/none", str(CONFIG_DIR), "none.ckpt"])
def test_wrong_runs_and_checkpoints(value: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refusal:
        find_run(value, tmp_path)
    assert f"resume={value}" in str(refusal.value)
    make_run(tmp_path, "a/1", started=100, checkpoint=False)
    with pytest.raises(UserError) as refusal:
        find_checkpoint(value, tmp_path, "init_from")
    assert f"init_from={value}" in str(refusal.value)


@pytest.mark.parametrize("old", ["logs/digits/1", "/elsewhere/logs/digits/1"])
def test_stored_config_follows_a_moved_directory(old: str, tmp_path: Path) -> None:
    def config(run_dir: object) -> dict[str, Any]:
        callbacks = {"best": {"dirpath": f"{run_dir}/checkpoints", "patience": 3}}
        files = [f"{run_dir}/split.csv", "data/digits", 1, None]
        return {
            "run_dir": str(run_dir),
            "callbacks": callbacks,
            "files": files,
            "other": f"{old}0/x",
            "note": f"see {old}",
        }

    OmegaConf.save(config(old), tmp_path / "config.yaml")
    assert runs.stored_config(tmp_path) == config(tmp_path)


BOMB = "\n".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in pairwise("abcdefghij"))
BROKEN = {
    "config.yaml": [
        "",
        "[1]",
        "run_dir: [",
        "a: 1",
        "\udcff",
        f"run_dir: x\na: {'[' * 100_000}{']' * 100_000}",
        f"run_dir: x\na: &a [1]\n{BOMB}",
    ],
    "starts.jsonl": ["{", "[]", "1", '{"overrides": [1]}', '{"time": 1}', "\udcff", "[" * 100_000],
}


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name in BROKEN for kind in range(7)])
def test_a_broken_run_is_passed_over(name: str, kind: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By what looks for a run; what names it is refused."""
    runs.record_start(tmp_path / "a/1", ["seed=1"])
    runs.record_start(tmp_path / "a/2", ["seed=1"])
    good, broken = make_run(tmp_path, "a/1", started=100), make_run(tmp_path, "a/2", started=200)
    (broken / name).write_text(BROKEN[name][kind], errors="surrogateescape")
    os.utime(broken / "config.yaml", (200, 200))
    assert find_run("latest", tmp_path) == good
    assert find_checkpoint("latest", tmp_path).is_relative_to(good)
    assert find_same_run(["seed=1"], tmp_path, None) == (good, [])
    lines = capsys.readouterr().err.splitlines()
    assert [str(broken / name) in line for line in lines] == [True] * 3
    with pytest.raises(UserError, match=name):
        {"config.yaml": stored_config, "starts.jsonl": read_starts}[name](broken)


def composed(*overrides: str) -> dict[str, Any]:
    with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return plain(hydra.compose("train", ["run_dir=run", *overrides]))


FIXED = ["optimizer.lr=0.5", "optimizer=sgd", "scheduler=step", "~scheduler", "~optimizer.weight_decay",
         "model.drop_rate=0.9", "data=cifar10", "data.fold=1", "data.split_seed=3", "data.val_fraction=0.3",
         "data.image_size=64", "data.sampler=balanced", "data.group_pattern=x", "seed=3", "mode=max", "monitor=val/acc",
         "callbacks.best.save_top_k=2", "trainer.accumulate_grad_batches=2", "trainer.limit_train_batches=2",
         "trainer.strategy=sharded", "tune=lr", "speed.channels_last=false", "init_from=other.ckpt", "finetune=head",
         "ema=0.9", "loss.label_smoothing=0.1", "mix.mixup=0.1"]  # fmt: skip


def test_what_cannot_change_on_resume() -> None:
    begun = composed()
    for override in FIXED:
        with pytest.raises(UserError) as refusal:
            runs.require_changeable(begun, composed(override))
        assert override.partition("=")[0].strip("~") in str(refusal.value)


def test_values_of_a_refused_resume_are_as_typed() -> None:
    for before, after in (("ema=0.9", "ema=null"), ("data.image_size=[32,48]", "data.image_size=[48,32]")):
        with pytest.raises(UserError, match=re.escape(f"{after} ")) as refusal:
            runs.require_changeable(composed(before), composed(after))
        assert f" {before.partition('=')[2]}:" in str(refusal.value)


def test_what_can_change_on_resume() -> None:
    changes = ("data.root=moved", "data.num_workers=1", "data.cache=disk", "data.augment.crop=null", "augment=erasing",
               "data.train_size=8", "trainer=ddp", "trainer.max_epochs=2", "callbacks.early_stopping=null",
               "callbacks.best=null", "callbacks.last.every_n_train_steps=2", "logger.tensorboard=null", "test=false",
               "speed.compile=true")  # fmt: skip
    runs.require_changeable(composed(), composed(*changes))
    runs.require_changeable(composed(), composed("~callbacks", "~logger"))


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Some code under git, in the place of ours."""
    code = tmp_path / "code"
    (code / "src").mkdir(parents=True)
    (code / "src" / "model.py").write_text("width = 8\n")
    identity = ["-c", "user.name=someone", "-c", "user.email=someone@example.com"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "first"]):
        subprocess.run(["git", *command], cwd=code, check=True)
    monkeypatch.setattr(runs, "PACKAGE", code / "src")
    return code


def start(tmp_path: Path, *overrides: str) -> dict[str, Any]:
    runs.record_start(tmp_path / "run", list(overrides))
    return read_starts(tmp_path / "run")[-1]


def test_each_start_is_a_line(repository: Path, tmp_path: Path) -> None:
    for overrides in (["seed=1"], ["resume=run"]):
        assert start(tmp_path, *overrides)["overrides"] == overrides
    first, second = read_starts(tmp_path / "run")
    assert first["time"] <= second["time"]
    assert first["versions"]["torch"] == torch.__version__
    assert first["machine"].keys() == {"host", "system", "cores", "gpus"}


def test_changes_of_the_code_are_kept(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    revision = subprocess.run(["git", "rev-parse", "HEAD"], cwd=repository, capture_output=True, text=True).stdout
    assert start(tmp_path)["git"] == {"revision": revision.strip(), "diff": None}
    (repository / "src" / "model.py").write_text("width = 16\n")
    (repository / "new.yaml").write_text("depth: 3\n")
    (repository / "photo.jpg").write_bytes(b"not code")
    names = [start(tmp_path)["git"]["diff"] for _ in range(2)]
    assert names[0] == names[1], "starts of the same code share a file"
    text = (tmp_path / "run" / names[0]).read_text()
    assert "-width = 8\n+width = 16" in text
    assert "new.yaml\ndepth: 3" in text
    assert "photo" not in text
    (tmp_path / "plain").mkdir()
    monkeypatch.setattr(runs, "PACKAGE", tmp_path / "plain")
    assert start(tmp_path)["git"] is None  # no repository
    monkeypatch.setattr(runs, "PACKAGE", repository)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert start(tmp_path)["git"] is None  # no program
