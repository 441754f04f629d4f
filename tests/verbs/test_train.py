"""Training, from the command line to the run directory."""

import csv
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from classifier.training import ImageClassifier
from tests import generate
from tests.verbs.command import QUICK, REPOSITORY, metrics, run, runs

FOLDER = ("experiment=folder_cnn", "model=simple_cnn", *QUICK)


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory of two epochs."""
    cwd = tmp_path_factory.mktemp("trained")
    result = run("train", *FOLDER, f"data.root={folder}", "trainer.max_epochs=2", cwd=cwd)
    assert result.code == 0, result.err
    (run_dir,) = runs(cwd / "logs")
    return run_dir


def test_run_directory(trained: Path) -> None:
    assert trained.parent.name == "folder_cnn"
    names = {path.name for path in trained.iterdir() if not path.name.startswith(("events.out", "git_"))}
    assert names == {"checkpoints", "config.yaml", "metrics.csv", "metrics.json", "split.csv", "starts.jsonl"}
    assert {path.name for path in (trained / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["trainer"]["max_epochs"] == 2
    assert "${" not in (trained / "config.yaml").read_text()


def test_metrics_files(trained: Path) -> None:
    found = metrics(trained)
    expected = {f"{split}/{name}" for split in ("train", "val", "test") for name in ("loss", "acc")}
    assert set(found) == expected | {"val/f1", "test/f1", "epoch", "best_epoch", "global_step", "fit_seconds"}
    assert found["epoch"] == 2
    assert found["global_step"] == 2 * 6  # 42 images in batches of 8
    with (trained / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows[:2]] == ["0", "1"]
    assert all(row["train/loss"] and row["val/acc"] and row["train/images_per_second"] for row in rows[:2])
    best = rows[int(found["best_epoch"]) - 1]  # of training too, not of the epoch before
    for name in ("train/loss", "train/acc", "val/loss", "val/acc"):
        assert float(best[name]) == pytest.approx(found[name], rel=1e-4)


@pytest.mark.parametrize(("speed", "precision"), [("fast", "bf16-mixed"), ("default", "32-true")])
def test_speed_is_chosen_for_an_evaluation_too(speed: str, precision: str, trained: Path) -> None:
    shown = run("eval", f"ckpt_path={trained}", f"speed={speed}", "--cfg", "job", cwd=trained)
    assert f"precision: {precision}" in shown.out


def test_checkpoint_is_self_contained(trained: Path) -> None:
    """A fresh process opens it as plain data, without this project and without code in it."""
    path = trained / "checkpoints" / "best.ckpt"
    script = (
        "import sys, torch; c = torch.load(sys.argv[1], weights_only=True); "
        "assert 'classifier' not in sys.modules; r = c['run']; "
        "print(c['hyper_parameters']['classes'], r['config']['data']['batch_size'], len(r['data_fingerprint']), "
        "'val/acc' in r['metrics'], r['versions']['torch'] == torch.__version__)"
    )
    output = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "['blue', 'green', 'red'] 8 64 True True"
    model = ImageClassifier.load_from_checkpoint(path)
    assert model.classes == ("blue", "green", "red")
    assert model(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, 3)


def test_it_learns(folder: Path, tmp_path: Path) -> None:
    result = run("train", *FOLDER, f"data.root={folder}", "trainer.max_epochs=4", "run_dir=run", cwd=tmp_path)
    assert result.code == 0, result.err
    assert metrics(tmp_path / "run")["test/acc"] == 1.0


@pytest.mark.parametrize("workers", [0, 2])
def test_same_seed_same_numbers(workers: int, trained: Path, folder: Path, tmp_path: Path) -> None:
    arguments = (*FOLDER, f"data.root={folder}", "trainer.max_epochs=2", f"data.num_workers={workers}")
    assert run("train", *arguments, "run_dir=again", cwd=tmp_path).code == 0
    found, expected = metrics(tmp_path / "again"), metrics(trained)
    del found["fit_seconds"], expected["fit_seconds"]
    assert found == expected


def test_another_seed_other_weights_same_split(trained: Path, folder: Path, tmp_path: Path) -> None:
    run("train", *FOLDER, f"data.root={folder}", "seed=1", "run_dir=other", cwd=tmp_path)
    assert metrics(tmp_path / "other")["train/loss"] != metrics(trained)["train/loss"]
    assert (tmp_path / "other" / "split.csv").read_text() == (trained / "split.csv").read_text()


def test_multirun(folder: Path, tmp_path: Path) -> None:
    result = run("train", "-m", *FOLDER, f"data.root={folder}", "optimizer.lr=0.001,0.003", cwd=tmp_path)
    assert result.code == 0, result.err
    (sweep,) = (tmp_path / "logs" / "folder_cnn").iterdir()
    assert sweep.name.startswith("multirun_")
    rates = [yaml.safe_load((sweep / job / "config.yaml").read_text())["optimizer"]["lr"] for job in ("0", "1")]
    assert rates == [0.001, 0.003]
    assert len(runs(tmp_path)) == 2


@pytest.mark.parametrize(
    ("pattern", "folds"), [(r"(\d)\.", ("data.fold=0",)), (r"^([^_]+)\.jpg", ("data.fold=0,1", "-m")), (r"[0-9]\.", ())]
)
def test_groups_by_a_regular_expression(pattern: str, folds: tuple[str, ...], folder: Path, tmp_path: Path) -> None:
    groups = (f"data.group_pattern={pattern}", "data.batch_size=4", *folds)
    result = run("train", *FOLDER, f"data.root={folder}", *groups, cwd=tmp_path)
    assert result.code == 0, result.err
    assert runs(tmp_path)
    for run_dir in runs(tmp_path):
        sides: dict[str, set[str]] = {}
        for row in csv.DictReader((run_dir / "split.csv").read_text().splitlines()):
            found = re.search(pattern, row["path"])
            assert found is not None
            sides.setdefault(found[found.re.groups], set()).add(row["split"])
        assert all("test" not in side or side == {"test"} for side in sides.values()), sides
        assert {"test"} in sides.values()


def test_several_runs_in_one_second(folder: Path, tmp_path: Path) -> None:
    for _ in range(3):
        assert run("train", *FOLDER, f"data.root={folder}", "debug=limit", "name=quick", cwd=tmp_path).code == 0
    assert len(runs(tmp_path / "logs" / "debug" / "quick")) == 3


def test_switches(folder: Path, tmp_path: Path) -> None:
    """Loggers, callbacks and the test can be switched off; plateau takes validations that are not each epoch's."""
    off = ("logger.tensorboard=null", "logger.csv=null", "callbacks.early_stopping=null", "test=false", "debug=null")
    arguments = (*off, "scheduler=plateau", "trainer.check_val_every_n_epoch=2", "trainer.max_epochs=3", "run_dir=run")
    result = run("train", *FOLDER, f"data.root={folder}", *arguments, cwd=tmp_path)
    assert result.code == 0, result.err
    assert "test/acc" not in metrics(tmp_path / "run")
    assert "val/acc" in metrics(tmp_path / "run")


