"""The verbs and scripts on images with several labels."""

import json
from pathlib import Path

import pytest

from tests import generate
from tests.tools.parts import script
from tests.verbs.command import BARE, evaluated, finish, metrics, of_test, refuse, rows, start, succeed
from tests.verbs.test_resume import EVERY_THREE, checkpoints, require_same_bits, stopped_at

SETS = ("task=multi_label", "data=table", "data.root=tags", "data.table=labels.csv", "data.label_column=labels",
        "data.label_separator=|", "data.image_size=32")  # fmt: skip
RUN = (*BARE, *SETS, "trainer.max_epochs=2", "ema=0.9", "mix.mixup=0.2", "data.sampler=balanced",
       "loss.pos_weight=balanced", "run_dir=run")  # fmt: skip


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tags/ and a run on them; not to be changed."""
    cwd = tmp_path_factory.mktemp("tagged")
    generate.tagged(cwd / "tags", 100)
    said = succeed("train", *RUN, *EVERY_THREE, cwd=cwd).out
    assert "val/map" in said
    return cwd


def test_eval_and_predict_agree_with_the_training(tagged: Path, tmp_path: Path) -> None:
    before = metrics(tagged / "run")
    assert "val/map" in before
    found = evaluated(tagged, output=str(tmp_path / "test"))
    assert of_test(found) == of_test(before)
    validated = evaluated(tagged, "split=val", output=str(tmp_path / "val"))
    assert validated["val/f1"] == before["val/f1"]
    table = rows(tmp_path / "test" / "predictions.csv")
    assert list(table[0]) == ["path", "status", "labels", "p_blue", "p_green", "p_red", "target"]
    assert sum(row["labels"] == row["target"] for row in table) / len(table) == pytest.approx(
        found["test/exact"], abs=1e-6
    )
    classes = {row["class"]: row for row in rows(tmp_path / "test" / "classes.csv")}
    assert sum(float(row["ap"]) for row in classes.values()) / 3 == pytest.approx(found["test/map"], abs=1e-6)
    for row in table:
        chosen = [name for name in classes if float(row[f"p_{name}"]) >= float(classes[name]["threshold"])]
        assert row["labels"] == "|".join(chosen)
    output = tmp_path / "predictions.csv"
    succeed("predict", "ckpt_path=run", "inputs=tags/images", f"output={output}", "trainer=cpu", cwd=tagged)
    predicted = {row["path"].partition("/")[2]: row["labels"] for row in rows(output)}
    assert all(predicted[row["path"]] == row["labels"] for row in table)


def test_a_resumed_run_has_the_same_bits(tagged: Path, tmp_path: Path) -> None:
    run_dir = stopped_at(checkpoints(tagged / "run")[1], tmp_path / "stopped")
    succeed("train", f"resume={run_dir}", cwd=tagged)
    require_same_bits(run_dir, tagged / "run")
    assert "task=" in refuse("train", f"resume={run_dir}", "task=single_label", cwd=tagged)


@pytest.mark.slow
def test_two_processes_measure_what_one_does(tagged: Path, tmp_path: Path) -> None:
    """And train: the same global batches, and thresholds of all images."""
    options = ("ckpt_path=run", "trainer=ddp_sim", f"output_dir={tmp_path / 'two'}")
    finish(start("eval", *options, cwd=tagged))
    alone = evaluated(tagged, output=str(tmp_path / "one"))
    assert metrics(tmp_path / "two") == pytest.approx(alone, abs=1e-6)
    same = (*BARE, *SETS, "model.drop_rate=0", "augment=none", "trainer.max_epochs=2")
    finish(start("train", *same, "trainer=ddp_sim", "data.batch_size=4", f"run_dir={tmp_path / 'ddp'}", cwd=tagged))
    succeed("train", *same, "data.batch_size=8", f"run_dir={tmp_path / 'cpu'}", cwd=tagged)
    for name in ("train/loss", "val/loss", "val/map", "test/map"):
        assert metrics(tmp_path / "ddp")[name] == pytest.approx(metrics(tmp_path / "cpu")[name], rel=1e-3)


def test_the_scripts_count_an_image_for_each_of_its_labels(tagged: Path, tmp_path: Path) -> None:
    labels = [row["labels"].split("|") for row in rows(tagged / "tags" / "labels.csv")]
    counts = {name: sum(name in names for names in labels) for name in generate.CLASSES}
    script("check_data", *SETS, f"json={tmp_path / 'report.json'}", cwd=tagged)
    report = json.loads((tmp_path / "report.json").read_text())
    assert {name: of_class["all"] for name, of_class in report["classes"].items()} == counts
    script("data_statistics", *SETS, f"json={tmp_path / 'numbers.json'}", cwd=tagged)
    classes = json.loads((tmp_path / "numbers.json").read_text())["classes"]
    assert {name: sum(parts.values()) for name, parts in classes.items()} == counts
    script("preview", *SETS, "count=4", f"output={tmp_path / 'preview.png'}", cwd=tagged)
    script("crop", *SETS, f"output={tmp_path / 'crops'}", cwd=tagged)
    listing = rows(tmp_path / "crops" / "split.csv")
    assert sorted(row["label"].split("|") for row in listing) == sorted(labels)
    assert all((tmp_path / "crops" / row["path"]).is_file() for row in listing)


def test_what_does_not_fit_the_task_is_refused(tagged: Path) -> None:
    for typed, advice in (
        ("loss=cross_entropy", "loss=binary_cross_entropy"),
        ("monitor=val/acc", "monitor=val/acc"),
        ("data.task=several", "task=several"),
        ("task=several", "multi_label"),
    ):
        assert advice in refuse("train", *BARE, *SETS, typed, cwd=tagged)
