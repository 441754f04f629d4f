import itertools
import json
from pathlib import Path

import pytest
import timm
import torch
from pytorch_lightning.callbacks import LambdaCallback, ModelCheckpoint
from torch import nn
from torch.nn import functional
from torch.optim.lr_scheduler import ReduceLROnPlateau

from classifier.errors import UserError
from classifier.seeding import seed_place
from classifier.training.module import ImageClassifier
from classifier.training.task import CrossEntropy
from tests.training import runs

CROSS_ENTROPY = {"_target_": "classifier.training.task.CrossEntropy"}


def test_a_checkpoint_keeps_what_use_needs_and_loads_nothing(tmp_path: Path) -> None:
    file = tmp_path / "published.pth"
    torch.save(timm.create_model("resnet18").state_dict(), file)
    network = {"_target_": "classifier.models.timm_model", "name": "resnet18", "drop_rate": 0.25}
    model = runs.make_classifier(model={**network, "pretrained": True, "weights": str(file)})
    hparams = dict(model.hparams)
    assert json.loads(json.dumps(hparams)) == hparams
    assert hparams["model"] == {**network, "pretrained": False, "weights": None}
    assert set(hparams) == {"model", "classes", "preprocessing", "task"}
    file.unlink()
    opened = ImageClassifier.from_checkpoint({"hyper_parameters": hparams, "state_dict": model.state_dict()})
    torch.testing.assert_close(opened.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_a_batch_too_small_for_the_network_is_refused(tmp_path: Path) -> None:
    """BatchNorm over one image of one pixel; frozen, it takes one."""
    model = {"_target_": "classifier.models.ResNet9", "width": 4}
    with pytest.raises(UserError, match=r"data\.batch_size=2"):
        runs.trainer(tmp_path, max_epochs=1).fit(runs.make_classifier(model=model), runs.loader(batch_size=1))
    frozen = runs.make_classifier(model=model, finetune={"stages": 0})
    runs.trainer(tmp_path, max_epochs=1).fit(frozen, runs.loader(batch_size=1))


def test_a_checkpoint_builds_no_loss_and_no_optimiser(tmp_path: Path) -> None:
    """Whatever a stranger has added to the file."""
    trap = {"_target_": "pathlib.Path.touch", "self": str(tmp_path / "sprung")}
    model = runs.make_classifier()
    planted = {**model.hparams, "loss": trap, "optimizer": trap, "scheduler": trap, "trusted": True}
    torch.save({"hyper_parameters": planted, "state_dict": model.state_dict()}, tmp_path / "trap.ckpt")
    opened = ImageClassifier.load_from_checkpoint(tmp_path / "trap.ckpt")
    assert (opened.optimizer_config, opened.scheduler_config, type(opened.task.loss)) == (None, None, CrossEntropy)
    torch.save({"hyper_parameters": {**planted, "model": trap}, "state_dict": {}}, tmp_path / "trap.ckpt")
    with pytest.raises(UserError, match=r"model\._target_=pathlib\.Path\.touch"):
        ImageClassifier.load_from_checkpoint(tmp_path / "trap.ckpt")
    assert not (tmp_path / "sprung").exists()


def test_weights_that_reach_into_each_other_are_refused() -> None:
    """They would claim more than the file has."""
    model = runs.make_classifier()
    checkpoint = {"hyper_parameters": dict(model.hparams), "state_dict": model.state_dict()}
    ImageClassifier.from_checkpoint(checkpoint)
    held = torch.zeros(2 * max(value.nbytes for value in model.state_dict().values())).untyped_storage()
    for place, (name, value) in enumerate(model.state_dict().items()):
        own = held[8 * place : 8 * place + value.nbytes]
        checkpoint["state_dict"][name] = torch.empty(0, dtype=value.dtype).set_(own, 0, value.shape, value.stride())
    with pytest.raises(UserError, match=r"\d+ bytes"):
        ImageClassifier.from_checkpoint(checkpoint)


@torch.no_grad()
def test_flip_is_the_mean_of_two_probabilities(tmp_path: Path) -> None:
    model = runs.make_classifier().eval()
    images = [batch["image"] for batch in runs.loader()]
    by_hand = [(model(image).softmax(1) + model(image.flip(3)).softmax(1)) / 2 for image in images]
    losses = [functional.nll_loss(p.log(), batch["label"]) for p, batch in zip(by_hand, runs.loader(), strict=True)]
    model.flip = True
    trainer = runs.trainer(tmp_path)
    [tested] = trainer.test(model, runs.loader(), verbose=False)
    predictions = trainer.predict(model, runs.loader())
    torch.testing.assert_close(predictions, by_hand)
    assert tested["test/loss"] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


def test_losses_equal_those_of_torch(tmp_path: Path) -> None:
    """Over batches of 4, 4 and 2; validation is not smoothed."""
    still = {"_target_": "torch.optim.SGD", "lr": 0.0}
    loss = {**CROSS_ENTROPY, "label_smoothing": 0.2}
    model = runs.make_classifier(model={**runs.CNN, "drop_rate": 0.0}, optimizer=still, loss=loss)
    loader = runs.loader(count=10)

    @torch.no_grad()
    def mean_loss(smoothing: float) -> float:
        criterion = nn.CrossEntropyLoss(label_smoothing=smoothing, reduction="sum")
        return float(sum(criterion(model(batch["image"]), batch["label"]).item() for batch in loader) / 10)

    expected = mean_loss(0.2)
    trainer = runs.trainer(tmp_path, max_epochs=1)
    trainer.fit(model, loader, loader)
    model.eval()
    assert trainer.callback_metrics["train/loss"].item() == pytest.approx(expected, rel=1e-5)
    assert trainer.callback_metrics["val/loss"].item() == pytest.approx(mean_loss(0.0), rel=1e-5)


@pytest.mark.parametrize("seed", [0, 1])
def test_draw_depends_on_the_place_in_the_run_alone(seed: int, tmp_path: Path) -> None:
    """What dropout would draw in each training batch, whatever was drawn between the batches."""
    drawn: list[float] = []
    model = runs.make_classifier(seed=seed)
    model.network.register_forward_pre_hook(lambda network, _: drawn.append(torch.rand(1).item()))
    between = LambdaCallback(on_train_batch_end=lambda *_: torch.rand(7))
    runs.trainer(tmp_path, [between], max_epochs=2).fit(model, runs.loader())
    expected = []
    for epoch, batch in itertools.product(range(2), range(3)):
        seed_place(seed, epoch, batch, 0)
        expected.append(torch.rand(1).item())
    assert drawn == expected


@pytest.mark.parametrize("num_classes", [5, 6])
def test_metric_names_are_what_a_run_logs(num_classes: int, tmp_path: Path) -> None:
    model = runs.make_classifier(num_classes=num_classes)
    trainer = runs.trainer(tmp_path, max_epochs=1)
    trainer.fit(model, runs.loader(num_classes=num_classes), runs.loader(num_classes=num_classes))
    assert set(trainer.callback_metrics) - {"train/loss_step"} == model.task.metric_names


def test_plateau_steps_before_the_checkpoint_of_its_epoch(tmp_path: Path) -> None:
    # the loss falls, which `max` takes for a plateau
    target = {"_target_": "classifier.training.schedules.plateau", "monitor": "val/loss"}
    plateau = {**target, "mode": "max", "factor": 0.5, "patience": 0}
    every = ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    losses: list[float] = []
    record = LambdaCallback(on_validation_end=lambda run, _: losses.append(run.callback_metrics["val/loss"].item()))
    model = runs.make_classifier(scheduler=plateau)
    runs.trainer(tmp_path, [every, record], max_epochs=4).fit(model, runs.loader(), runs.loader())

    reference = ReduceLROnPlateau(torch.optim.SGD([nn.Parameter(torch.zeros(1))], runs.ADAMW["lr"]), "max", 0.5, 0)
    for epoch, loss in enumerate(losses):
        reference.step(loss)
        checkpoint = torch.load(tmp_path / f"epoch={epoch}.ckpt")
        [state] = checkpoint["lr_schedulers"]
        assert (state["last_epoch"], state["best"]) == (epoch + 1, pytest.approx(reference.best))
        rate = reference.optimizer.param_groups[0]["lr"]
        assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(rate)
    assert rate < runs.ADAMW["lr"]


def test_a_loss_of_nan_ends_the_run(tmp_path: Path) -> None:
    wild = {"_target_": "torch.optim.SGD", "lr": 1e30}
    trainer = runs.trainer(tmp_path, max_epochs=3)
    with pytest.raises(UserError, match=r"nan.* optimizer\.lr"):
        trainer.fit(runs.make_classifier(optimizer=wild, model={**runs.CNN, "batch_norm": False}), runs.loader())