def test_the_default_experiment_is_for_its_own_data(folder: Path, tmp_path: Path) -> None:
    arguments = (
        "data=folder",
        f"data.root={folder}",
        "model=simple_cnn_64",
        "trainer.max_epochs=1",
        "data.image_size=32",
    )
    assert run("train", *arguments, "data.num_workers=0", "data.batch_size=8", cwd=tmp_path).code == 0
    (run_dir,) = runs(tmp_path / "logs")
    assert run_dir.parent.name == "folder"
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert config["optimizer"]["lr"] == 0.001
    assert config["augment"]["transforms"] == {}


def test_the_step_s_loss_is_the_step_s(folder: Path, tmp_path: Path) -> None:
    """What TensorBoard shows at step 3 is the loss of the batch that led there, in an epoch of one batch each."""
    arguments = ("run_dir=run", "trainer.max_epochs=4", "data.batch_size=32", "data.drop_last=true")
    each = ("trainer.log_every_n_steps=1", "callbacks.early_stopping=null")
    assert run("train", *FOLDER, f"data.root={folder}", *arguments, *each, cwd=tmp_path).code == 0
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    steps = [(event.step, event.value) for event in events.Scalars("train/loss_step")]
    epochs = [event.value for event in events.Scalars("train/loss")]
    assert [step for step, _ in steps] == [0, 1, 2, 3]
    assert [value for _, value in steps] == pytest.approx(epochs, rel=1e-5)


@pytest.mark.parametrize("name", ["fast_dev_run", "overfit", "profiler"])
def test_debug_presets(name: str, folder: Path, tmp_path: Path) -> None:
    arguments = (f"debug={name}", "data.batch_size=4", "trainer.max_epochs=2")
    result = run("train", *FOLDER, f"data.root={folder}", *arguments, cwd=tmp_path)
    assert result.code == 0, result.err
    assert bool(runs(tmp_path)) == (name != "fast_dev_run")


@pytest.mark.parametrize("scheduler", ["cosine", "one_cycle", "step", "plateau", "null"])
@pytest.mark.parametrize("optimizer", ["sgd"])
def test_schedules(scheduler: str, optimizer: str, folder: Path, tmp_path: Path) -> None:
    arguments = (f"scheduler={scheduler}", f"optimizer={optimizer}", "run_dir=run", "trainer.max_epochs=2")
    result = run("train", *FOLDER, f"data.root={folder}", *arguments, cwd=tmp_path)
    assert result.code == 0, result.err


