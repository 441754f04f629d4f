import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml

from classifier.data import ImageFolderDataModule
from classifier.errors import UserError
from classifier.runs import read_starts
from classifier.training import checkpoints
from classifier.training.checkpoints import BestCheckpoint, open_model, read_checkpoint
from classifier.training.module import ImageClassifier
from classifier.training.stopping import LastCheckpoint
from tests.training import runs

CONFIG = {"seed": 0, "trainer": {"precision": "32-true"}}


def fit(run_dir: Path, *more: pl.Callback, **settings: Any) -> pl.Trainer:
    """Train, or resume, with a checkpoint at each epoch's end."""
    last = run_dir / "checkpoints" / "last.ckpt"
    trainer = runs.trainer(run_dir, [*more, LastCheckpoint(dirpath=last.parent)], **settings)
    path = last if last.exists() else None
    trainer.fit(runs.make_classifier(), runs.loader(), runs.loader(), ckpt_path=path, weights_only=True)
    return trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    """A run of two epochs; not to be changed."""
    run_dir = tmp_path_factory.mktemp("run")
    datamodule = ImageFolderDataModule(folder, image_size=8, channels=1, num_workers=0)
    datamodule.setup()
    best = BestCheckpoint(dirpath=run_dir / "checkpoints", monitor="val/loss", mode="min")
    record = checkpoints.RunRecord({**CONFIG, "run_dir": str(run_dir)}, datamodule, ["seed=0"])
    fit(run_dir, best, record, max_epochs=2)
    return run_dir


@pytest.fixture
def checkpoint(run: Path, tmp_path: Path) -> Path:
    """A copy of a checkpoint, to be spoilt."""
    return Path(shutil.copy(run / "checkpoints" / "last.ckpt", tmp_path / "some.ckpt"))


def change(path: Path, **values: Any) -> None:
    torch.save({**torch.load(path), **values}, path)


def test_a_run_says_what_it_was(run: Path) -> None:
    record = read_checkpoint(run / "checkpoints" / "last.ckpt")["run"]
    assert record["config"] == {**CONFIG, "run_dir": str(run)}
    assert torch.__version__.startswith(record["versions"]["torch"])
    assert len(record["data_fingerprint"]) == 64
    assert {"train/loss", "train/acc", "val/loss", "val/acc", "val/f1"} <= record["metrics"].keys()
    assert json.loads(json.dumps(record)) == record
    assert yaml.safe_load((run / "config.yaml").read_text()) == {**record["config"], "resume": None}
    assert [start["overrides"] for start in read_starts(run)] == [["seed=0"]]
    assert len((run / "split.csv").read_text().splitlines()) == 61
    assert not (run / "skipped.tsv").exists()


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


@pytest.mark.slow
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


@pytest.mark.parametrize("kept", [0, 0.01, 0.5, 0.9, 0.9999])
def test_cut_off_checkpoint_is_refused(kept: float, checkpoint: Path) -> None:
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(UserError, match=f"ckpt_path={checkpoint} "):
        open_model(checkpoint)


def test_a_changed_byte_does_not_open_with_other_weights(checkpoint: Path) -> None:
    whole, expected = checkpoint.read_bytes(), read_checkpoint(checkpoint)
    expected = {**expected, "state_dict": {name: value.clone() for name, value in expected["state_dict"].items()}}
    random, refused = np.random.default_rng(0), 0
    for place in random.integers(0, len(whole), 300).tolist():
        mutant = bytearray(whole)
        mutant[place] ^= int(random.integers(1, 256))
        checkpoint.write_bytes(mutant)
        try:
            found = read_checkpoint(checkpoint)
        except UserError as error:
            refused += f"ckpt_path={checkpoint} " in str(error)
            continue
        torch.testing.assert_close(found["state_dict"], expected["state_dict"], rtol=0, atol=0)
        assert all(found[key] == expected[key] for key in ("run", "hyper_parameters"))
    assert refused > 100


