"""Every YAML file: it composes, and what it names exists and takes its keys."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
import yaml
from omegaconf import DictConfig, OmegaConf

from classifier.data import ClassificationDataModule, build_datamodule
from classifier.runs import CONFIG_DIR, leaves, plain

EXPERIMENTS = sorted(path.stem for path in (CONFIG_DIR / "experiment").glob("*.yaml"))
FOLDERS = [path for path in CONFIG_DIR.iterdir() if path.is_dir() and path.name != "experiment"]
OPTIONS = sorted(f"{path.name}={file.stem}" for path in FOLDERS for file in path.glob("[!_]*.yaml"))


def compose(*overrides: str) -> DictConfig:
    with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return hydra.compose("train", list(overrides))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_composes_and_has_the_last_word(name: str, tmp_path: Path) -> None:
    written = yaml.safe_load((CONFIG_DIR / "experiment" / f"{name}.yaml").read_text())
    del written["defaults"]
    config = compose(f"experiment={name}", f"data.root={tmp_path}", f"run_dir={tmp_path}")
    for key, value in leaves(written).items():
        assert OmegaConf.select(config, key) == value, key
    settings = plain(config)  # resolves every interpolation
    assert {"crop", "transforms"} == settings["data"]["augment"].keys()
    assert "augment" not in settings
    assert settings["callbacks"]["best"]["dirpath"] == f"{tmp_path}/checkpoints"
    other = compose(f"experiment={name}", "model=resnet50", f"data.root={tmp_path}", f"run_dir={tmp_path}")
    assert other.model.name == "resnet50.a1_in1k", "a network that is typed must not be taken back by the experiment"


def nodes(node: Any) -> Iterator[dict[str, Any]]:
    """Everything with a `_target_`."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield node
        for value in node.values():
            yield from nodes(value)


def test_the_section_of_the_data_is_what_hydra_instantiates(folder: Path) -> None:
    config = compose("experiment=folder_cnn", f"data.root={folder}", "data.image_size=[24,32]", "data.num_workers=0")
    datamodule, ours = hydra.utils.instantiate(config.data), build_datamodule(plain(config.data))
    datamodule.setup()
    ours.setup()
    batch, expected = (next(iter(module.train_dataloader())) for module in (datamodule, ours))
    assert batch["image"].shape == (21, 3, 24, 32)  # 42 in two equal parts
    assert all(torch.equal(batch[key], expected[key]) for key in expected)


@pytest.mark.parametrize("option", OPTIONS)
def test_targets_of_an_option_exist_and_take_its_keys(option: str, tmp_path: Path) -> None:
    config = compose(option, f"data.root={tmp_path}", f"run_dir={tmp_path}")
    for key in OmegaConf.missing_keys(config):  # as data.table: there is no default
        OmegaConf.update(config, key, "some")
    settings = plain(config)
    found = list(nodes(settings))
    assert len(found) >= 10
    for node in found:
        target = hydra.utils.get_object(node["_target_"])
        taken = {"_target_", "_recursive_", "_convert_", *inspect.signature(target).parameters}
        if "settings" in taken:  # which are its base's
            taken |= inspect.signature(target.__base__).parameters.keys()
            taken |= inspect.signature(ClassificationDataModule).parameters.keys()
        taken |= {"mean", "std"} if node is settings["model"] else set()  # `build_model` takes these out
        assert node.keys() <= taken, node["_target_"]
