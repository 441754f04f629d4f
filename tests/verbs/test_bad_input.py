"""Wrong input gets one message that names the thing and what to type, exit code 2, and leaves nothing behind."""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

from tests import generate
from tests.verbs.command import QUICK, run, runs, start, succeed

ARGUMENTS = ("experiment=folder_cnn", "model=simple_cnn", *QUICK, "data.root=photos")


def refused(verb: str, *arguments: str, cwd: Path) -> str:
    """The message of a refusal."""
    before = sorted(cwd.rglob("*"))
    result = run(verb, *arguments, cwd=cwd)
    assert result.code == 2, result.out + result.err
    assert "Traceback" not in result.err + result.out
    assert result.err.startswith("error: ")
    left = [path for path in sorted(cwd.rglob("*")) if path not in before]
    # what the check found is kept: mending one of many files is then no reason to read all of them again
    assert [path for path in left if path != cwd / "data" and cwd / "data" / "cache" not in (path, *path.parents)] == []
    return result.err


def train(*arguments: str, cwd: Path) -> str:
    return refused("train", *ARGUMENTS, *arguments, cwd=cwd)


@pytest.fixture
def cwd(folder: Path, tmp_path: Path) -> Path:
    """A folder with photos/, 20 of each of 3 classes."""
    generate.copy(folder, tmp_path / "photos")
    return tmp_path


def remove_images(root: Path) -> None:
    for path in root.iterdir():
        shutil.rmtree(path)


def flatten(root: Path) -> None:
    for number, path in enumerate(list(root.rglob("*.jpg"))):
        path.rename(root / f"{number}.jpg")
    for path in [path for path in root.iterdir() if path.is_dir()]:
        path.rmdir()


def one_class(root: Path) -> None:
    shutil.rmtree(root / "red")
    shutil.rmtree(root / "green")


def unknown_class(root: Path) -> None:
    for path in list(root.iterdir()):
        generate.copy(path, root / "train" / path.name)
        (root / "val").mkdir(exist_ok=True)
        path.rename(root / "val" / path.name.replace("red", "crimson"))


def broken_files(root: Path) -> None:
    whole = (root / "red" / "000.jpg").read_bytes()
    (root / "red" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "green" / "zero.jpg").write_bytes(b"")
    (root / "blue" / "text.jpg").write_text("hello")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (shutil.rmtree, ["photos", "data.root="]),
        (remove_images, ["photos", "data.root="]),
        (flatten, ["photos", "data.root="]),
        (one_class, ["'blue'", "data.root="]),
        (unknown_class, ["photos/val", "'crimson'", "blue, green, red"]),
        (lambda root: (root / "purple").mkdir(), ["photos/purple"]),
        (broken_files, ["3 of 63", "red/cut.jpg", "green/zero.jpg", "blue/text.jpg", "data.on_error=skip"]),
    ],
)
def test_data(damage: Callable[[Path], None], said: list[str], cwd: Path) -> None:
    damage(cwd / "photos")
    message = train(cwd=cwd)
    assert all(part in message for part in said), message