class Trap:
    """Makes a file as it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_code_in_a_checkpoint_is_not_run(checkpoint: Path, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    change(checkpoint, state_dict=Trap(sprung))
    with pytest.raises(UserError, match=f"ckpt_path={checkpoint} "):
        open_model(checkpoint)
    assert not sprung.exists()
    torch.load(checkpoint, weights_only=False)
    assert sprung.exists()  # the trap works


def test_another_network_in_a_checkpoint_is_not_built(checkpoint: Path, tmp_path: Path) -> None:
    hparams, sprung = torch.load(checkpoint)["hyper_parameters"], tmp_path / "sprung"
    for widths in ([5, 6], {"_target_": "os.system", "command": f"touch {sprung}"}):
        change(checkpoint, hyper_parameters={**hparams, "model": {**runs.CNN, "widths": widths}})
        with pytest.raises(UserError, match=f"ckpt_path={checkpoint} "):
            open_model(checkpoint)
    assert not sprung.exists()


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.ckpt").write_text("some text\n")
    (tmp_path / "pointer.ckpt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 34\n")
    (tmp_path / "page.ckpt").write_text("\n<!DOCTYPE html>\n<html></html>\n")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "weights.ckpt")
    torch.save({"state_dict": {}, "hyper_parameters": {}}, tmp_path / "other.ckpt")  # of another Lightning project
    torch.save([1, 2], tmp_path / "list.ckpt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.ckpt")
    for name in ("missing", "text", "pointer", "page", "weights", "other", "list", "module"):
        path = tmp_path / f"{name}.ckpt"
        with pytest.raises(UserError, match=f"resume={path} "):
            read_checkpoint(path, "resume")
    for name, said in (("pointer", "git lfs pull"), ("page", "web page"), ("missing", "missing.ckpt")):
        with pytest.raises(UserError, match=rf"checkpoint_path=.*{said}"):
            ImageClassifier.load_from_checkpoint(tmp_path / f"{name}.ckpt")


def test_init_from_copies_what_fits_and_names_the_rest(checkpoint: Path) -> None:
    source = torch.load(checkpoint)["state_dict"]
    model = runs.make_classifier(num_classes=4, weight_seed=3)
    account, target = checkpoints.init_from(model, checkpoint).splitlines(), model.state_dict()
    network = {name for name in target if name.startswith("network.")}
    copied = {name for name in network if torch.equal(target[name], source[name])}
    head = {"network.head.1.weight", "network.head.1.bias"}
    assert copied == network - head
    assert f"{len(copied)} of {len(copied) + 2} tensors" in account[0]
    assert [name in account[1] for name in head] == [True, True]
    shallow = checkpoints.init_from(runs.make_classifier(model={**runs.CNN, "widths": [4]}), checkpoint)
    assert "network.features.1." in shallow.splitlines()[-1]
    resnet = {"_target_": "classifier.models.timm_model", "name": "resnet18", "pretrained": False}
    with pytest.raises(UserError, match=f"init_from={checkpoint} "):
        checkpoints.init_from(runs.make_classifier(model=resnet), checkpoint)


def test_another_model_is_not_resumed(checkpoint: Path) -> None:
    stored = read_checkpoint(checkpoint)
    checkpoints.require_same_model(stored, runs.make_classifier(), checkpoint)
    for settings, named in (({"num_classes": 4}, "class 3"), ({"model": {**runs.CNN, "widths": [4, 9]}}, "network.")):
        with pytest.raises(UserError, match=named) as refusal:
            checkpoints.require_same_model(stored, runs.make_classifier(**settings), checkpoint)
        assert f"init_from={checkpoint}" in str(refusal.value)


def test_a_checkpoint_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """Where no file can grow above 64 KiB, as with a quota; and where its folder cannot be made."""
    resource = pytest.importorskip("resource", reason="this system has no resource limits")
    path, writer = tmp_path / "checkpoints" / "last.ckpt", checkpoints.AtomicCheckpointIO()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        for before in ([], [path]):
            with pytest.raises(UserError, match=str(path)) as refusal:
                writer.save_checkpoint({"weight": torch.zeros(1 << 20)}, path)  # 4 MiB
            assert f"resume={tmp_path}" in str(refusal.value)
            assert list(path.parent.iterdir()) == before
            writer.save_checkpoint({"number": 1}, path)
            assert torch.load(path) == {"number": 1}
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with pytest.raises(UserError, match=str(path / "below")):
        writer.save_checkpoint({"number": 1}, path / "below" / "last.ckpt")


class Scores(pl.Callback):
    """Gives each epoch's validation a score."""

    def __init__(self, *scores: float) -> None:
        self.scores = scores

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.log("score", torch.tensor(self.scores[trainer.current_epoch]))


def best(run_dir: Path, **arguments: Any) -> BestCheckpoint:
    return BestCheckpoint(dirpath=run_dir / "checkpoints", **{"monitor": "score", "mode": "max", **arguments})


def kept(run_dir: Path) -> dict[str, int]:
    """File -> its step, of the best."""
    return {path.stem: torch.load(path)["global_step"] for path in (run_dir / "checkpoints").glob("best*")}


@pytest.mark.parametrize(
    ("arguments", "steps", "expected"),
    [
        ({}, [], 9),
        ({"mode": "min"}, [], 6),
        ({"save_top_k": 2}, [3, 9], 9),
        ({"save_top_k": -1}, [3, 6, 9, 12], 9),
        ({"from_epoch": 4}, [], 12),
        ({"from_epoch": 5}, [], None),
        ({"monitor": "train/loss", "mode": "min"}, [], 12),
    ],
)
def test_the_best(arguments: dict[str, Any], steps: list[int], expected: int | None, tmp_path: Path) -> None:
    fit(tmp_path, best(tmp_path, **arguments), Scores(0.5, 0.1, 0.9, 0.2), max_epochs=4)
    alone = {} if expected is None else {"best": expected}
    assert kept(tmp_path) == alone | {f"best_step{step:06d}": step for step in steps}


def test_the_best_are_remembered_when_the_run_is_moved_and_resumed(tmp_path: Path) -> None:
    """Also where the run was killed between the best and the last checkpoint of an epoch."""
    run, scores = tmp_path / "run", Scores(0.5, 0.7, 0.1, 0.6)
    fit(run, best(run, save_top_k=2), scores, max_epochs=1)
    before = (run / "checkpoints" / "last.ckpt").read_bytes()
    fit(run, best(run, save_top_k=2), scores, max_epochs=2)
    (run / "checkpoints" / "last.ckpt").write_bytes(before)
    moved = run.rename(tmp_path / "moved")
    fit(moved, best(moved, save_top_k=2), scores, max_epochs=4)
    assert kept(moved) == {"best": 6, "best_step000006": 6, "best_step000012": 12}
