import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from classifier.data import ImageFolderDataModule
from classifier.errors import UserError
from classifier.training.checkpoints import RunCheckpoint, RunRecord, init_from, open_model, read_checkpoint
from tests.training import runs

CONFIG = {"seed": 0, "trainer": {"precision": "32-true"}}


def callbacks(run_dir: Path, data: Path) -> list[Any]:
    datamodule = ImageFolderDataModule(data, image_size=8, channels=1, num_workers=0)
    datamodule.setup()
    best = RunCheckpoint(
        dirpath=run_dir / "checkpoints", filename="best", monitor="val/loss", enable_version_counter=False
    )
    last = RunCheckpoint(dirpath=run_dir / "checkpoints", filename="last", enable_version_counter=False)
    return [best, last, RunRecord({**CONFIG, "run_dir": str(run_dir)}, datamodule)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    """A run of two epochs; not to be changed."""
    run_dir = tmp_path_factory.mktemp("run")
    trainer = runs.trainer(run_dir, callbacks(run_dir, folder), max_epochs=2)
    trainer.fit(runs.make_classifier(), runs.loader(), runs.loader())
    return run_dir


@pytest.fixture
def checkpoint(run: Path, tmp_path: Path) -> Path:
    """A copy of a checkpoint, to be spoilt."""
    return Path(shutil.copy(run / "checkpoints" / "last.ckpt", tmp_path / "some.ckpt"))


def change(path: Path, **values: Any) -> None:
    torch.save({**torch.load(path), **values}, path)


def test_checkpoint_says_what_the_run_was(run: Path) -> None:
    record = read_checkpoint(run / "checkpoints" / "last.ckpt")["run"]
    assert record["config"] == {**CONFIG, "run_dir": str(run)}
    assert record["versions"]["torch"] == torch.__version__
    assert len(record["data_fingerprint"]) == 64
    assert {"train/loss", "train/acc", "val/loss", "val/acc", "val/f1"} <= record["metrics"].keys()
    assert json.loads(json.dumps(record)) == record


IN_A_FRESH_PROCESS = """
import sys, torch
path, output = sys.argv[1:]
plain = torch.load(path, weights_only=True)
assert "classifier" not in sys.modules and "state_dict" in plain
from classifier.training import ImageClassifier
model = ImageClassifier.load_from_checkpoint(path).eval()
images = torch.arange(128, dtype=torch.uint8).reshape(2, 1, 8, 8)
with torch.no_grad():
    torch.save(model(images), output)
"""


def test_checkpoint_opens_in_a_fresh_process_without_further_arguments(run: Path, tmp_path: Path) -> None:
    path = run / "checkpoints" / "best.ckpt"
    command = [sys.executable, "-c", IN_A_FRESH_PROCESS, str(path), str(tmp_path / "logits.pt")]
    subprocess.run(command, check=True, cwd=tmp_path)
    model, _ = open_model(path)
    assert not model.training
    with torch.no_grad():
        expected = model(torch.arange(128, dtype=torch.uint8).reshape(2, 1, 8, 8))
    assert torch.equal(torch.load(tmp_path / "logits.pt"), expected)
    assert not torch.equal(expected, runs.make_classifier(weight_seed=5).eval()(torch.zeros(2, 1, 8, 8).byte()))


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.9, -1])
def test_cut_off_checkpoint_is_refused(kept: float, checkpoint: Path) -> None:
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    with pytest.raises(UserError, match=r"ckpt_path=.*some\.ckpt is (cut off|no checkpoint)"):
        read_checkpoint(checkpoint)


