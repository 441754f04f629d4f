"""A checkpoint on labelled images -> metrics.json and predictions.csv."""

import logging
import os
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from pytorch_lightning.callbacks import RichProgressBar

from classifier.data import ClassificationDataModule, build_datamodule
from classifier.data.samples import UNASSIGNED
from classifier.errors import require_flag
from classifier.evaluation.predictions import label_columns, rounded, top_labels, write_json, write_table
from classifier.models.network import require_image_size
from classifier.runs import new_run_dir, plain, run_dir_of
from classifier.training.checkpoints import RUN_KEY, open_model, read_checkpoint
from classifier.training.memory import report_out_of_memory
from classifier.training.module import Batch, ImageClassifier
from classifier.training.speed import speed_up
from classifier.training.trainer import make_trainer, with_usable_precision
from classifier.verbs.predict import stored_precision

log = logging.getLogger(__name__)

# settings that say which data is meant; another one, such as a margin, leaves the images what they are, and those that
# were trained on must then not be taken for new
WHERE = ("_target_", "root", "table", "annotations", "images", "image_sets", "name", "options",
         "x_train", "y_train", "x_val", "y_val", "x_test", "y_test")  # fmt: skip
DIVISION = ("fold", "limit_per_class", "group_pattern")  # made the run's own split.csv, and are for no other data


class PredictionRows(pl.Callback):
    """Collects index, label and the k likeliest classes of each tested image, of all processes."""

    def __init__(self, classes: tuple[str, ...], top_k: int) -> None:
        self.classes = classes
        self.top_k = min(top_k, len(classes))
        self.rows: dict[int, list[str]] = {}

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        probabilities = outputs.cpu()
        for index, label, row in zip(batch["index"].tolist(), batch["label"].tolist(), probabilities, strict=True):
            self.rows[index] = [*top_labels(row, self.classes, self.top_k), self.classes[label]]

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.world_size > 1:
            parts: list[dict[int, list[str]]] = [{} for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(parts, self.rows)
            self.rows = {index: row for part in parts for index, row in part.items()}


def stored_values(checkpoint: Path) -> dict[str, Any]:
    """What eval.yaml takes over from a checkpoint, group by group."""
    return {"data": read_checkpoint(checkpoint)[RUN_KEY]["config"]["data"], **stored_precision(checkpoint)}


def evaluate(config: DictConfig) -> dict[str, float]:
    """Evaluate `ckpt_path` on a part of the data; return what metrics.json holds.

    Args:
        config: As configs/eval.yaml composes it with the checkpoint's own data section.

    Raises:
        UserError: Wrong input.
    """
    settings = plain(config)
    path = Path(settings["ckpt_path"])
    require_flag("flip", settings["flip"])
    model, checkpoint = open_model(path)
    model.flip = settings["flip"]
    run_dir = run_dir_of(path)
    datamodule = _data_of(model, checkpoint[RUN_KEY], settings["data"], run_dir / "split.csv")
    datamodule.test_split = model.evaluated_split = settings["split"] or datamodule.test_split
    rows = datamodule.rows(datamodule.test_split)
    require_image_size(model.network, datamodule.preprocessing.channels, datamodule.preprocessing.image_size)
    collector = PredictionRows(model.classes, settings["top_k"])
    trainer = make_trainer(
        with_usable_precision(settings["trainer"]),
        run_dir,
        callbacks=[RichProgressBar(leave=False), collector, *speed_up(model.network, **settings["speed"])],
        logger=False,
        enable_model_summary=False,
    )
    log.info("%s on %s: %d of %d images", path, datamodule.test_split, len(rows), len(datamodule.samples))
    size = datamodule.batch_size
    with report_out_of_memory(f"data.batch_size={size}", f"use data.batch_size={max(1, size // 2)}"):
        trainer.test(model, datamodule=datamodule, verbose=False)
    metrics = {
        **rounded({name: value.item() for name, value in trainer.callback_metrics.items()}),
        "epoch": checkpoint["epoch"] + 1,  # counted from 1, as in the run's metrics.json
        "global_step": checkpoint["global_step"],
        **({"flip": True} if model.flip else {}),
    }
    if trainer.is_global_zero:
        output = Path(settings["output_dir"]) if settings["output_dir"] else new_run_dir(run_dir / "eval")
        _write_predictions(output / "predictions.csv", datamodule, collector)
        write_json(output / "metrics.json", metrics)
        log.info("%s", "  ".join(f"{name} {value:.4f}" for name, value in metrics.items() if "/" in name))
        log.info("in %s: metrics.json, predictions.csv", output)
    return metrics


def _data_of(
    model: ImageClassifier, record: dict[str, Any], settings: dict[str, Any], split_file: Path
) -> ClassificationDataModule:
    """The data to evaluate on.

    The run's own is divided as it was then, whatever was added to the folder since. Of another folder that has no
    parts of its own, all images are new to the model, and all are evaluated by default.
    """
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    typed = {text.partition("=")[0].lstrip("+") for text in overrides}
    trained_on = record["config"]["data"]
    same_data = all(_place(settings.get(key)) == _place(trained_on.get(key)) for key in WHERE)
    # images are read as in training, whatever data section is chosen, unless told otherwise
    stored = model.preprocessing.to_dict()
    settings = {**settings, **{key: value for key, value in stored.items() if f"data.{key}" not in typed}}
    settings["augment"] = settings["train_size"] = None
    if "data.split_file" not in typed:
        settings["split_file"] = str(split_file) if same_data and split_file.is_file() else None
    if settings["split_file"] is not None or not same_data:
        settings |= {key: None for key in DIVISION if f"data.{key}" not in typed}
    datamodule = build_datamodule(settings, classes=list(model.classes))
    if same_data:  # what is meant to be another folder is not made or fetched
        datamodule.prepare_data()
    datamodule.setup()
    if same_data and datamodule.samples.fingerprint() != record["data_fingerprint"]:
        log.warning("%s is not as it was in training: files came, went or changed their class", datamodule.source.root)
    divided = same_data or (datamodule.samples.splits != UNASSIGNED).any()
    datamodule.test_split = "test" if divided else "all"
    return datamodule


def _place(value: Any) -> Any:
    """`value`, equal for all spellings of a path."""
    return os.path.realpath(value) if isinstance(value, str) else value


def _write_predictions(path: Path, datamodule: ClassificationDataModule, collector: PredictionRows) -> None:
    samples = datamodule.samples
    boxes = [] if samples.boxes is None else ["x1", "y1", "x2", "y2"]
    columns = ["path", "status", *label_columns(collector.top_k), "target", *boxes]
    rows = (
        [samples.relative_path(index), "ok", *collector.rows[index], *(samples.box(index) or ())]
        for index in sorted(collector.rows)
    )
    write_table(path, columns, rows, "output_dir")
