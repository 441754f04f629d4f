"""Runs are found, ranked, compared by their settings, and averaged over seeds and folds."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from classifier.errors import UserError
from classifier.tools.leaderboard import compare, differing, flat
from tests.tools.parts import refusal, script
from tests.verbs.command import QUICK, REPOSITORY, run

CNN = {"_target_": "classifier.models.SimpleCNN", "widths": [32, 64], "drop_rate": 0.2}
RESNET = {"_target_": "classifier.models.timm_model", "name": "resnet18.a1_in1k", "drop_rate": 0.0}


def config(run_dir: Path, **settings: Any) -> dict[str, Any]:
    seed = settings.get("seed", 0)
    return {
        "name": "trial",
        "log_dir": "logs",
        "run_dir": str(run_dir),
        "seed": seed,
        "monitor": "val/acc",
        "mode": "max",
        "data": {"_target_": "classifier.data.DigitsDataModule", "seed": seed, "fold": None},
        "model": CNN,
        "optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.001},
        "scheduler": None,
        "callbacks": {"best": {"_target_": "some.Checkpoint", "dirpath": f"{run_dir}/checkpoints"}},
        **settings,
    }


def make_run(run_dir: Path, metrics: dict[str, float] | None = None, rows: str = "", **settings: Any) -> None:
    """A run directory: done where it has `metrics`, and with `rows` of metrics.csv."""
    run_dir.mkdir(parents=True)
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config(run_dir, **settings), sort_keys=False))
    if metrics is not None:
        (run_dir / "metrics.json").write_text(json.dumps({"epoch": 3, "fit_seconds": 1.5, **metrics}))
    if rows:
        (run_dir / "metrics.csv").write_text(f"epoch,step,val/acc,val/loss\n{rows}")


def csv_rows(capsys: pytest.CaptureFixture[str], folder: Path, **options: Any) -> list[dict[str, str]]:
    """The rows of `--csv -`."""
    compare(folder, csv="-", **options)
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def test_the_best_run_is_first_by_what_the_runs_monitor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "a" / "1", {"val/acc": 0.7, "val/loss": 0.1, "test/acc": 0.9})
    make_run(tmp_path / "b" / "multirun_1" / "0", {"val/acc": 0.8, "val/loss": 0.3, "test/acc": 0.8})
    make_run(tmp_path / "b" / "multirun_1" / "1", {"val/acc": 0.9, "val/loss": 0.2, "test/acc": 0.7})
    order = ["b/multirun_1/1", "b/multirun_1/0", "a/1"]
    assert [row["run"] for row in csv_rows(capsys, tmp_path)] == order
    assert [row["run"] for row in csv_rows(capsys, tmp_path, sort="test/acc")] == order[::-1]
    assert [row["run"] for row in csv_rows(capsys, tmp_path, sort="val/loss")] == [order[2], order[0], order[1]]
    assert [row["run"] for row in csv_rows(capsys, tmp_path, name="multirun", limit=1)] == order[:1]


def test_runs_that_monitor_a_loss_go_by_the_smallest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, loss in enumerate((0.5, 0.2, float("nan"))):
        make_run(tmp_path / str(number), {"val/loss": loss, "val/acc": loss}, monitor="val/loss", mode="min")
    rows = csv_rows(capsys, tmp_path)
    assert [row["run"] for row in rows] == ["1", "0", "2"]
    assert rows[2]["val/loss"] == ""  # not a number: neither best nor worst


def test_only_settings_that_differ_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "1", {"val/acc": 0.9}, seed=0)
    make_run(tmp_path / "2", {"val/acc": 0.8}, seed=1, model=RESNET)
    first, second = csv_rows(capsys, tmp_path)
    assert list(first)[-2:] == ["seed", "model"]  # not data.seed, its copy, nor what is in the run's own folder
    assert (first["model"], second["model"]) == ("SimpleCNN", "resnet18.a1_in1k")
    assert (first["seed"], second["seed"]) == ("0", "1")


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ([{"model": CNN}, {"model": {**CNN, "widths": [8]}}], ["model.widths"]),
        ([{"model": CNN}, {"model": RESNET}], ["model"]),
        ([{"model": RESNET}, {"model": {**RESNET, "name": "b", "drop_rate": 0.1}}], ["model", "model.drop_rate"]),
        ([{"model": CNN}, {"model": {**CNN, "_target_": "mine.SimpleCNN"}}], ["model"]),
        ([{"scheduler": None}, {"scheduler": {"_target_": "cosine", "min_lr": 0.0}}], ["scheduler"]),
        ([{"augment": {"crop": None}}, {"augment": {"crop": {"scale": [0.5, 1.0]}}}], ["augment.crop.scale"]),
        ([{"test": True}, {"test": False}], ["test"]),
        ([{}, {"added_since": None}], []),
    ],
)
def test_what_counts_as_a_difference(changes: list[dict[str, Any]], keys: list[str]) -> None:
    assert differing(pd.DataFrame([flat(config(Path("run"), **change)) for change in changes]).fillna("null")) == keys


def test_a_run_that_is_not_done_shows_its_best_epoch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "stopped", rows="0,9,0.5,2.0\n1,19,0.75,1.0\n2,29,0.6,1.5\n")
    make_run(tmp_path / "begun")
    rows = {row["run"]: row for row in csv_rows(capsys, tmp_path)}
    assert {row["state"] for row in rows.values()} == {"unfinished"}
    assert (rows["stopped"]["val/acc"], rows["stopped"]["val/loss"], rows["stopped"]["epoch"]) == ("0.75", "1.0", "3.0")
    assert rows["begun"]["val/acc"] == ""


def test_means_and_deviations_over_seeds_and_folds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = {("0", 0): 0.6, ("0", 1): 0.8, ("1", 0): 0.7, ("1", 1): 0.9}
    for (lr, seed), score in scores.items():
        optimizer = {"_target_": "torch.optim.AdamW", "lr": float(lr)}
        make_run(tmp_path / f"{lr}_{seed}", {"val/acc": score}, seed=seed, optimizer=optimizer)
    make_run(tmp_path / "stopped", rows="0,9,0.99,2.0\n", optimizer={"_target_": "torch.optim.AdamW", "lr": 0.0})
    best, other = csv_rows(capsys, tmp_path, over=["seed", "data.fold"])
    assert (best["optimizer.lr"], best["runs"], other["runs"]) == ("1.0", "2", "2")
    assert float(best["val/acc"]) == pytest.approx(0.8)
    assert float(best["val/acc deviation"]) == pytest.approx(0.02**0.5)
    assert "seed" not in best
    compare(tmp_path, over=["seed"])
    printed = capsys.readouterr()
    assert "0.8000 ± 0.1414" in printed.out
    assert "stopped (unfinished)" in printed.err


def test_directories_that_cannot_be_read_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "good", {"val/acc": 0.5})
    make_run(tmp_path / "torn", {"val/acc": 0.5})
    (tmp_path / "torn" / "metrics.json").write_text('{"val/ac')
    make_run(tmp_path / "cut")
    (tmp_path / "cut" / "config.yaml").write_text("")
    (tmp_path / "headless" / "checkpoints").mkdir(parents=True)
    compare(tmp_path)
    printed = capsys.readouterr()
    assert "good" in printed.out
    assert "torn" not in printed.out
    assert all(name in printed.err for name in ("torn (", "cut (", "headless ("))


def test_wrong_options(tmp_path: Path) -> None:
    make_run(tmp_path / "a", {"val/acc": 0.5})
    cases: dict[str, dict[str, Any]] = {
        "val/acc": {"sort": "val/ac"},
        "data.fold": {"over": ["data.folds"]},
        "other": {"name": "other"},
        "--limit=0": {"limit": 0},
    }
    for said, options in cases.items():
        with pytest.raises(UserError, match=said):
            compare(tmp_path, **options)


def test_the_script(folder: Path, tmp_path: Path) -> None:
    """Two networks by one command, as train.py writes them, compared by another."""
    settings = [*QUICK, "experiment=folder_cnn", f"data.root={folder}", "model.pretrained=false", "test=false"]
    trained = run("train", "-m", "model=simple_cnn,resnet18", *settings, cwd=tmp_path)
    assert trained.code == 0, trained.err
    assert "2 of 2 runs by val/acc, the largest first" in trained.out
    result = script("leaderboard", "logs", "--csv", "runs.csv", cwd=tmp_path)
    assert "2 of 2 runs by val/acc, the largest first" in result.out
    table = pd.read_csv(tmp_path / "runs.csv")
    assert set(table["model"]) == {"SimpleCNN", "resnet18.a1_in1k"}
    assert set(table["state"]) == {"done"}
    assert not set(table) & {"model.drop_rate", "model.name", "logger.csv.save_dir"}
    refusal("leaderboard", "none", cwd=tmp_path)


def test_it_needs_no_torch() -> None:
    """A hundred runs take a second; importing torch would take more."""
    code = "import sys, classifier.tools.leaderboard; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(REPOSITORY / "src")})