class Trap:
    """Makes a file as it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_code_in_a_checkpoint_is_not_run(kind: str, checkpoint: Path, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    if kind == "pickle":
        checkpoint.write_bytes(pickle.dumps({"state_dict": Trap(sprung)}))
    else:
        change(checkpoint, state_dict=Trap(sprung))
    with pytest.raises(UserError, match=r"some\.ckpt is (refused|no checkpoint)"):
        open_model(checkpoint)
    assert not sprung.exists()
    torch.load(checkpoint, weights_only=False) if kind == "torch" else pickle.loads(checkpoint.read_bytes())
    assert sprung.exists()  # the trap works


def test_code_in_the_hyper_parameters_is_not_run(checkpoint: Path, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    hparams = torch.load(checkpoint)["hyper_parameters"]
    trap = {"_target_": "os.system", "command": f"touch {sprung}"}
    change(checkpoint, hyper_parameters={**hparams, "model": {**runs.CNN, "widths": trap}})
    with pytest.raises(UserError, match=r"some\.ckpt"):
        open_model(checkpoint)
    assert not sprung.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"some text\n", "no checkpoint"),
        ({"weight": torch.zeros(2)}, "not written by src/train.py"),
        ({"state_dict": {}, "hyper_parameters": {}}, "not written by src/train.py"),  # of other Lightning projects
        ([1, 2, 3], "not written by src/train.py"),
        (torch.nn.Linear(2, 2), "refused"),
    ],
    ids=["missing", "text", "weights", "lightning", "list", "module"],
)
@pytest.mark.parametrize("key", ["ckpt_path", "resume"])
def test_what_is_no_checkpoint_is_refused(content: Any, message: str, key: str, tmp_path: Path) -> None:
    path = tmp_path / "some.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError) as refusal:
        read_checkpoint(path, key)
    assert str(refusal.value).startswith(f"{key}={path}")
    assert message in str(refusal.value)


def test_weights_of_another_shape_are_refused(checkpoint: Path) -> None:
    hparams = torch.load(checkpoint)["hyper_parameters"]
    change(checkpoint, hyper_parameters={**hparams, "model": {**runs.CNN, "widths": [5, 6]}})
    with pytest.raises(UserError, match=r"some\.ckpt holds another kind of model"):
        open_model(checkpoint)


def test_init_from_copies_what_fits(checkpoint: Path) -> None:
    source = torch.load(checkpoint)["state_dict"]
    model = runs.make_classifier(num_classes=4, weight_seed=3)
    account = init_from(model, checkpoint)
    target = {name: value for name, value in model.state_dict().items() if name.startswith("network.")}
    head = {"network.head.1.weight", "network.head.1.bias"}
    assert {name for name in target if not torch.equal(target[name], source[name])} == head
    assert f"{len(target) - 2} of {len(target)} tensors matched" in account
    assert "network.head.1.weight (3, 32) -> (4, 32)" in account
    assert "lacks" not in account
    assert "unused" not in account


def test_init_from_tells_what_is_missing_and_unused(checkpoint: Path) -> None:
    deeper = {**runs.CNN, "widths": [4, 8], "hidden": [16]}
    account = init_from(runs.make_classifier(model=deeper), checkpoint)
    shallow = init_from(runs.make_classifier(model={**runs.CNN, "widths": [4]}), checkpoint)
    [missing] = [line for line in account.splitlines() if "lacks" in line]
    [unused] = [line for line in shallow.splitlines() if "unused" in line]
    assert "network.head.3.weight" in missing
    assert "network.features.4.weight" in unused
    assert "and 1 more" in unused  # a convolution and five tensors of its BatchNorm; five are named


def test_init_from_refuses_another_kind_of_network(checkpoint: Path) -> None:
    model = runs.make_classifier(model={"_target_": "classifier.models.timm_model", "name": "resnet18",
                                        "pretrained": False})  # fmt: skip
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError, match=r"init_from=.*some\.ckpt fits none"):
        init_from(model, checkpoint)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_best_score_survives_that_the_run_was_moved(run: Path, folder: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(run, tmp_path / "moved"))
    state = torch.load(run / "checkpoints" / "last.ckpt")["callbacks"]
    [best] = [value for key, value in state.items() if "val/loss" in key]

    resumed = callbacks(moved, folder)
    # a rate of zero: the third epoch is no better
    model = runs.make_classifier(optimizer={"_target_": "torch.optim.AdamW", "lr": 0.0})
    trainer = runs.trainer(moved, resumed, max_epochs=2)
    last = moved / "checkpoints" / "last.ckpt"
    trainer.fit(model, runs.loader(), runs.loader(), ckpt_path=last, weights_only=True)

    assert resumed[0].best_model_score == best["best_model_score"]
    assert resumed[0].best_model_path == str(moved / "checkpoints" / "best.ckpt")
    assert list(resumed[0].best_k_models) == [str(moved / "checkpoints" / "best.ckpt")]
