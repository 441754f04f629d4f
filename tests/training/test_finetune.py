import logging
import re
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LambdaCallback
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from classifier.errors import UserError
from classifier.training import ImageClassifier
from classifier.training.finetune import FineTuning
from classifier.training.stopping import LastCheckpoint
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
    names = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any(name.startswith("normalize") for name in names)
    return {name.removeprefix("network.") for name in names if name.startswith("network.")}


def tensors(model: ImageClassifier, frozen: int) -> set[str]:
    """All of the network but what the first `frozen` stages hold."""
    below = {name for names in FineTuning(model.network, stages=0).stages[:frozen] for name in names}
    return set(model.network.state_dict()) - below


def classifier(model: dict[str, Any] = CNN, **settings: Any) -> ImageClassifier:
    # weight decay and momentum would move what has no gradient too
    optimizer = {"_target_": "torch.optim.SGD", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}
    return runs.make_classifier(size=32, channels=3, **{"optimizer": optimizer, "model": model, **settings})


def loader() -> Any:
    return runs.loader(size=32, channels=3)


def fit(model: ImageClassifier, run_dir: Path, *callbacks: pl.Callback, **settings: Any) -> list[set[str]]:
    """What each epoch changed."""
    before: list[dict[str, torch.Tensor]] = []
    found: list[set[str]] = []
    record = LambdaCallback(
        on_train_epoch_start=lambda *_: before.append(state(model)),
        on_train_epoch_end=lambda *_: found.append(changed(before[-1], state(model))),
    )
    runs.trainer(run_dir, [record, *callbacks], **settings).fit(model, loader(), loader())
    return found


@pytest.mark.parametrize("network", [CNN, RESNET], ids=["SimpleCNN", "timm"])
def test_head_alone(network: dict[str, Any], tmp_path: Path) -> None:
    model = classifier(network, finetune={"stages": 0, "layer_decay": 0.8})
    stages = len(model.finetuning.stages)
    epochs = fit(model, tmp_path, max_epochs=2, accumulate_grad_batches=2)
    assert epochs == [tensors(model, stages)] * 2
    assert any(name.endswith("running_mean") for name in set(model.network.state_dict()) - epochs[0])


@pytest.mark.parametrize(("finetune", "frozen"), [(None, 0), ({}, 0), ({"stages": 1}, 2)])
def test_everything_or_the_last_stages(finetune: dict[str, Any] | None, frozen: int, tmp_path: Path) -> None:
    model = classifier(finetune=finetune)
    assert fit(model, tmp_path, max_epochs=1) == [tensors(model, frozen)]


@pytest.mark.parametrize("network", [CNN, RESNET], ids=["SimpleCNN", "timm"])
def test_one_more_stage_each_epoch(network: dict[str, Any], tmp_path: Path) -> None:
    model = classifier(network, finetune=GRADUAL)
    stages = len(model.finetuning.stages)
    epochs = fit(model, tmp_path, max_epochs=stages + 2)
    assert epochs == [tensors(model, frozen) for frozen in [*range(stages, -1, -1), 0]]


@pytest.mark.parametrize(
    ("settings", "trained"),
    [
        ({}, [3, 3, 3, 3, 3, 3]),
        ({"stages": 0}, [0, 0, 0, 0, 0, 0]),
        ({"head_epochs": 2}, [0, 0, 3, 3, 3, 3]),
        ({"head_epochs": 1, "stage_epochs": 2}, [0, 1, 1, 2, 2, 3]),
        ({"head_epochs": 1, "stage_epochs": 1, "stages": 2}, [0, 1, 2, 2, 2, 2]),
        ({"stage_epochs": 1}, [1, 2, 3, 3, 3, 3]),
    ],
)
def test_schedule(settings: dict[str, int], trained: list[int]) -> None:
    tuning = classifier(finetune=settings).finetuning
    expected = trained if tuning.freezes else [0] * 6  # which is all of no stages
    assert [tuning.trained(epoch) for epoch in range(6)] == expected


def test_resumed_run_has_the_bits_of_one_that_was_not_stopped(tmp_path: Path) -> None:
    keep = LastCheckpoint(dirpath=tmp_path, filename="step={step}", every_n_train_steps=1)

    def last_step(checkpoint: Path | None) -> dict[str, torch.Tensor]:
        model = classifier(optimizer=runs.ADAMW, finetune={**GRADUAL, "layer_decay": 0.8})
        trainer = runs.trainer(tmp_path, [keep], max_epochs=4)
        trainer.fit(model, loader(), loader(), ckpt_path=checkpoint, weights_only=True)
        return state(model)

    whole = last_step(None)
    for step in (3, 6):  # (the plain loader of these tests has no place within an epoch)
        assert not changed(whole, last_step(tmp_path / f"step={step}.ckpt"))


def test_nobody_puts_a_frozen_batch_norm_into_training_mode() -> None:
    model = classifier(RESNET, finetune={"stages": 1})
    model.finetuning.freeze(0)
    for _ in range(2):
        model.eval()
        model.train()
        norms = {name: module for name, module in model.network.named_modules() if isinstance(module, _BatchNorm)}
        assert {name.partition(".")[0] for name, norm in norms.items() if norm.training} == {"layer4"}
        assert model.network.training
        assert model.network.get_submodule("fc").training


