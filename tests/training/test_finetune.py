import logging
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import timm
import torch
import torchvision
from pytorch_lightning.callbacks import LambdaCallback, ModelCheckpoint
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from classifier.errors import UserError
from classifier.models import ResNet9, SimpleCNN
from classifier.training import ImageClassifier
from classifier.training.finetune import FineTuning, head_parameters, stages_of
from tests.training import runs

# three stages and a head with dropout
CNN = {**runs.CNN, "widths": [4, 4, 8], "hidden": [6]}
RESNET = {"_target_": "classifier.models.timm_model", "name": "test_resnet", "pretrained": False}
GRADUAL = {"head_epochs": 1, "stage_epochs": 1}


def state(model: ImageClassifier) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """Parameters and buffers of the network that are not the same to the bit."""
    assert before.keys() == after.keys()
    return {name.removeprefix("network.") for name in before if not torch.equal(before[name], after[name])}


def tensors(model: ImageClassifier, frozen: int) -> set[str]:
    """All of the network but what the first `frozen` stages hold."""
    below = {name for names in FineTuning(model.network, stages=0).stages[:frozen] for name in names}
    return set(model.network.state_dict()) - below


def classifier(model: dict[str, Any] = CNN, **settings: Any) -> ImageClassifier:
    # weight decay and momentum would move what has no gradient too
    optimizer = {"_target_": "torch.optim.SGD", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}
    return runs.make_classifier(size=32, channels=3, **{"optimizer": optimizer, "model": model, **settings})


LOADER = runs.loader(size=32, channels=3)


def fit(model: ImageClassifier, run_dir: Path, *callbacks: pl.Callback, **settings: Any) -> list[set[str]]:
    """What each epoch changed."""
    before: list[dict[str, torch.Tensor]] = []
    found: list[set[str]] = []
    record = LambdaCallback(
        on_train_epoch_start=lambda *_: before.append(state(model)),
        on_train_epoch_end=lambda *_: found.append(changed(before[-1], state(model))),
    )
    runs.trainer(run_dir, [record, *callbacks], **settings).fit(model, LOADER, LOADER)
    return found


@pytest.mark.parametrize("name", ["SimpleCNN", "test_resnet", "test_vit", "test_efficientnet", "test_mambaout"])
def test_head_alone(name: str, tmp_path: Path) -> None:
    network = CNN if name == "SimpleCNN" else {**RESNET, "name": name}
    model = classifier(network, finetune={"stages": 0, "layer_decay": 0.8})
    epochs = fit(model, tmp_path, max_epochs=2, accumulate_grad_batches=2)
    assert epochs == [tensors(model, frozen=len(model.finetuning.stages))] * 2


@pytest.mark.parametrize("network", [CNN, RESNET], ids=["SimpleCNN", "timm"])
def test_one_more_stage_each_epoch(network: dict[str, Any], tmp_path: Path) -> None:
    model = classifier(network, finetune=GRADUAL)
    stages = len(model.finetuning.stages)
    epochs = fit(model, tmp_path, max_epochs=stages + 2)
    assert epochs == [tensors(model, frozen) for frozen in [*range(stages, -1, -1), 0]]


@pytest.mark.parametrize(
    ("settings", "trained"),
    [
        ({}, [0] * 6),  # which is all of no stages
        ({"head_epochs": 1, "stage_epochs": 2}, [0, 1, 1, 2, 2, 3]),
        ({"head_epochs": 1, "stage_epochs": 1, "stages": 2}, [0, 1, 2, 2, 2, 2]),
        ({"stage_epochs": 1}, [1, 2, 3, 3, 3, 3]),
    ],
)
def test_schedule(settings: dict[str, int], trained: list[int]) -> None:
    tuning = classifier(finetune=settings).finetuning
    assert [tuning.trained(epoch) for epoch in range(6)] == trained


def test_resumed_run_has_the_bits_of_one_that_was_not_stopped(tmp_path: Path) -> None:
    keep = ModelCheckpoint(dirpath=tmp_path, filename="{step}", save_top_k=-1, save_on_train_epoch_end=True)

    def last_step(checkpoint: Path | None) -> dict[str, torch.Tensor]:
        model = classifier(optimizer=runs.ADAMW, finetune={**GRADUAL, "layer_decay": 0.8})
        trainer = runs.trainer(tmp_path, [keep], max_epochs=4)
        trainer.fit(model, LOADER, LOADER, ckpt_path=checkpoint, weights_only=True)
        return state(model)

    whole = last_step(None)
    for step in (3, 6):  # (the plain loader of these tests has no place within an epoch)
        assert not changed(whole, last_step(tmp_path / f"step={step}.ckpt"))


def test_nobody_puts_a_frozen_batch_norm_into_training_mode() -> None:
    model = classifier(RESNET, finetune={"stages": 1})
    model.finetuning.freeze(0)
    model.eval()
    model.train()
    norms = {name: module for name, module in model.network.named_modules() if isinstance(module, _BatchNorm)}
    assert {name.partition(".")[0] for name, norm in norms.items() if norm.training} == {"layer4"}
    assert model.network.get_submodule("fc").training


