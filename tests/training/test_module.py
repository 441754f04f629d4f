import json
from pathlib import Path
from typing import Any

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

SCHEDULES = "classifier.training.schedules"
CROSS_ENTROPY = {"_target_": "classifier.training.task.CrossEntropy"}


def test_a_checkpoint_keeps_what_use_needs_and_loads_nothing(tmp_path: Path) -> None:
    file = tmp_path / "published.pth"
    torch.save(timm.create_model("resnet18").state_dict(), file)
    network = {"_target_": "classifier.models.timm_model", "name": "resnet18", "drop_rate": 0.25}
    model = runs.make_classifier(
        model={**network, "pretrained": True, "weights": str(file)}, scheduler={"_target_": f"{SCHEDULES}.cosine"}
    )
    hparams = dict(model.hparams)
    assert json.loads(json.dumps(hparams)) == hparams
    assert hparams["model"] == {**network, "pretrained": False, "weights": None}
    assert set(hparams) == {"model", "classes", "preprocessing", "task"}
    file.unlink()
    opened = ImageClassifier.from_checkpoint({"hyper_parameters": hparams, "state_dict": model.state_dict()})
    assert all(torch.equal(value, opened.state_dict()[name]) for name, value in model.state_dict().items())


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


def test_forward_takes_raw_pixels() -> None:
    model = runs.make_classifier(channels=3).eval()
    images = runs.random_images(5, channels=3)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    expected = model.network((images.float() / 255 - mean) / std)
    torch.testing.assert_close(model(images), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_flip_is_the_mean_of_two_probabilities(tmp_path: Path) -> None:
    model = runs.make_classifier().eval()
    by_hand = [
        (model(batch["image"]).softmax(1) + model(batch["image"].flip(3)).softmax(1)) / 2 for batch in runs.loader()
    ]
    losses = [functional.nll_loss(p.log(), batch["label"]) for p, batch in zip(by_hand, runs.loader(), strict=True)]
    model.flip = True
    trainer = runs.trainer(tmp_path)
    [tested] = trainer.test(model, runs.loader(), verbose=False)
    predictions = trainer.predict(model, runs.loader())
    torch.testing.assert_close(predictions, by_hand)
    assert tested["test/loss"] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
    assert tested["test/acc"] == pytest.approx(
        (torch.cat(by_hand).argmax(1) == torch.arange(12) % 3).float().mean().item()
    )


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_training_loss_equals_that_of_torch(label_smoothing: float, tmp_path: Path) -> None:
    network = {**runs.CNN, "drop_rate": 0.0}
    still = {"_target_": "torch.optim.SGD", "lr": 0.0}
    model = runs.make_classifier(
        model=network, optimizer=still, loss={**CROSS_ENTROPY, "label_smoothing": label_smoothing}
    )
    loader = runs.loader(count=10)  # batches of 4, 4 and 2

    criterion = nn.CrossEntropyLoss(label_smoothing=label_smoothing, reduction="sum")
    with torch.no_grad():
        sums = [criterion(model.train()(batch["image"]), batch["label"]).item() for batch in loader]
    trainer = runs.trainer(tmp_path, max_epochs=1)
    trainer.fit(model, loader, loader)

    assert trainer.callback_metrics["train/loss"].item() == pytest.approx(sum(sums) / 10, rel=1e-5)
    with torch.no_grad():  # validation is not smoothed
        plain = [functional.cross_entropy(model.eval()(b["image"]), b["label"], reduction="sum").item() for b in loader]
    assert trainer.callback_metrics["val/loss"].item() == pytest.approx(sum(plain) / 10, rel=1e-5)


def test_model_learns_a_small_batch_by_heart(tmp_path: Path) -> None:
    rate = {"_target_": "torch.optim.AdamW", "lr": 0.03}
    model = runs.make_classifier(optimizer=rate, model={**runs.CNN, "drop_rate": 0.0})
    loader = runs.loader(count=12, batch_size=12)
    trainer = runs.trainer(tmp_path, max_epochs=60)
    [before] = trainer.validate(model, loader, verbose=False)
    trainer.fit(model, loader)
    [after] = trainer.validate(model, loader, verbose=False)
    assert before["val/acc"] < 0.9
    assert after["val/acc"] == 1.0
    assert after["val/loss"] < 0.1


@pytest.mark.parametrize("mix", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
@pytest.mark.parametrize(("batch_size", "sizes"), [(1, [1] * 15), (7, [7, 7, 1])])
def test_mixing_trains_at_any_batch_size(
    batch_size: int, sizes: list[int], mix: dict[str, float], tmp_path: Path
) -> None:
    """Together with smoothing and class weights; the last batch is a single image, which mixes with itself."""
    loss = {**CROSS_ENTROPY, "label_smoothing": 0.1, "class_weight": [0.5, 1.0, 2.0]}
    model = runs.make_classifier(mix=mix, loss=loss)
    targets: list[torch.Tensor] = []
    model.task.loss.register_forward_pre_hook(lambda _, inputs: targets.append(inputs[1]))
    before = [value.clone() for value in model.parameters()]
    runs.trainer(tmp_path, max_epochs=1).fit(model, runs.loader(count=15, batch_size=batch_size), runs.loader())
    assert [len(target) for target in targets] == sizes
    shares = torch.cat(targets)
    torch.testing.assert_close(shares.sum(1), torch.ones(15))
    assert (shares.max(1).values < 0.999).any() == (batch_size > 1)
    assert all(not torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))


def draws(run_dir: Path, seed: int = 0, disturb: bool = False) -> list[float]:
    """What dropout would draw in each training batch, with a disturbance between the batches or without."""
    drawn: list[float] = []

    def note(network: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if network.training:
            with torch.random.fork_rng():
                drawn.append(torch.rand(1).item())

    model = runs.make_classifier(seed=seed)
    model.network.register_forward_pre_hook(note)
    between = LambdaCallback(on_train_batch_end=lambda *_: torch.rand(7) if disturb else None)
    runs.trainer(run_dir, [between], max_epochs=2).fit(model, runs.loader(), runs.loader())
    return drawn


def test_draw_depends_on_the_place_in_the_run_alone(tmp_path: Path) -> None:
    drawn = draws(tmp_path)
    assert len(set(drawn)) == 6  # 2 epochs of 3 batches
    assert draws(tmp_path, disturb=True) == drawn
    assert not set(draws(tmp_path, seed=1)) & set(drawn)

    def expected(epoch: int, batch: int, rank: int) -> float:
        seed_place(0, epoch, batch, rank)
        return torch.rand(1).item()

    places = [(epoch, batch) for epoch in range(2) for batch in range(3)]
    assert drawn == [expected(*place, 0) for place in places]
    assert not {expected(*place, 1) for place in places} & set(drawn)


@pytest.mark.parametrize("num_classes", [3, 5, 6])
def test_metric_names_are_what_a_run_logs(num_classes: int, tmp_path: Path) -> None:
    model = runs.make_classifier(num_classes=num_classes)
    trainer = runs.trainer(tmp_path, max_epochs=1)
    trainer.fit(model, runs.loader(num_classes=num_classes), runs.loader(num_classes=num_classes))
    assert set(trainer.callback_metrics) - {"train/loss_step"} == model.task.metric_names


def test_plateau_steps_before_the_checkpoint_of_its_epoch(tmp_path: Path) -> None:
    # the loss falls, which `max` takes for a plateau
    plateau = {"_target_": f"{SCHEDULES}.plateau", "monitor": "val/loss", "mode": "max", "factor": 0.5, "patience": 0}
    every = ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    losses: list[float] = []
    record = LambdaCallback(
        on_validation_end=lambda trainer, _: losses.append(trainer.callback_metrics["val/loss"].item())
    )
    model = runs.make_classifier(scheduler=plateau)
    runs.trainer(tmp_path, [every, record], max_epochs=4).fit(model, runs.loader(), runs.loader())

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], runs.ADAMW["lr"])
    reference = ReduceLROnPlateau(optimizer, "max", 0.5, 0)
    for epoch, loss in enumerate(losses):
        reference.step(loss)
        checkpoint = torch.load(tmp_path / f"epoch={epoch}.ckpt")
        [state] = checkpoint["lr_schedulers"]
        assert state["last_epoch"] == epoch + 1
        assert state["best"] == pytest.approx(reference.best)
        rate = reference.optimizer.param_groups[0]["lr"]
        assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(rate)
    assert rate < runs.ADAMW["lr"]


