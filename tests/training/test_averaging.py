from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LambdaCallback, ModelCheckpoint
from pytorch_lightning.strategies import ModelParallelStrategy
from torch.nn import functional

from classifier.errors import UserError, as_typed
from classifier.training.averaging import TRAINING_WEIGHTS, WeightAverage
from classifier.training.checkpoints import BestCheckpoint
from classifier.training.stopping import LastCheckpoint
from tests.training import runs

Weights = dict[str, torch.Tensor]


class History(pl.Callback):
    """The training weights before the first and after each step of the optimiser."""

    def __init__(self) -> None:
        self.weights: list[Weights] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == len(self.weights):
            self.weights.append({name: value.clone() for name, value in pl_module.state_dict().items()})

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.on_train_start(trainer, pl_module)


def average(history: list[Weights], decay: float) -> Weights:
    """By hand, in double precision."""
    found = {name: value.double() for name, value in history[0].items()}
    for step, weights in enumerate(history[1:]):
        kept = min(decay, (1 + step) / (10 + step))
        for name, value in weights.items():
            found[name] = kept * found[name] + (1 - kept) * value if value.is_floating_point() else value
    return found


def same(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize(("decay", "accumulated"), [(0.3, 1), (0.999, 2)])
def test_average_is_that_by_hand(decay: float, accumulated: int, tmp_path: Path) -> None:
    history = History()
    callbacks = [WeightAverage(decay), history, LastCheckpoint(dirpath=tmp_path)]
    trainer = runs.trainer(tmp_path, callbacks, max_epochs=4, accumulate_grad_batches=accumulated)
    model = runs.make_classifier()
    trainer.fit(model, runs.loader(), runs.loader())

    checkpoint = torch.load(tmp_path / "last.ckpt")
    assert len(history.weights) == 1 + trainer.global_step == 1 + 4 * (3 if accumulated == 1 else 2)
    expected = average(history.weights, decay)
    for name, value in checkpoint["state_dict"].items():
        torch.testing.assert_close(value.double(), expected[name].double(), rtol=1e-5, atol=1e-6)
    assert same(checkpoint[TRAINING_WEIGHTS], history.weights[-1])
    assert not same(checkpoint["state_dict"], checkpoint[TRAINING_WEIGHTS])
    assert same(model.state_dict(), checkpoint["state_dict"]), "after the fit, the module has the average"


def test_training_does_not_notice(tmp_path: Path) -> None:
    plain, averaged = History(), History()
    for callbacks in ([plain], [WeightAverage(0.9), averaged]):
        model = runs.make_classifier()
        model.network.again = model.network.features  # weights with two names
        trainer = runs.trainer(tmp_path, callbacks, max_epochs=2, num_sanity_val_steps=1)
        trainer.fit(model, runs.loader(), runs.loader())
    assert all(same(*pair) for pair in zip(plain.weights, averaged.weights, strict=True))


@torch.no_grad()
def loss_of(weights: Weights) -> float:
    model = runs.make_classifier().eval()
    model.load_state_dict(weights)
    sums = [functional.cross_entropy(model(b["image"]), b["label"], reduction="sum").item() for b in runs.loader()]
    return sum(sums) / 12


def test_average_is_what_is_validated_tested_and_best(tmp_path: Path) -> None:
    best: Any = BestCheckpoint(dirpath=tmp_path, monitor="val/loss", mode="min")
    model = runs.make_classifier()
    trainer = runs.trainer(tmp_path, [WeightAverage(0.99), best], max_epochs=5)
    trainer.fit(model, runs.loader(), runs.loader())
    checkpoint, score = torch.load(tmp_path / "best.ckpt"), best.best_model_score.item()
    assert score == pytest.approx(loss_of(checkpoint["state_dict"]), rel=1e-5)
    assert score != pytest.approx(loss_of(checkpoint[TRAINING_WEIGHTS]), rel=1e-3)
    [tested] = trainer.test(model, runs.loader(), ckpt_path=tmp_path / "best.ckpt", weights_only=True, verbose=False)
    assert tested["test/loss"] == pytest.approx(score, rel=1e-5)


def test_checkpoint_is_the_same_at_each_moment(tmp_path: Path) -> None:
    """Within and after the last validation, and after the fit."""

    def save(name: str) -> Any:
        return lambda trainer, *_: trainer.save_checkpoint(tmp_path / f"{name}.ckpt")

    moments = LambdaCallback(on_validation_batch_end=save("within"), on_validation_end=save("validated"))
    trainer = runs.trainer(tmp_path, [WeightAverage(0.99), moments], max_epochs=2)
    trainer.fit(runs.make_classifier(), runs.loader(), runs.loader())
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    first, *others = [torch.load(tmp_path / f"{name}.ckpt") for name in ("within", "validated", "after")]
    assert all(same(first[key], other[key]) for other in others for key in ("state_dict", TRAINING_WEIGHTS))


def test_resumed_run_has_the_same_bits(tmp_path: Path) -> None:
    def fit(folder: Path, ckpt_path: Path | None = None) -> Any:
        keep = ModelCheckpoint(dirpath=folder, filename="{step}", save_top_k=-1, save_on_train_epoch_end=True)
        trainer = runs.trainer(tmp_path, [WeightAverage(0.99), keep], max_epochs=3)
        trainer.fit(runs.make_classifier(), runs.loader(), runs.loader(), ckpt_path=ckpt_path, weights_only=True)
        return torch.load(folder / "step=9.ckpt")

    whole = fit(tmp_path / "whole")
    for step in (3, 6):  # (the plain loader of these tests has no place within an epoch)
        resumed = fit(tmp_path / f"from {step}", tmp_path / "whole" / f"step={step}.ckpt")
        assert same(resumed["state_dict"], whole["state_dict"])
        assert same(resumed[TRAINING_WEIGHTS], whole[TRAINING_WEIGHTS])


def test_what_does_not_change_stays_to_the_bit(tmp_path: Path) -> None:
    model = runs.make_classifier(optimizer={"_target_": "torch.optim.SGD", "lr": 0.0})
    before = {name: value.clone() for name, value in model.named_parameters()}
    runs.trainer(tmp_path, [WeightAverage(0.05)], max_epochs=8).fit(model, runs.loader(), runs.loader())
    assert same(before, dict(model.named_parameters()))
    assert model.network.get_buffer("features.0.1.num_batches_tracked") == 24


@pytest.mark.parametrize("decay", [0, 1.5, "much", True])
def test_a_bad_decay(decay: Any) -> None:
    with pytest.raises(UserError, match=f"ema={as_typed(decay)} must"):
        WeightAverage(decay)


@pytest.mark.parametrize("setting", [{"precision": "bf16-true"}, {"strategy": ModelParallelStrategy()}])
def test_half_precision_and_divided_weights_are_refused(setting: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ema=null.* trainer\.precision=bf16-mixed trainer\.strategy=ddp"):
        WeightAverage(0.999).setup(runs.trainer(tmp_path, **setting), runs.make_classifier(), "fit")
