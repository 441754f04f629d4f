"""Ways to train. What they train is evaluated by its checkpoint alone, to the numbers of the training."""

import re
from pathlib import Path

import pytest
import torch

from classifier.training.averaging import TRAINING_WEIGHTS
from tests import generate
from tests.verbs.command import BARE, evaluated, metrics, of_test, refuse, rows, runs, succeed, weights

AVERAGE = ("model=simple_cnn_64", "model.head=avg")  # takes images of any size
VIT = ("model=timm", "model.name=vit_tiny_patch16_224", "model.pretrained=false")


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("finetune=head",), marks=pytest.mark.slow),
        pytest.param(
            ("finetune=gradual", "finetune.head_epochs=1", "finetune.layer_decay=0.5", "scheduler=null"),
            marks=pytest.mark.slow,
        ),
        ("ema=0.99",),
        ("mix.mixup=0.4", "mix.cutmix=1.0", "loss.label_smoothing=0.1", "optimizer=sgd", "scheduler=one_cycle"),
        pytest.param(("data.train_size=[[1,16],[2,24]]", *AVERAGE), marks=pytest.mark.slow),
        pytest.param(
            (
                "trainer.check_val_every_n_epoch=2",
                "scheduler=plateau",
                "logger.csv=null",
                "callbacks.early_stopping=null",
            ),
            marks=pytest.mark.slow,
        ),
        pytest.param((*VIT, "data.image_size=[32,48]", "debug=limit"), marks=pytest.mark.slow),
    ],
    ids=lambda options: options[0],
)
def test_an_evaluation_needs_nothing_of_the_training(options: tuple[str, ...], folder: Path, tmp_path: Path) -> None:
    succeed("train", *BARE, "trainer.max_epochs=2", *options, f"data.root={folder}", "run_dir=run", cwd=tmp_path)
    trained = metrics(tmp_path / "run")
    limits = [f"trainer.limit_test_batches={number}" for number in (10,) if "debug=limit" in options]
    for split in ("test", "val")[: 2 - len(limits)]:
        found = evaluated(tmp_path, f"split={split}", *limits)
        for name in ("loss", "acc"):
            assert found[f"{split}/{name}"] == pytest.approx(trained[f"{split}/{name}"], rel=1e-5), split


def test_averaged_weights(folder: Path, tmp_path: Path) -> None:
    result = succeed("train", *BARE, f"data.root={folder}", "ema=0.9", "run_dir=run", cwd=tmp_path)
    assert "warning" not in result.err.lower()
    for name in ("best", "last"):
        content = torch.load(tmp_path / "run" / "checkpoints" / f"{name}.ckpt", weights_only=True)
        average, training = content["state_dict"], content[TRAINING_WEIGHTS]
        assert any(not torch.equal(average[key], training[key]) for key in average)
    assert "ema=" in refuse("train", "resume=run", "ema=null", "trainer.max_epochs=3", cwd=tmp_path)


@pytest.mark.slow
def test_head_on_the_features_of_another_run(folder: Path, tmp_path: Path) -> None:
    """The features stay to the bit, BatchNorm's statistics among them; a head for other classes is begun anew."""
    photos = generate.image_folder(tmp_path / "photos", ("red", "blue"))
    network = (*BARE, "model.batch_norm=true")
    succeed("train", *network, f"data.root={folder}", "run_dir=first", cwd=tmp_path)
    started = ("finetune=head", "init_from=first/checkpoints/last.ckpt", "seed=1", f"data.root={photos}")
    succeed("train", *network, *started, "run_dir=run", cwd=tmp_path)
    before, after = weights(tmp_path / "first"), weights(tmp_path / "run")
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {name.split(".")[1] for name in before if name not in same} == {"head"}
    assert after["network.head.3.weight"].shape == (2, 100)


