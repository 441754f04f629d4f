"""A checkpoint from a stranger: whatever stands in it, eval and predict call, write and fetch nothing that it names."""

import copy
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch

from classifier.data import DigitsDataModule
from classifier.errors import UserError
from classifier.runs import leaves
from classifier.training import checkpoints
from classifier.verbs import evaluate, predict
from tests import generate
from tests.data import server
from tests.verbs.command import QUICK, metrics, of_test, refuse, succeed

DATA_KEYS = {"defaults", "_target_", "root"}  # all that may come of a folder's data section
READING = {"image_size", "resize", "crop_pct", "interpolation", "channels", "batch_size", "on_error"}


class Payload:
    """Unpickling it writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., int], tuple[Path, str]]:
        return Path.write_text, (self.target, "code ran")


@pytest.fixture(scope="module")
def cwd(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos/, run/ trained on them, and bait.pth, a file of weights that writes `evil` when opened."""
    cwd = tmp_path_factory.mktemp("planted")
    generate.copy(folder, cwd / "photos")
    arguments = ("experiment=folder_cnn", "model=simple_cnn", *QUICK, "data.root=photos", "run_dir=run")
    succeed("train", *arguments, "data.limit_per_class=9", cwd=cwd)
    torch.save(Payload(cwd / "evil"), cwd / "bait.pth")
    return cwd