def test_bf16_on_the_cpu(folder: Path, tmp_path: Path) -> None:
    arguments = ("trainer.precision=bf16-mixed", "trainer.max_epochs=4", "run_dir=run")
    assert run("train", *FOLDER, f"data.root={folder}", *arguments, cwd=tmp_path).code == 0
    trained = metrics(tmp_path / "run")
    assert trained["test/acc"] > 0.9
    # evaluated in the precision of the training, and in another one where that is asked for
    for extra, same in ((), True), (("trainer.precision=32-true",), False):
        assert run("eval", "ckpt_path=run", "trainer=cpu", *extra, "output_dir=out", cwd=tmp_path).code == 0
        assert (metrics(tmp_path / "out")["test/loss"] == trained["test/loss"]) == same


def test_vit_at_another_size(folder: Path, tmp_path: Path) -> None:
    arguments = ("model=timm", "model.name=vit_tiny_patch16_224", "model.pretrained=false", "data.image_size=[32,48]")
    result = run("train", *FOLDER, f"data.root={folder}", *arguments, "debug=limit", cwd=tmp_path)
    assert result.code == 0, result.err


def test_dogs(dogs: Path, tmp_path: Path) -> None:
    arguments = ("experiment=dogs_cnn64", *QUICK, f"data.root={dogs}", "data.image_size=64", "data.batch_size=4")
    result = run("train", *arguments, "run_dir=run", cwd=tmp_path)
    assert result.code == 0, result.err
    with (tmp_path / "run" / "split.csv").open() as file:
        tested = {row["path"] for row in csv.DictReader(file) if row["split"] == "test"}
    assert len(tested) == 9


def test_help_is_fast_and_does_without_torch(tmp_path: Path) -> None:
    def seconds(*command: str) -> float:
        times = []
        for _ in range(3):
            start = time.monotonic()
            subprocess.run([sys.executable, *command], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
            times.append(time.monotonic() - start)
        return min(times)

    script = str(REPOSITORY / "src" / "train.py")
    assert seconds(script, "--help") < 3 * seconds("-c", "import hydra")
    loaded = subprocess.run(
        [sys.executable, "-X", "importtime", script, "--help"], capture_output=True, text=True, check=True
    )
    assert "trainer:" in loaded.stdout
    assert " torch\n" not in loaded.stderr
    assert list(tmp_path.iterdir()) == []


def test_annotation_crops_pay(tmp_path: Path) -> None:
    """Digits at random places on clutter: with their boxes they are easy, without hard to find."""
    generate.cluttered_digits(tmp_path / "set", count=700)
    network = ("augment=none", "data.channels=1", "data.batch_size=32", "trainer.max_epochs=8", "optimizer.lr=0.002")
    common = (*FOLDER, *network)
    assert run("train", *common, "data=annotation_crop", "data.root=set", "run_dir=boxes", cwd=tmp_path).code == 0
    assert run("train", *common, "data=folder", "data.root=set/images", "run_dir=whole", cwd=tmp_path).code == 0
    boxes, whole = (metrics(tmp_path / name)["test/acc"] for name in ("boxes", "whole"))
    assert boxes > 0.85
    assert boxes - whole > 0.4


def test_cross_validation(folder: Path, tmp_path: Path) -> None:
    """Each image is tested once; the folds share their training settings and nothing else."""
    folds = ("-m", "data.fold=0,1,2", "data.num_folds=3")
    assert run("train", *folds, *FOLDER, f"data.root={folder}", cwd=tmp_path).code == 0
    tested: list[str] = []
    for run_dir in runs(tmp_path / "logs"):
        with (run_dir / "split.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 60
        tested += [row["path"] for row in rows if row["split"] == "test"]
        assert "test/acc" in metrics(run_dir)
    assert len(tested) == len(set(tested)) == 60


def test_balanced_class_weights_are_of_the_training_images(tmp_path: Path) -> None:
    for number, (name, count) in enumerate((("blue", 40), ("red", 10))):
        generate.image_folder(tmp_path / "photos", [name], count, seed=100 * number)
    arguments = (*FOLDER, "data.root=photos", "data.test_fraction=0.2", "data.val_fraction=0", "monitor=train/loss",
                 "mode=min", "run_dir=run", "loss.class_weight=balanced", "data.sampler=balanced")  # fmt: skip
    result = run("train", *arguments, cwd=tmp_path)
    assert result.code == 0, result.err
    assert "rare classes are made up for twice" in result.out + result.err
    model = ImageClassifier.load_from_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt")
    assert model.hparams["loss"]["class_weight"] == [40 / (2 * 32), 40 / (2 * 8)]