@pytest.mark.parametrize("limits", [{"max_steps": 13}, {"max_epochs": 10, "max_steps": 13}, {"max_epochs": 4}])
def test_epochs_of_a_schedule_are_those_of_the_data(limits: dict[str, int], tmp_path: Path) -> None:
    """A warm-up of one epoch takes the 3 batches of one epoch, however the run is limited."""
    rates: list[float] = []
    record = LambdaCallback(
        on_train_batch_start=lambda trainer, *_: rates.append(trainer.optimizers[0].param_groups[0]["lr"])
    )
    model = runs.make_classifier(scheduler={"_target_": f"{SCHEDULES}.cosine", "warmup_epochs": 1})
    runs.trainer(tmp_path, [record], **limits).fit(model, runs.loader(), runs.loader())
    assert rates[:4] == pytest.approx([0.0025, 0.005, 0.0075, 0.01])


def test_a_loss_of_nan_ends_the_run(tmp_path: Path) -> None:
    wild = {"_target_": "torch.optim.SGD", "lr": 1e30}
    trainer = runs.trainer(tmp_path, max_epochs=3)
    with pytest.raises(UserError, match=r"nan.* optimizer\.lr"):
        trainer.fit(runs.make_classifier(optimizer=wild, model={**runs.CNN, "batch_norm": False}), runs.loader())


def test_results_so_far_are_those_of_the_epoch_in_progress(tmp_path: Path) -> None:
    found: list[dict[str, float]] = []

    def look(trainer: Any, model: Any) -> None:
        found.append(model.train_results())

    trainer = runs.trainer(tmp_path, [LambdaCallback(on_validation_end=look, on_train_end=look)], max_epochs=1)
    trainer.fit(runs.make_classifier(), runs.loader(), runs.loader())
    logged = {name: value.item() for name, value in trainer.callback_metrics.items() if name in found[0]}
    assert found == [logged, {}]
    assert set(logged) == {"train/loss", "train/acc"}
