import inspect
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from classifier.data.datamodule import DataSettings
from classifier.errors import UserError
from classifier.runs import (
    CONFIG_DIR,
    find_checkpoint,
    find_run,
    find_runs,
    new_run_dir,
    plain,
    run_dir_of,
    stored_config,
)

EXPERIMENTS = sorted(path.stem for path in (CONFIG_DIR / "experiment").glob("*.yaml"))


def make_run(log_dir: Path, name: str, started: int, checkpoint: bool = True) -> Path:
    """A run directory that was started `started` seconds after 1970."""
    run = log_dir / name
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text(f"run_dir: {run}\n")
    os.utime(run / "config.yaml", (started, started))
    if checkpoint:
        (run / "checkpoints" / "best.ckpt").touch()
    return run


def test_runs_of_one_second_have_a_directory_each(tmp_path: Path) -> None:
    found: list[Path] = []
    start = threading.Barrier(20)

    def run() -> None:
        start.wait()
        found.append(new_run_dir(tmp_path / "new" / "digits"))

    threads = [threading.Thread(target=run) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 20
    assert all(path.is_dir() for path in found)


def test_run_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="use log_dir="):
        new_run_dir(tmp_path / "file" / "digits")


def test_runs_are_found_in_the_order_they_started(tmp_path: Path) -> None:
    second = make_run(tmp_path, "b/2026-01-01", started=200)
    third = make_run(tmp_path, "a/2026-01-01", started=300)
    first = make_run(tmp_path, "a/multirun_2026/0", started=100)
    (tmp_path / "a" / "no_run").mkdir()
    assert find_runs(tmp_path) == [first, second, third]
    assert find_runs(tmp_path, "a") == [first, third]
    assert find_runs(tmp_path, "c") == []
    assert find_runs(tmp_path / "none") == []


def test_find_run(tmp_path: Path) -> None:
    older = make_run(tmp_path, "a/1", started=100)
    newer = make_run(tmp_path, "b/1", started=200, checkpoint=False)
    assert find_run("latest", tmp_path) == newer
    assert find_run("latest", tmp_path, "a") == older
    assert find_run(str(older), tmp_path / "elsewhere") == older


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("latest", "no run below"),
        ("logs/none", "resume=logs/none does not exist"),
        (str(CONFIG_DIR), "is no run directory"),
        (str(CONFIG_DIR / "train.yaml"), "is no run directory"),
    ],
)
def test_wrong_runs(value: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        find_run(value, tmp_path)


def test_find_checkpoint(tmp_path: Path) -> None:
    older = make_run(tmp_path, "a/1", started=100)
    make_run(tmp_path, "b/1", started=200, checkpoint=False)
    best = older / "checkpoints" / "best.ckpt"
    for value in ("latest", str(older), str(best)):
        assert find_checkpoint(value, tmp_path) == best
    assert run_dir_of(best) == older
    copied = tmp_path / "model.ckpt"
    copied.touch()
    assert run_dir_of(find_checkpoint(str(copied), tmp_path)) == tmp_path


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("latest", "no run below .* has a checkpoint"),
        ("none.ckpt", "ckpt_path=none.ckpt does not exist"),
        (str(CONFIG_DIR), "without checkpoints/best.ckpt"),
    ],
)
def test_wrong_checkpoints(value: str, message: str, tmp_path: Path) -> None:
    make_run(tmp_path, "a/1", started=100, checkpoint=False)
    with pytest.raises(UserError, match=message):
        find_checkpoint(value, tmp_path)


@pytest.mark.parametrize("old", ["logs/digits/1", "/elsewhere/logs/digits/1"])
def test_stored_config_follows_a_moved_directory(old: str, tmp_path: Path) -> None:
    config = {
        "run_dir": old,
        "callbacks": {"best": {"dirpath": f"{old}/checkpoints", "patience": 3}},
        "files": [f"{old}/split.csv", "data/digits", 1, None],
        "neighbour": f"{old}0/checkpoints",
        "note": f"see {old}",
    }
    OmegaConf.save(config, tmp_path / "config.yaml")
    assert stored_config(tmp_path) == {
        "run_dir": str(tmp_path),
        "callbacks": {"best": {"dirpath": f"{tmp_path}/checkpoints", "patience": 3}},
        "files": [f"{tmp_path}/split.csv", "data/digits", 1, None],
        "neighbour": f"{old}0/checkpoints",
        "note": f"see {old}",
    }


@pytest.mark.parametrize("module", ["classifier.runs", "classifier.cli"])
def test_command_line_is_read_without_torch(module: str) -> None:
    code = f"import sys, {module}; print(*(name for name in ('torch', 'timm', 'torchvision') if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def compose(name: str, *overrides: str) -> DictConfig:
    with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return hydra.compose(name, list(overrides))


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_composes_and_has_the_last_word(name: str, tmp_path: Path) -> None:
    written = yaml.safe_load((CONFIG_DIR / "experiment" / f"{name}.yaml").read_text())
    del written["defaults"]
    config = compose("train", f"experiment={name}", f"data.root={tmp_path}", f"run_dir={tmp_path}")
    for key, value in leaves(written):
        assert OmegaConf.select(config, key) == value, key
    settings = plain(config)  # resolves every interpolation
    assert settings.keys() >= {"data", "model", "optimizer", "trainer", "seed", "monitor"}
    assert settings["callbacks"]["best"]["dirpath"] == f"{tmp_path}/checkpoints"


def options() -> list[str]:
    """Every choice of every group, such as `model=resnet50`."""
    folders = [path for path in CONFIG_DIR.iterdir() if path.is_dir() and path.name != "experiment"]
    return sorted(f"{path.name}={file.stem}" for path in folders for file in path.glob("[!_]*.yaml"))


def nodes(node: Any) -> Iterator[dict[str, Any]]:
    """Everything with a `_target_`."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield node
        for value in node.values():
            yield from nodes(value)


@pytest.mark.parametrize("option", options())
def test_targets_of_an_option_exist_and_take_its_keys(option: str, tmp_path: Path) -> None:
    config = compose("train", option, f"data.root={tmp_path}", f"run_dir={tmp_path}")
    for key in OmegaConf.missing_keys(config):  # as data.table: there is no default
        OmegaConf.update(config, key, "some")
    settings = plain(config)
    found = list(nodes(settings))
    assert len(found) >= 10
    for node in found:
        target = hydra.utils.get_object(node["_target_"])
        taken = {"_target_", *inspect.signature(target).parameters}
        taken |= DataSettings.__annotations__.keys() if "settings" in taken else set()
        taken |= {"mean", "std"} if node is settings["model"] else set()  # `build_model` takes these out
        assert node.keys() <= taken, node["_target_"]