# refused by their name and value; what else the message holds of others
NAMED = [
    "data.root=", "model=null", "init_from=none.ckpt", "resume=none", "seed=1.5", "test=yes", "ema=2",
    "trainer.max_epochs=0", "trainer.max_steps=ten", "trainer.limit_train_batches=0", "trainer.gradient_clip_val=-1",
    "data.batch_size=2.5", "data.num_workers=-1", "data.fold=first", "data.resize=strech", "optimizer.lr=fast",
    "scheduler.warmup_epochs=abc", "scheduler.min_lr=1", "loss.label_smoothing=2", "finetune.layer_decay=2",
]  # fmt: skip
OVERRIDES = {
    **{override: [override] for override in NAMED},
    "data.root=???": ["data.root="],
    "data.batch_size=64": ["42", "data.batch_size=32"],
    "experiment=dogs_resnt": ["experiment=dogs_resnt", "dogs_resnet"],
    "data.bach_size=8": ["data.bach_size", "data.batch_size"],
    "optimiser=sgd": ["optimiser", "optimizer"],
    "experimnt=folder_cnn": ["experimnt", "experiment"],
    "lr=0.1": ["optimizer.lr"],
    "epochs=3": ["trainer.max_epochs"],
    "optimizer.lr": ["optimizer.lr", "KEY=VALUE"],
    "photos": ["data.root=photos"],
    "data=photos": ["data=photos", "data.root=photos", "folder"],
    "optimizer=adamm": ["optimizer=adamm", "adam"],
    "model=resnet17": ["model=resnet17", "resnet18", "model=timm model.name=resnet17"],
    "optimizer=lion": ["optimizer=timm optimizer.name=lion"],
    "optimizer._target_=torch.optim.Adem": ["Adem", "torch.optim", "optimizer."],
    "+optimizer.momentun=0.9": ["momentun"],
    "optimizer.lr=0.1,0.2": ["optimizer.lr=0.1,0.2", "--multirun"],
    "--experiment folder_cnn": ["experiment=VALUE"],
    "data.root=a(b": ["a(b", "data.root="],
    "init_from=latest": ["init_from=latest", "logs"],
    "resume=latest": ["resume=latest", "logs"],
    "seed=null": ["seed=null"],
    "tune=rate": ["tune=rate", "lr"],
    "trainer.limit_val_batches=0": ["trainer.limit_val_batches", "monitor=train/loss mode=min"],
    "trainer.max_time=10min": ["trainer.max_time=10min", "trainer.max_time=00:00:30:00"],
    "trainer.devices=0": ["devices=0"],
    "trainer=gpu": ["trainer.accelerator=gpu", "trainer=cpu"],
    "trainer.precision=16-mixed": ["trainer.precision=bf16-mixed"],
    "data.val_fraction=0": ["data.val_fraction"],
    "data.on_error=ignore": ["data.on_error=ignore", "skip"],
    "log_dir=photos/logs": ["photos", "log_dir="],
    "run_dir=photos/red/run": ["photos", "run_dir="],
    "data.split_file=none.csv": ["none.csv", "data.split_file=null"],
    "data=annotation_crop data.margin=wide": ["data.margin=wide"],
    "data._target_=shutil.copyfile": ["data"],
    "model=timm model.name=inception_v3 model.pretrained=false data.image_size=40": ["data.image_size"],
    "model=timm model.name=resnet81 model.pretrained=false": ["model.name=resnet81"],
    "model=timm model.weights=none.pth": ["model.weights=none.pth"],
    "monitor=val/accuracy": ["monitor=val/accuracy", "val/acc"],
    "monitor=null": ["monitor=null"],
    "mode=null": ["mode=null", "mode=max"],
    "monitor=val/loss": ["mode=max", "mode=min"],
}


@pytest.mark.parametrize("overrides", OVERRIDES)
def test_overrides(overrides: str, cwd: Path) -> None:
    message = train(*overrides.split(" "), cwd=cwd)
    assert all(part in message for part in OVERRIDES[overrides]), message