@pytest.fixture(scope="module")
def checkpoint(cwd: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(cwd / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    return loaded


def attack(cwd: Path) -> dict[str, Any]:
    """What Hydra, given the chance, would open bait.pth for, write to evil_runs and evil_cache for, and more."""
    return {
        "_target_": "timm.models.load_checkpoint",
        "model": {"_target_": "torch.nn.Identity"},
        "checkpoint_path": str(cwd / "bait.pth"),
        "weights_only": False,
    }


def planted(checkpoint: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """A copy of the checkpoint with `value` in this place."""
    changed = copy.deepcopy({key: checkpoint[key] for key in ("run", "hyper_parameters")})
    node: Any = changed
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return {**checkpoint, **changed}


def places(checkpoint: dict[str, Any]) -> list[tuple[str, ...]]:
    """Every key of the stored config and of the model's arguments, at any depth, and keys that are not there."""
    found = [("run", "config", *key.split(".")) for key in leaves(checkpoint["run"]["config"], sections=True)]
    found += [("hyper_parameters", *key.split(".")) for key in leaves(checkpoint["hyper_parameters"], sections=True)]
    sections = [("run", "config"), ("run", "config", "data"), ("run", "config", "trainer"), ("hyper_parameters",),
                ("hyper_parameters", "model"), ("hyper_parameters", "preprocessing")]  # fmt: skip
    new = ("_target_", "_args_", "_recursive_", "defaults", "hydra", "/trainer@_global_", "cache_dir@_global_", "loss")
    return found + [(*section, key) for section in sections for key in new]


def test_the_attack_would_work(cwd: Path) -> None:
    with pytest.raises(Exception, match=r"state_dict|int"):
        hydra.utils.instantiate(attack(cwd))
    assert (cwd / "evil").read_text() == "code ran"
    (cwd / "evil").unlink()


def test_at_every_key(cwd: Path, checkpoint: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is handed to Hydra, and what the network is built of, holds nothing planted; or the file is refused."""
    path = cwd / "planted.ckpt"
    refused, all_places = 0, places(checkpoint)
    opened: dict[str, Any] = {}
    for module in (evaluate, predict, checkpoints):  # what a file holds, without writing it 800 times
        monkeypatch.setattr(module, "read_checkpoint", lambda path: opened)
    for place in all_places:
        for value in (attack(cwd), {"a": attack(cwd)}, {"defaults": ["/trainer: ddp"]}, "${oc.env:HOME}"):
            opened = planted(checkpoint, place, value)
            try:
                values = evaluate.stored_values(path)
            except UserError:
                refused += 1
                continue
            assert values.keys() == {"data", "run"}, place
            assert values["data"].keys() <= DATA_KEYS, place
            assert values["data"]["defaults"] == ["_base"], place
            assert values["data"]["_target_"] == "classifier.data.ImageFolderDataModule", place
            assert values["run"] == {"trainer": {"precision": "32-true"}, "data": values["run"]["data"]}, place
            assert values["run"]["data"].keys() <= READING, place
            assert not any(word in str(values) for word in ("timm", "Identity", "bait", "ddp", "oc.env")), place
            if place[0] == "hyper_parameters":
                with suppress(UserError):
                    checkpoints.open_model(path)
    assert not (cwd / "evil").exists()
    assert len(all_places) > 150
    assert 0 < refused < 2 * len(all_places), "most keys are not looked at"


@pytest.mark.parametrize("verb", ["eval", "predict"])
def test_everywhere_at_once(verb: str, cwd: Path, checkpoint: dict[str, Any]) -> None:
    """All that is not needed is replaced: the numbers are those of the training, and nothing is written or called."""
    changed = copy.deepcopy({"run": checkpoint["run"]})
    config = changed["run"]["config"]
    data = {key: value for key, value in config["data"].items() if key in {"_target_", "root", *READING}}
    data |= {"cache_dir": "evil_cache", "cache": "disk", "num_workers": 1_000_000, "check": attack(cwd),
             "weights_file": "evil.csv", "augment": attack(cwd), "defaults": ["/hydra/launcher: evil"],
             "/trainer@_global_": "ddp", "trainer@_global_": {"devices": 9}, "seed": attack(cwd)}  # fmt: skip
    trainer = {"precision": config["trainer"]["precision"], "devices": 9, "profiler": attack(cwd)}
    config.update({key: attack(cwd) for key in config})
    config.update(data=data, trainer=trainer, defaults=["evil"], log_dir="evil_logs")
    config["hydra"] = {"run": {"dir": "evil_hydra"}, "output_subdir": "evil"}
    torch.save({**checkpoint, **changed}, cwd / "run" / "checkpoints" / "planted.ckpt")
    arguments = ("inputs=photos", "output=out/predictions.csv") if verb == "predict" else ("output_dir=out",)
    before = {path for path in cwd.rglob("*") if "data" not in path.parts}
    succeed(verb, "ckpt_path=run/checkpoints/planted.ckpt", "trainer=cpu", *arguments, cwd=cwd)
    left = {path.name for path in cwd.rglob("*") if path not in before and "data" not in path.relative_to(cwd).parts}
    assert left <= {"out", "predictions.csv", "metrics.json"}
    if verb == "eval":
        assert of_test(metrics(cwd / "out")) == of_test(metrics(cwd / "run"))


def test_in_the_division_of_a_checkpoint_alone(cwd: Path, checkpoint: dict[str, Any]) -> None:
    """Without the run's split.csv, its images are divided again."""
    alone = cwd / "alone" / "model.ckpt"
    alone.parent.mkdir()
    arguments = (f"ckpt_path={alone}", "trainer=cpu", "output_dir=out")
    for key in ("fold", "num_folds", "split_seed", "limit_per_class", "group_pattern", "val_fraction"):
        torch.save(planted(checkpoint, ("run", "config", "data", key), attack(cwd)), alone)
        assert f"data.{key}" in refuse("eval", *arguments, cwd=cwd)
        assert not (cwd / "evil").exists()
    torch.save(checkpoint, alone)
    succeed("eval", *arguments, cwd=cwd)
    assert metrics(cwd / "out")["test/loss"] == metrics(cwd / "run")["test/loss"]


def of_data(checkpoint: dict[str, Any], path: Path, **changes: Any) -> tuple[str, ...]:
    """Plant changes to the data section; the arguments of an evaluation of that file."""
    torch.save(planted(checkpoint, ("run", "config", "data"), checkpoint["run"]["config"]["data"] | changes), path)
    return f"ckpt_path={path}", "trainer=cpu", "output_dir=out"


@pytest.mark.parametrize("target", ["StanfordDogsDataModule", "TorchvisionDataModule", "DigitsDataModule"])
def test_nothing_is_fetched_or_made(target: str, cwd: Path, checkpoint: dict[str, Any]) -> None:
    changes = {"_target_": f"classifier.data.{target}", "root": "evil_root", "name": "CIFAR10", "download": True}
    with server.running() as asked:
        arguments = of_data(checkpoint, cwd / "planted.ckpt", **changes, url=asked.url, sha256=None)
        assert "evil_root" in refuse("eval", *arguments, cwd=cwd)
    assert not (cwd / "evil_root").exists()
    assert asked.requests == []


def test_nothing_is_prepared(cwd: Path, checkpoint: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by us nor by Lightning, although the data is there: not even what a planted url or root would add."""
    prepared: list[Path] = []
    monkeypatch.setattr(DigitsDataModule, "prepare_data", lambda datamodule: prepared.append(datamodule.root))
    arguments = of_data(checkpoint, cwd / "planted.ckpt", _target_="classifier.data.DigitsDataModule")
    succeed("eval", *arguments, "data.num_workers=1", cwd=cwd)
    assert prepared == []


def test_a_data_module_that_is_in_no_config(cwd: Path, checkpoint: dict[str, Any]) -> None:
    arguments = of_data(checkpoint, cwd / "planted.ckpt", _target_="tests.verbs.test_planted.Payload")
    assert "configs/data/NAME.yaml" in refuse("eval", *arguments, cwd=cwd)
    succeed("eval", *arguments, "data=folder", "data.root=photos", cwd=cwd)