def test_features_that_nothing_trained_are_warned_of(folder: Path, tmp_path: Path) -> None:
    short = ("trainer.limit_train_batches=1", "test=false")
    result = succeed("train", *BARE, *short, "finetune=head", f"data.root={folder}", cwd=tmp_path)
    assert "model.pretrained=true" in result.out + result.err
    whole, head = (int(text.replace(",", "")) for text in re.findall(r"parameters: ([\d,]+)", result.out))
    assert whole > head > 0


def test_optimizer_of_timm(folder: Path, tmp_path: Path) -> None:
    options = ("optimizer=timm", "optimizer.name=lion", "optimizer.arguments={caution: true}", "scheduler=constant")
    succeed("train", *BARE, *options, f"data.root={folder}", "run_dir=run", cwd=tmp_path)
    content = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    groups = content["optimizer_states"][0]["param_groups"]
    assert [(group["name"], group["weight_decay"], group["caution"]) for group in groups] == [
        ("network", 0.05, True),
        ("network_no_decay", 0.0, True),
    ]


def test_balanced_class_weights_are_of_the_training_images(tmp_path: Path) -> None:
    """Which are 32 and 8: they weigh as if there were 20 of each."""
    for number, (name, count) in enumerate((("blue", 40), ("red", 10))):
        generate.image_folder(tmp_path / "photos", [name], count, seed=100 * number)
    common = (*BARE, "data.root=photos", "data.test_fraction=0.2", "data.val_fraction=0",
              "monitor=train/loss", "mode=min")  # fmt: skip
    for name, value in (("balanced", "balanced"), ("typed", "[0.625,2.5]")):
        succeed("train", *common, f"run_dir={name}", f"loss.class_weight={value}", cwd=tmp_path)
    assert metrics(tmp_path / "balanced")["train/loss"] == metrics(tmp_path / "typed")["train/loss"]


@pytest.mark.slow
def test_bf16(folder: Path, tmp_path: Path) -> None:
    """Evaluated in the precision of the training, and in another one where that is asked for."""
    succeed("train", *BARE, f"data.root={folder}", "trainer.precision=bf16-mixed", "run_dir=run", cwd=tmp_path)
    trained = metrics(tmp_path / "run")
    assert of_test(evaluated(tmp_path)) == of_test(trained)
    assert evaluated(tmp_path, "trainer.precision=32-true")["test/loss"] != trained["test/loss"]


def test_the_official_split_of_stanford_dogs(dogs: Path, tmp_path: Path) -> None:
    options = ("experiment=dogs_cnn64", *BARE[2:], f"data.root={dogs}", "data.image_size=64", "data.batch_size=4")
    succeed("train", *options, "run_dir=run", cwd=tmp_path)
    assert len({row["path"] for row in rows(tmp_path / "run" / "split.csv") if row["split"] == "test"}) == 9


@pytest.mark.parametrize(
    ("typed", "use"),
    [
        ("finetune=haed", "finetune=haed head"),
        ("finetune.layers=3", "finetune.layers"),
        ("finetune.stages=3", "finetune.stages=3 2"),
        ("optimizer=timm optimizer.name=lamd", "optimizer.name=lamd lamb"),
        ("trainer.max_epochs=-1 trainer.max_time=00:00:01:00 scheduler=one_cycle", "scheduler=cosine"),
        ("trainer.max_epochs=-1", "trainer.max_epochs= trainer.max_time="),
        ("ema=2", "ema=2"),
        ("ema=yes", "ema=yes"),
        ("data.train_size=16", "data.train_size=null"),
        ("data.train_size=16 " + " ".join(VIT), "data.train_size=null"),
        (f"data.train_size=28 augment=shift_flip {' '.join(AVERAGE)}", "32x32 data.train_size"),
    ],
)
def test_wrong_input(typed: str, use: str, folder: Path, tmp_path: Path) -> None:
    message = refuse("train", *BARE, *typed.split(), f"data.root={folder}", cwd=tmp_path)
    assert [part for part in use.split() if part not in message] == []
    assert runs(tmp_path) == []