def test_no_hub(cwd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # what HF_HUB_OFFLINE=1 sets at the start
    message = train("model=timm", "model.name=resnet18", cwd=cwd)
    assert "model.weights=FILE" in message
    assert "model.pretrained=false" in message


@pytest.mark.parametrize(
    "text",
    [
        "<annotation><object>",
        generate.voc_xml([("red", (500, 500, 600, 600))], (48, 40)),
        '<!DOCTYPE a [<!ENTITY x "red">]><annotation><object><name>&x;</name></object></annotation>',
    ],
)
def test_annotations(text: str, annotated: Path, tmp_path: Path) -> None:
    generate.copy(annotated, tmp_path / "photos")
    (tmp_path / "photos" / "annotations" / "red_000.xml").write_text(text)
    (tmp_path / "photos" / "images" / "red_001.jpg").unlink()
    message = train("data=annotation_crop", cwd=tmp_path)
    assert all(part in message for part in ("red_000", "annotations/red_001.xml", "data.on_error=skip"))


def test_skipped_files_are_listed_in_the_run(cwd: Path) -> None:
    broken_files(cwd / "photos")
    succeed("train", *ARGUMENTS, "data.on_error=skip", cwd=cwd)
    (run_dir,) = runs(cwd / "logs")
    listed = (run_dir / "skipped.tsv").read_text().splitlines()
    assert {line.split("\t")[0] for line in listed[1:]} == {"red/cut.jpg", "green/zero.jpg", "blue/text.jpg"}


class Payload:
    """Unpickling it writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., int], tuple[Path, str]]:
        return Path.write_text, (self.target, "code ran")


@pytest.mark.parametrize("verb", ["eval", "predict"])
def test_checkpoints(verb: str, tmp_path: Path) -> None:
    path, payload = tmp_path / "some.ckpt", Payload(tmp_path / "evil")
    arguments = ("ckpt_path=some.ckpt", *(["inputs=."] if verb == "predict" else []))
    assert "ckpt_path=some.ckpt" in refused(verb, *arguments, cwd=tmp_path)
    for content in (b"", b"hello", pickle.dumps(payload)):
        path.write_bytes(content)
        assert "ckpt_path=some.ckpt" in refused(verb, *arguments, cwd=tmp_path)
    objects: list[Any] = [{"state_dict": {}}, {"state_dict": {}, "x": payload}, torch.nn.Linear(2, 2)]
    for saved in objects:
        torch.save(saved, path)
        assert "ckpt_path=some.ckpt" in refused(verb, *arguments, cwd=tmp_path)
    assert not (tmp_path / "evil").exists()


def test_after_a_run(cwd: Path) -> None:
    """Verbs without their argument or with a wrong one; and a checkpoint that is cut off."""
    assert "experiment=folder_cnn data.root=photos" in refused("train", "data.root=photos", cwd=cwd)
    assert "ckpt_path=latest" in refused("eval", cwd=cwd)
    assert "ckpt_path=latest" in refused("predict", "inputs=photos", cwd=cwd)
    succeed("train", *ARGUMENTS, "run_dir=logs/run", cwd=cwd)
    assert "inputs=" in refused("predict", "ckpt_path=latest", cwd=cwd)
    assert "inputs=none/*.jpg" in refused("predict", "ckpt_path=latest", "inputs=none/*.jpg", cwd=cwd)
    assert "split=" in refused("eval", "ckpt_path=latest", "split=half", cwd=cwd)
    for wrong in ("top_k=0", "batch_size=0", "num_workers=few", "flip=maybe"):
        assert wrong in refused("predict", "ckpt_path=latest", "inputs=photos", wrong, cwd=cwd)
    assert "data.root" in refused("eval", "ckpt_path=latest", "data.rot=photos", cwd=cwd)
    last = cwd / "logs" / "run" / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:100_000])
    assert f"ckpt_path={last}" in refused("eval", f"ckpt_path={last}", cwd=cwd)
    assert "resume=logs/run" in refused("train", "resume=logs/run", "trainer.max_epochs=2", cwd=cwd)
    assert "resume=logs/run" in refused("train", *ARGUMENTS, "run_dir=logs/run", cwd=cwd)


def test_a_job_of_several_is_named_and_does_not_stop_the_others(cwd: Path) -> None:
    result = run("train", *ARGUMENTS, "test=false", "-m", "optimizer.lr=-1,0.001", cwd=cwd)
    assert result.code == 2
    assert "Traceback" not in result.err
    (message,) = result.err.splitlines()
    assert message.startswith("error: job 0 (experiment=folder_cnn ")
    assert "optimizer.lr=-1): optimizer.lr=-1" in message
    (finished,) = runs(cwd / "logs")
    assert finished.name == "1"


@pytest.mark.slow
def test_a_bug_keeps_its_traceback_and_ends_with_1(cwd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A callback of the user's own that fails is no wrong input."""
    code = "class Failing(pl.Callback):\n    def on_train_start(self, *_):\n        raise RuntimeError('a bug')\n"
    (cwd / "failing.py").write_text(f"import pytorch_lightning as pl\n{code}")
    monkeypatch.setenv("PYTHONPATH", str(cwd), prepend=os.pathsep)
    process = start("train", *ARGUMENTS, "+callbacks.failing._target_=failing.Failing", cwd=cwd)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output
    assert "RuntimeError: a bug" in output
