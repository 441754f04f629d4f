import csv
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from classifier.training.callbacks import Throughput
from classifier.training.loggers import SHOWN, ConsoleLogger, EpochCSVLogger, RunTensorBoardLogger
from tests.training import runs


def rows(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_run_leaves_one_row_an_epoch(tmp_path: Path) -> None:
    """A test adds none: mixed with the last epoch's own, should the run be resumed for longer, it would mislead."""
    trainer = runs.trainer(tmp_path, [Throughput()], max_epochs=3, logger=EpochCSVLogger(str(tmp_path)))
    model = runs.make_classifier()
    trainer.fit(model, runs.loader(), runs.loader())
    metrics = {name: trainer.callback_metrics[name].item() for name in ("train/loss", "val/loss")}
    trainer.test(model, runs.loader(), verbose=False)
    table = rows(tmp_path)
    assert [(row["epoch"], row["step"]) for row in table] == [("1", "3"), ("2", "6"), ("3", "9")]
    assert list(table[0]) == ["epoch", "step", "train/acc", "train/data_wait", "train/images_per_second", "train/loss",
                              "val/acc", "val/f1", "val/loss"]  # fmt: skip
    assert all(value for row in table for value in row.values())
    assert {name: float(table[-1][name]) for name in metrics} == pytest.approx(metrics, rel=1e-5)


def test_train_and_validation_share_a_row_which_a_resumed_run_replaces(tmp_path: Path) -> None:
    logger = EpochCSVLogger(str(tmp_path))
    logger.log_metrics({"train/loss_step": 9.0, "epoch": 0}, step=3)
    logger.log_metrics({"lr-AdamW": 0.1}, step=3)
    assert not (tmp_path / "metrics.csv").exists()
    logger.log_metrics({"val/loss": 0.25, "epoch": 0}, step=5)
    logger.log_metrics({"train/loss": 0.5, "epoch": 0}, step=6)
    logger.log_metrics({"train/loss": 1 / 3, "epoch": 1}, step=12)
    first = {"epoch": "1", "step": "7", "train/loss": "0.5", "val/loss": "0.25"}
    assert rows(tmp_path) == [first, {"epoch": "2", "step": "13", "train/loss": "0.333333", "val/loss": ""}]
    resumed = EpochCSVLogger(str(tmp_path))
    resumed.log_metrics({"train/loss": 7.0, "epoch": 1}, step=12)
    resumed.log_metrics({"train/loss": 8.0, "val/acc": 0.5, "epoch": 2}, step=18)
    assert [row["train/loss"] for row in rows(tmp_path)] == ["0.5", "7", "8"]
    assert rows(tmp_path)[0] == {**first, "val/acc": ""}
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_settings_are_in_the_hparams_tab(tmp_path: Path) -> None:
    logger = RunTensorBoardLogger(str(tmp_path))
    model = {"_target_": "timm_model", "name": "vit", "drop_rate": 0.5, "widths": [4, 8], "weights": None}
    settings = {"seed": 3, "model": model, "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1}}
    logger.log_run(settings)
    logger.finalize("success")
    content = EventAccumulator(str(tmp_path)).Reload().PluginTagToContent(metadata.PLUGIN_NAME)
    start = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
    shown = {key: value.number_value or value.string_value for key, value in start.hparams.items()}
    parts = {"model": "vit", "model.drop_rate": 0.5, "model.widths": "[4,8]", "optimizer": "SGD", "optimizer.lr": 0.1}
    assert shown == {"seed": 3, "model.weights": "null", **parts}
    assert metadata.EXPERIMENT_TAG not in content  # of which TensorBoard would read one run's alone


@pytest.mark.parametrize(("every", "batches", "points"), [(50, 12, 4), (2, 12, 6), (50, 3, 3)])
def test_a_small_data_set_has_curves_too(every: int, batches: int, points: int, tmp_path: Path) -> None:
    logger = RunTensorBoardLogger(str(tmp_path))
    trainer = runs.trainer(tmp_path, max_epochs=1, logger=logger, log_every_n_steps=every)
    trainer.fit(runs.make_classifier(), runs.loader(count=4 * batches), runs.loader())
    assert {path.name[:20] for path in tmp_path.iterdir()} == {"events.out.tfevents."}
    events = EventAccumulator(str(tmp_path)).Reload()
    assert len(events.Scalars("train/loss_step")) == points
    assert [scalar.step for scalar in events.Scalars("val/loss")] == [batches]


def test_tensorboard_counts_epochs_and_steps_from_one(tmp_path: Path) -> None:
    trainer = runs.trainer(tmp_path, [Throughput()], max_epochs=2, logger=RunTensorBoardLogger(str(tmp_path)))
    model = runs.make_classifier()
    trainer.fit(model, runs.loader(), runs.loader())
    trainer.test(model, runs.loader(), verbose=False)
    events = EventAccumulator(str(tmp_path)).Reload()
    epochs = {scalar.step: scalar.value for scalar in events.Scalars("epoch")}
    assert epochs == {1: 1, 2: 1, 3: 1, 4: 2, 5: 2, 6: 2}
    for name in ("train/loss", "val/acc", "train/images_per_second"):
        assert [scalar.step for scalar in events.Scalars(name)] == [3, 6]
    assert [scalar.step for scalar in events.Scalars("test/acc")] == [6]


def test_each_epoch_leaves_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = runs.trainer(tmp_path, max_epochs=2, logger=ConsoleLogger())
    trainer.fit(runs.make_classifier(), runs.loader(), runs.loader())
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert [line.partition(":")[0] for line in lines] == ["epoch 1", "epoch 2"]
    train, loss, acc = (trainer.callback_metrics[name].item() for name in ("train/loss", "val/loss", "val/acc"))
    assert lines[1].startswith(f"epoch 2: loss {train:.3f} acc")
    assert f"val loss {loss:.3f} acc {acc:.3f}" in lines[1]


@pytest.mark.parametrize("other_task", [{"train/f1_micro", "val/map"}, {"train/acc", "val/acc"}])
def test_the_line_of_an_epoch_fits_80_columns(other_task: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    metrics = dict.fromkeys(SHOWN.keys() - other_task, 0.9876) | {"train/images_per_second": 12345.6}
    ConsoleLogger().log_metrics({**metrics, "epoch": 998})
    (line,) = capsys.readouterr().out.splitlines()
    assert "12346 img/s" in line
    assert len(line) <= 80
