"""finetune=, optimizer= and scheduler= on the command line."""

from pathlib import Path

import pytest
import torch
import yaml

from tests.verbs.command import QUICK, Result, metrics, run

RUN = ("experiment=folder_cnn", "model=simple_cnn", *QUICK, "run_dir=run")


def train(folder: Path, cwd: Path, *arguments: str) -> Result:
    return run("train", *RUN, f"data.root={folder}", *arguments, cwd=cwd)


def weights(path: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


def test_head_on_the_features_of_another_run(folder: Path, tmp_path: Path) -> None:
    assert train(folder, tmp_path, "model.batch_norm=true", "run_dir=first").code == 0
    first = tmp_path / "first" / "checkpoints" / "last.ckpt"
    arguments = ("model.batch_norm=true", "finetune=head", f"init_from={first}", "seed=1")
    result = train(folder, tmp_path, *arguments)
    assert result.code == 0, result.err
    assert "training the head alone" in result.out
    assert "features that nothing has trained" not in result.out
    before, after = weights(first), weights(tmp_path / "run" / "checkpoints" / "last.ckpt")
    moved = {name.split(".")[1] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"head"}


def test_head_on_nothing_is_warned_of(folder: Path, tmp_path: Path) -> None:
    result = train(folder, tmp_path, "finetune=head")
    assert result.code == 0, result.err
    assert "finetune freezes features that nothing has trained: use model.pretrained=true" in result.out


def test_gradual_run_goes_on_with_what_it_trained(folder: Path, tmp_path: Path) -> None:
    result = train(folder, tmp_path, "finetune=gradual", "finetune.head_epochs=1", "finetune.layer_decay=0.5")
    assert result.code == 0, result.err
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert stored["finetune"] == {
        "stages": None, "head_epochs": 1, "stage_epochs": 1, "backbone_lr": 1.0, "layer_decay": 0.5,
    }  # fmt: skip
    result = run("train", "resume=run", "trainer.max_epochs=3", cwd=tmp_path)
    assert result.code == 0, result.err
    assert [line[:8] for line in result.out.splitlines() if "training the head" in line] == ["epoch 2:", "epoch 3:"]
    assert metrics(tmp_path / "run")["epoch"] == 3
    result = run("train", "resume=run", "trainer.max_epochs=4", "finetune.layer_decay=0.9", cwd=tmp_path)
    assert result.code == 2
    assert "finetune.layer_decay=0.9: the run to go on with has 0.5: leave it as it is, or use init_from" in result.err


@pytest.mark.parametrize("option", ["full", "head", "gradual"])
def test_a_checkpoint_needs_nothing_of_its_training(option: str, folder: Path, tmp_path: Path) -> None:
    assert train(folder, tmp_path, f"finetune={option}").code == 0
    result = run("eval", "ckpt_path=run", "output_dir=out", "trainer=cpu", cwd=tmp_path)
    assert result.code == 0, result.err
    assert metrics(tmp_path / "out")["test/acc"] == metrics(tmp_path / "run")["test/acc"]


def test_optimizer_of_timm(folder: Path, tmp_path: Path) -> None:
    arguments = ("optimizer=timm", "optimizer.name=lion", "optimizer.arguments={caution: true}", "scheduler=constant")
    result = train(folder, tmp_path, *arguments)
    assert result.code == 0, result.err
    groups = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt")["optimizer_states"][0]["param_groups"]
    assert [(group["name"], group["weight_decay"], group["caution"]) for group in groups] == [
        ("network", 0.05, True),
        ("network_no_decay", 0.0, True),
    ]


def test_endless_run_with_a_limit_in_time(folder: Path, tmp_path: Path) -> None:
    arguments = ("trainer.max_epochs=-1", "trainer.max_time=00:00:00:03", "callbacks.early_stopping=null")
    result = train(folder, tmp_path, *arguments)
    assert result.code == 0, result.err
    [group, _] = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt")["optimizer_states"][0]["param_groups"]
    assert group["lr"] < 0.1 * group["initial_lr"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["finetune=haed"], "finetune=haed does not exist: did you mean head?"),
        (["finetune.layers=3"], "there is no key finetune.layers"),
        (["finetune.stages=3"], "finetune.stages=3: SimpleCNN has 2 stages below its head: use finetune.stages=2"),
        (["optimizer=timm", "optimizer.name=lamd"], "optimizer.name=lamd is no optimiser of timm: did you mean lamb"),
        (["trainer.max_epochs=-1", "trainer.max_time=00:00:01:00", "scheduler=one_cycle"], "scheduler=cosine"),
        (["trainer.max_epochs=-1"], "use trainer.max_epochs=... or trainer.max_time=..., or scheduler=constant"),
    ],
)
def test_wrong_input(arguments: list[str], message: str, folder: Path, tmp_path: Path) -> None:
    result = train(folder, tmp_path, *arguments)
    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err