def test_dropout_of_frozen_stages_is_off_and_that_of_the_head_on() -> None:
    network = {**RESNET, "name": "test_convnext", "drop_rate": 0.5, "drop_path_rate": 0.5}
    model = classifier(network, finetune={"stages": 0})
    model.finetuning.freeze(0)
    model.train()
    parts = ("stages.3.blocks.0.drop_path", "head.norm", "head.drop")
    assert [model.network.get_submodule(part).training for part in parts] == [False, False, True]


def test_statistics_of_a_norm_without_parameters_are_frozen_too() -> None:
    norms = [nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4, affine=False), nn.BatchNorm1d(2, affine=False)]
    stages = (nn.Conv2d(3, 4, 3), norms[0], nn.Conv2d(4, 4, 3), norms[1])
    FineTuning(nn.Sequential(*stages, nn.Linear(4, 2), norms[2]), stages=1).freeze(0)
    assert [norm.training for norm in norms] == [False, True, True]


def test_what_the_network_holds_fixed_stays_so() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    network[0].bias.requires_grad_(False)
    tuning = FineTuning(network, head_epochs=1)
    assert [tuning.freeze(epoch) for epoch in range(3)] == [True, True, False]
    assert [parameter.requires_grad for parameter in network[0].parameters()] == [True, False]


def test_each_change_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="classifier")
    model = classifier(finetune={**GRADUAL, "stages": 2})
    fit(model, tmp_path, max_epochs=4)
    said = "epoch 1: the head alone", "epoch 2: the head and 1 of 3 stages", "epoch 3: the head and 2 of 3 stages"
    assert [record.getMessage().replace("training ", "").partition(" (")[0] for record in caplog.records] == [*said]


@pytest.mark.parametrize(
    ("key", "value"),
    [("stages", 4), ("head_epochs", 0.5), ("stage_epochs", "all"), ("backbone_lr", 0.0), ("layer_decay", 2)],
)
def test_wrong_values(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"finetune\.{key}={value} must"):
        classifier(finetune={key: value})


def test_strategy_that_cannot_freeze(tmp_path: Path) -> None:
    trainer = runs.trainer(tmp_path, strategy=ModelParallelStrategy())
    with pytest.raises(UserError, match=r"finetune=full.* trainer\.strategy=ddp"):
        classifier(finetune={"stages": 0}).finetuning.prepare(trainer)
    classifier().finetuning.prepare(trainer)


def modules(names: set[str] | list[str]) -> set[str]:
    return {name.rpartition(".")[0] for name in names}


def create(name: str) -> nn.Module:
    with torch.device("meta"):  # shapes are enough
        network: nn.Module = timm.create_model(name, pretrained=False, num_classes=7)
    return network


@pytest.mark.parametrize(
    ("name", "head", "first", "count"),
    [
        ("resnet18", {"fc"}, "conv1.weight", 5),
        ("convnext_atto", {"head.fc"}, "stem.0.weight", 5),
        ("deit_tiny_distilled_patch16_224", {"head", "head_dist"}, "cls_token", 13),
        ("caformer_s18", {"head.fc.fc1", "head.fc.norm", "head.fc.fc2"}, "stem.conv.weight", 5),  # timm does not group
    ],
)
def test_networks_of_timm(name: str, head: set[str], first: str, count: int) -> None:
    network = create(name)
    found = stages_of(network)
    assert (modules(head_parameters(network)), found[0][0], len(found)) == (head, first, count)
    assert name != "convnext_atto" or "head.norm.weight" in found[-1]


@pytest.mark.parametrize(
    ("network", "head", "count"),
    [
        (SimpleCNN(num_classes=3, widths=[4, 8], depth=2), {"head.0", "head.3"}, 2),
        (ResNet9(num_classes=3, width=4), {"head"}, 6),
        (torchvision.models.resnet18(), {"fc"}, 10),
        (torchvision.models.VisionTransformer(32, 16, 3, 2, 12, 24), {"heads.head"}, 2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_stages_of_other_networks_are_their_children(network: nn.Module, head: set[str], count: int) -> None:
    found = stages_of(network)
    assert (modules(head_parameters(network)), len(found)) == (head, count)
    below = [name for names in found for name in names]
    assert below == [name for name, _ in network.named_parameters() if name not in head_parameters(network)]


@pytest.mark.parametrize("network", [nn.Linear(4, 2), nn.Sequential(nn.Flatten())])
def test_network_without_a_head(network: nn.Module) -> None:
    with pytest.raises(UserError, match="finetune=full"):
        head_parameters(network)


@pytest.mark.slow
@pytest.mark.parametrize("family", timm.list_modules())
def test_every_family_of_timm(family: str) -> None:
    """Each parameter is in the head or in one stage, and there are several stages."""
    names: list[Any] = sorted(timm.list_models(module=family), key=lambda name: (len(name), name))
    network = create(names[0])
    parameters = sorted(name for name, _ in network.named_parameters())
    for coarse in (True, False):
        found = stages_of(network, coarse)
        assert sorted([*head_parameters(network), *(name for names in found for name in names)]) == parameters
        assert len(found) >= 4
