"""A run directory from a stranger: resume= calls nothing but what configs/ names, or what is typed."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pytorch_lightning import Callback

from classifier.training.checkpoints import BestCheckpoint
from tests import generate
from tests.verbs.command import BARE, metrics, refuse, succeed

CALL = {"_target_": "torch.utils.collect_env.run", "command": "touch evil"}
OWN = "+callbacks.own._target_=tests.verbs.test_planted_run.Own"


class Own(Callback):
    """Of the user's own."""


@pytest.fixture(scope="module")
def cwd(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos/ and mine/, the run of one epoch with a callback of the user's own."""
    cwd = tmp_path_factory.mktemp("planted_run")
    generate.copy(folder, cwd / "photos")
    succeed("train", *BARE, "data.root=photos", OWN, "run_dir=mine", cwd=cwd)
    return cwd


def plant(run: Path, copy: Path, path: tuple[str, ...], value: Any) -> None:
    """Copy a run with `value` in this place of its config, and all else known."""
    generate.copy(run, copy)
    config = yaml.safe_load((copy / "config.yaml").read_text())
    del config["callbacks"]["own"]
    node = config
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    (copy / "config.yaml").write_text(yaml.safe_dump(config))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("callbacks", "evil"), CALL),
        (("callbacks", "best", "monitor"), CALL),
        (("data", "augment", "transforms", "evil"), {"_target_": "torch.nn.Identity", "a": [{"b": CALL}]}),
        (("model", "_target_"), "torch.nn.functional.torch.utils.collect_env.run"),
        (("defaults",), ["/trainer: ddp"]),
        (("data", "defaults"), [{"/trainer@_global_": "ddp"}]),
        (("data", "hydra@_global_"), {"callbacks": {"evil": CALL}}),
        (("hydra",), {"callbacks": {"evil": CALL}, "run": {"dir": "evil"}}),
        (("data", "root"), "${oc.env:HOME}"),
    ],
    ids=str,
)
def test_a_config_that_would_do_more(path: tuple[str, ...], value: Any, cwd: Path, tmp_path: Path) -> None:
    plant(cwd / "mine", tmp_path / "run", path, value)
    message = refuse("train", "resume=run", "trainer.max_epochs=2", cwd=tmp_path)
    assert path[-1] in message
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


def test_an_own_target_in_a_list_is_typed_again(cwd: Path, tmp_path: Path) -> None:
    several = {"several": {"transforms": [{"p": 0.5}, {"_target_": "my_project.Flip"}]}}
    plant(cwd / "mine", tmp_path / "run", ("data", "augment", "transforms"), several)
    typed = "data.augment.transforms.several.transforms.1._target_=my_project.Flip"
    assert typed in refuse("train", "resume=run", cwd=tmp_path)
    succeed("train", "resume=run", typed, "--cfg", "job", cwd=tmp_path)


def test_own_targets_are_typed_again(cwd: Path) -> None:
    own = OWN.lstrip("+")
    assert own in refuse("train", "resume=mine", "trainer.max_epochs=2", cwd=cwd)
    succeed("train", "resume=mine", "trainer.max_epochs=2", own, cwd=cwd)
    longer = [text.replace("max_epochs=1", "max_epochs=3") for text in BARE]
    succeed("train", *longer, "data.root=photos", OWN, "run_dir=mine", "resume=auto", cwd=cwd)
    assert metrics(cwd / "mine")["epoch"] == 3


def test_a_checkpoint_names_nothing_to_remove(tmp_path: Path) -> None:
    best = BestCheckpoint(dirpath=tmp_path, monitor="val/acc", mode="max", save_top_k=2)
    paths = {"best_model_path": "a/best.ckpt", "kth_best_model_path": "..", "last_model_path": ""}
    score = torch.tensor(0.0)
    best.load_state_dict({**best.state_dict(), **paths, "best_k_models": {"/etc/passwd": score, "b.ckpt": score}})
    assert best.best_model_path == str(tmp_path / "best.ckpt")
    assert best.kth_best_model_path == ""
    assert set(best.best_k_models) == {"", str(tmp_path / "b.ckpt")}