def test_dropout_of_frozen_stages_is_off_and_that_of_the_head_on() -> None:
    network = {**RESNET, "name": "test_convnext", "drop_rate": 0.5, "drop_path_rate": 0.5}
    model = classifier(network, finetune={"stages": 0})
    assert model.network.get_submodule("stages.3.blocks.0.drop_path").training
    model.finetuning.freeze(0)
    model.train()
    assert not model.network.get_submodule("stages.3.blocks.0.drop_path").training
    assert not model.network.get_submodule("head.norm").training
    assert model.network.get_submodule("head.drop").training


def test_statistics_of_a_norm_without_parameters_are_frozen_too() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, affine=False),
        nn.Flatten(), nn.Linear(4, 2), nn.BatchNorm1d(2, affine=False),
    )  # fmt: skip
    tuning = FineTuning(network, stages=1)
    tuning.freeze(0)
    assert [network[place].training for place in (1, 3, 6)] == [False, True, True]


def test_what_the_network_holds_fixed_stays_so() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    network[0].bias.requires_grad_(False)
    tuning = FineTuning(network, head_epochs=1)
    assert tuning.freeze(0)
    assert not network[0].weight.requires_grad
    assert tuning.freeze(1)
    assert network[0].weight.requires_grad
    assert not network[0].bias.requires_grad
    assert not tuning.freeze(2)


class Deep(nn.Module):
    """Ten stages of one layer."""

    def __init__(self, num_classes: int, in_chans: int, image_size: list[int]) -> None:
        super().__init__()
        self.features = nn.Sequential(*(nn.Conv2d(in_chans, in_chans, 1) for _ in range(10)), nn.Flatten())
        self.head = nn.Linear(in_chans * image_size[0] * image_size[1], num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.features(images))
        return logits


@pytest.mark.slow
def test_compiled_network_learns_of_each_change(tmp_path: Path) -> None:
    """More often than the eight times for which torch compiles one thing again."""
    slow = {"_target_": "torch.optim.SGD", "lr": 0.001, "momentum": 0.9}
    model = classifier({"_target_": "tests.training.test_finetune.Deep"}, finetune=GRADUAL, optimizer=slow)
    model.network.compile(backend="aot_eager", fullgraph=True)  # which refuses to give up
    epochs = fit(model, tmp_path, max_epochs=11)
    assert epochs == [tensors(model, frozen) for frozen in range(10, -1, -1)]


def test_each_change_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="classifier")
    model = classifier(finetune={**GRADUAL, "stages": 2})
    fit(model, tmp_path, max_epochs=4)
    lines = [record.getMessage() for record in caplog.records]
    assert [re.findall(r"epoch \d|[\d,]+ of [\d,]+", line) for line in lines] == [
        ["epoch 1", "795 of 1,367"],
        ["epoch 2", "1 of 3", "1,099 of 1,367"],
        ["epoch 3", "2 of 3", "1,251 of 1,367"],
    ]
    caplog.clear()
    fit(classifier(), tmp_path, max_epochs=1)
    assert not caplog.records


def test_curves_are_named_by_their_groups(tmp_path: Path) -> None:
    record = pl.callbacks.LearningRateMonitor("step")
    logger = pl.loggers.CSVLogger(tmp_path)
    fit(classifier(finetune={"backbone_lr": 0.1}), tmp_path, record, max_epochs=1, logger=logger)
    curves = {name: rates[0] for name, rates in record.lrs.items()}
    assert curves == pytest.approx({
        "lr-SGD/head": 0.05, "lr-SGD/head_no_decay": 0.05, "lr-SGD/backbone": 0.005, "lr-SGD/backbone_no_decay": 0.005,
    })  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [{"stages": 4}, {"stages": -1}, {"head_epochs": 0.5}, {"stage_epochs": "all"}, {"backbone_lr": 0.0},
     {"backbone_lr": "low"}, {"layer_decay": -0.5}],
)  # fmt: skip
def test_wrong_values(wrong: dict[str, Any]) -> None:
    [(key, value)] = wrong.items()
    with pytest.raises(UserError, match=rf"finetune\.{key}={value} must"):
        classifier(finetune=wrong)


def test_strategy_that_cannot_freeze(tmp_path: Path) -> None:
    trainer = runs.trainer(tmp_path, strategy=ModelParallelStrategy())
    with pytest.raises(UserError, match=r"finetune=full.* trainer\.strategy=ddp"):
        classifier(finetune={"stages": 0}).finetuning.prepare(trainer)
    classifier().finetuning.prepare(trainer)


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet", "test_mambaout"])
def test_networks_of_timm(name: str, tmp_path: Path) -> None:
    model = classifier({**RESNET, "name": name}, finetune={"stages": 0, "layer_decay": 0.8}, scheduler=None)
    [epoch] = fit(model, tmp_path, max_epochs=1)
    assert epoch == tensors(model, frozen=len(model.finetuning.stages))
