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
from omegaconf import OmegaConf

from classifier.errors import UserError
from classifier.tools.leaderboard import Leaderboard, compare, differing, flat
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


def test_what_is_monitored_in_training_or_not_by_all_does_not_rank(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of folds it is the test of what was held out; at the end of a sweep with its mean and deviation."""
    data = {"_target_": "classifier.data.ImageFolderDataModule"}
    for fold, score in enumerate((0.6, 0.8)):
        results = {"train/loss": 0.1 + fold, "test/acc": score}
        own: dict[str, Any] = {"data": {**data, "fold": fold}, "monitor": "train/loss", "mode": "min"}
        make_run(tmp_path / "folds" / str(fold), results, **own)
    Leaderboard().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path / "folds")}}}))
    out = capsys.readouterr().out
    assert out.split()[:7] == ["run", "test/acc", "data.fold", "1", "0.8000", "1", "0"]
    assert "0.7000 ± 0.1414" in out
    make_run(tmp_path / "other", {"val/acc": 0.9, "test/acc": 0.7})
    assert [row["run"] for row in csv_rows(capsys, tmp_path)] == ["folds/1", "other", "folds/0"]


def test_only_settings_that_differ_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "1", {"val/acc": 0.9}, seed=0)
    make_run(tmp_path / "2", {"val/acc": 0.8}, seed=1, model=RESNET)
    first, second = csv_rows(capsys, tmp_path)
    assert list(first)[-2:] == ["seed", "model"]  # not data.seed, its copy, nor what is in the run's own folder
    assert (first["model"], second["model"]) == ("SimpleCNN", "resnet18.a1_in1k")
    assert (first["seed"], second["seed"]) == ("0", "1")
    make_run(tmp_path / "3", {"val/acc": 0.7}, model={**CNN, "widths": [8]})
    assert [row["model.widths"] for row in csv_rows(capsys, tmp_path)] == ["[32,64]", "", "[8]"]  # ResNet has none


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
        ([{"callbacks": {"stop": {"monitor": "a"}}}, {"callbacks": {}, "trainer": {"enable_progress_bar": False}}], []),
    ],
)
def test_what_counts_as_a_difference(changes: list[dict[str, Any]], keys: list[str]) -> None:
    assert differing(pd.DataFrame([flat(config(Path("run"), **change)) for change in changes]).fillna("null")) == keys


def test_a_run_that_is_not_done_shows_its_best_epoch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "stopped", rows="1,10,0.5,2.0\n2,20,0.75,1.0\n3,30,0.6,1.5\n")
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
    make_run(tmp_path / "stopped", rows="1,10,0.99,2.0\n", optimizer={"_target_": "torch.optim.AdamW", "lr": 0.0})
    best, other = csv_rows(capsys, tmp_path, over=["seed", "data.fold"])
    assert (best["optimizer.lr"], best["runs"], other["runs"]) == ("1.0", "2", "2")
    assert float(best["val/acc"]) == pytest.approx(0.8)
    assert float(best["val/acc deviation"]) == pytest.approx(0.02**0.5)
    assert "seed" not in best
    data = {"_target_": "classifier.data.ImageFolderDataModule"}
    make_run(tmp_path / "no_fold", {"val/acc": 0.1}, data={**data, "fold": None})
    make_run(tmp_path / "fold", {"val/acc": 0.9}, data={**data, "fold": 0})
    (fold,) = csv_rows(capsys, tmp_path, over=["data.fold"], name="fold")
    assert (fold["val/acc"], fold["runs"]) == ("0.9", "1")
    compare(tmp_path, over=["seed"])
    printed = capsys.readouterr()
    assert "0.8000 ± 0.1414" in printed.out
    assert "stopped (unfinished)" in printed.err


WHOLE = "monitor: val/acc\nmode: max\n"
BOMB = WHOLE + "a0: &a0 [x, x]\n" + "".join(f"a{n + 1}: &a{n + 1} [*a{n}, *a{n}]\n" for n in range(20))
DEEP = f"{WHOLE}deep: {'[' * 500}{']' * 500}\n"
DAMAGED = {"config.yaml": [b"", b"- a\n- b\n", b"a: [", b"\xff\x00", b"mode: max\n", BOMB.encode(), DEEP.encode()],
           "metrics.json": [b'{"val/ac', b"[1]", b"\xff", b'{"val/acc": 1%s}' % (b"0" * 400), b"[" * 100_000],
           "metrics.csv": [b"", b"a\x00b", b"epoch,step,val/acc\n1,2,high\n", b"one,line\n1,2,3,4\n"]}  # fmt: skip


def test_a_damaged_file_is_named_and_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "good", {"val/acc": 0.5})
    broken = [(file, content) for file, contents in DAMAGED.items() for content in contents]
    for number, (file, content) in enumerate(broken):
        make_run(tmp_path / f"bad{number}")
        (tmp_path / f"bad{number}" / file).write_bytes(content)
    (tmp_path / "headless" / "checkpoints").mkdir(parents=True)
    assert [row["run"] for row in csv_rows(capsys, tmp_path)] == ["good"]
    compare(tmp_path)
    lines = capsys.readouterr().err.splitlines()
    named = {f"bad{number} ({file}:" for number, (file, _) in enumerate(broken)} | {"headless (config.yaml:"}
    assert len(lines) == len(named)
    assert all(any(name in line for line in lines) for name in named)
    assert max(map(len, lines)) < 160


SETTINGS: dict[str, dict[str, Any]] = {
    "rate": {"optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.01}},
    "network": {"model": RESNET, "seed": 3},
    "a_name_of_many_words_" * 2: {"scheduler": {"_target_": "cosine", "min_lr": 0.0}},
    "plain": {},
    "again": {"data": {"_target_": "classifier.data.DigitsDataModule", "seed": 0, "fold": 2}},
}


@pytest.mark.parametrize("width", [80, 120, 200])
def test_the_table_fits_the_terminal(
    width: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As columns where they fit, else what most runs share once, and what differs below each run."""
    monkeypatch.setenv("COLUMNS", str(width))
    for number, (name, settings) in enumerate(SETTINGS.items()):
        make_run(tmp_path / name, {"val/acc": 0.9 - number / 100, "test/acc": 0.5}, **settings)
    compare(tmp_path)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= width
    found = [line.split() for line in out.splitlines()]
    assert all(name in out for name in SETTINGS)
    assert "0.9000" in out
    assert "test/acc" not in out
    assert "state" not in out, "all are done"
    if width > 80:
        assert found[0] == ["run", "val/acc", "seed", "data.fold", "model", "optimizer.lr", "scheduler"]
        assert found[1] == ["rate", "0.9000", "0", "null", "SimpleCNN", "0.01", "null"]
    else:
        common = " ".join(out.partition("val/acc")[0].split(":")[1].split())
        assert common == "seed=0 data.fold=null model=SimpleCNN optimizer.lr=0.001 scheduler=null"
        at = found.index(["0.8900", "network"])
        assert found[at + 1] == ["seed=3", "model=resnet18.a1_in1k"]
        assert found[-4] == ["0.8700", "plain"]


def test_more_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "a", {"val/acc": 0.5, "test/acc": 0.25}, seed=1)
    make_run(tmp_path / "b", seed=2)
    compare(tmp_path, columns=["epoch", "test/acc"])
    head, *lines = (line.split() for line in capsys.readouterr().out.splitlines()[:3])
    assert head == ["run", "val/acc", "epoch", "test/acc", "state", "seed"]
    assert lines == [["a", "0.5000", "3.0", "0.2500", "done", "1"], ["b", "unfinished", "2"]]


def test_wrong_options(tmp_path: Path) -> None:
    make_run(tmp_path / "a", {"val/acc": 0.5, "test/acc": 0.5})
    cases: dict[str, dict[str, Any]] = {
        "val/acc": {"sort": "val/ac"},
        "data.fold": {"over": ["data.folds"]},
        "test/acc": {"columns": ["test/ac"]},
        "other": {"name": "other"},
        "--limit=0": {"limit": 0},
    }
    for said, options in cases.items():
        with pytest.raises(UserError, match=said):
            compare(tmp_path, **options)


@pytest.mark.slow
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
