"""A checkpoint on labelled images -> metrics.json and predictions.csv."""

import inspect
import logging
import math
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_class
from omegaconf import DictConfig

from classifier.cli import argument
from classifier.data import ClassificationDataModule, build_datamodule
from classifier.data.samples import BOX, fingerprint
from classifier.data.split import Splitting
from classifier.data.transforms import Preprocessing
from classifier.errors import UserError
from classifier.evaluation.predictions import rounded, write_json
from classifier.files import require_outside, write_csv
from classifier.models.network import require_image_size
from classifier.runs import new_run_dir, plain, run_dir_of
from classifier.training.checkpoints import RUN_KEY, read_checkpoint
from classifier.training.hardware import report_out_of_memory
from classifier.training.module import ImageClassifier
from classifier.untrusted import known_targets, require_plain
from classifier.verbs import predict

log = logging.getLogger(__name__)


def stored_values(path: Path) -> dict[str, Any]:
    """What eval.yaml takes over from a checkpoint: which data, and how its images were read.

    The file may come from a stranger. So these are plain values, and nothing else of its config is looked at: where to
    write, what to fetch and how many processes to start is this checkout's to say.

    Raises:
        UserError: The checkpoint cannot be used, or names a data module that is not in configs/data.
    """
    checkpoint = read_checkpoint(path)
    values = predict.stored_values(path, checkpoint)
    try:
        stored = dict(checkpoint[RUN_KEY]["config"]["data"])
        target = str(stored["_target_"])
        reading = Preprocessing.from_dict(checkpoint["hyper_parameters"]["preprocessing"]).to_dict()
    except (LookupError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"ckpt_path={path} does not say how its images were read ({error!r})") from error
    known = target in known_targets("data")
    if not known and argument("data") is None:
        raise UserError(f"data._target_={target} is in no configs/data/NAME.yaml: add one, or type data=NAME")
    own = {key: stored[key] for key in (own_parameters(get_class(target)) if known else ()) if key in stored}
    reading |= {key: stored[key] for key in ("batch_size", "on_error") if key in stored}
    if isinstance(reading.get("batch_size"), int):  # no result depends on it: 2 GB at most
        shape = (*reading["image_size"], reading["channels"])
        reading["batch_size"] = min(reading["batch_size"], (1 << 29) // math.prod(shape))
    require_plain({**own, **reading}, "data")
    data = {"defaults": ["_base"], **({"_target_": target} if known else {}), **own}
    return {"data": data, "run": {**values["run"], "data": reading}}


def own_parameters(kind: type) -> list[str]:
    """The parameters that say which data a data module means: those that not every data module has, and `root`."""
    common = inspect.signature(ClassificationDataModule).parameters.keys() - {"root"}
    parameters = inspect.signature(kind).parameters.values()
    return [item.name for item in parameters if item.name not in common and item.kind is not item.VAR_KEYWORD]


def evaluate(config: DictConfig) -> dict[str, float]:
    """Evaluate `ckpt_path` on a part of the data; return what metrics.json holds.

    Args:
        config: As configs/eval.yaml composes it with the `stored_values` of the checkpoint.

    Raises:
        UserError: Wrong input.
    """
    settings = plain(config)
    path = Path(settings["ckpt_path"])
    model, checkpoint, trainer, collector = predict.open_checkpoint(settings)
    run_dir = run_dir_of(path)
    datamodule = _open_data(model, checkpoint[RUN_KEY], settings["data"], run_dir / "split.csv")
    output = Path(settings["output_dir"] or run_dir / "eval")
    require_outside(output, datamodule.root, "output_dir")
    datamodule.test_split = model.evaluated_split = settings["split"] or datamodule.test_split
    rows = datamodule.rows(datamodule.test_split)
    require_image_size(model.network, datamodule.preprocessing.channels, datamodule.preprocessing.image_size)
    log.info("%s on %s: %d of %d images", path, datamodule.test_split, len(rows), len(datamodule.samples))
    size = datamodule.batch_size
    with report_out_of_memory(f"data.batch_size={size}", f"use data.batch_size={max(1, size // 2)}"):
        # Lightning calls it before a test, and a checkpoint must not say what to fetch, or where to
        datamodule.prepare_data = _prepare_nothing  # type: ignore[method-assign]
        trainer.test(model, datamodule=datamodule, verbose=False)
    metrics = rounded({name: value.item() for name, value in trainer.callback_metrics.items()})
    metrics |= {"epoch": checkpoint["epoch"] + 1, "global_step": checkpoint["global_step"]}  # epochs count from 1
    metrics |= {"flip": True} if model.flip else {}
    if trainer.is_global_zero:
        output = output if settings["output_dir"] else new_run_dir(output)
        predictions = collector.table()
        samples = datamodule.samples.loc[predictions.index].rename(columns={"label": "target"})
        table = samples[["path"]].assign(status="ok").join(predictions).join(samples.filter(["target", *BOX]))
        write_csv(output / "predictions.csv", table, "output_dir", float_format="%.6f")
        write_json(output / "metrics.json", metrics)
        tables = {f"{name}.csv": found for name, found in model.details.items() if isinstance(found, pd.DataFrame)}
        for name, found in tables.items():
            write_csv(output / name, found, "output_dir", float_format="%.6f")
        log.info("%s", "  ".join(f"{name} {value:.4f}" for name, value in metrics.items() if "/" in name))
        log.info("in %s: %s", output, ", ".join(["metrics.json", "predictions.csv", *tables]))
    return metrics


def _prepare_nothing() -> None:  # no lambda, as reading processes get a pickled data module
    pass


def _open_data(
    model: ImageClassifier, record: Mapping[str, Any], settings: dict[str, Any], split_file: Path
) -> ClassificationDataModule:
    """The data to evaluate on. Nothing is fetched or made for it.

    The run's own is divided as it was then, whatever was added to the folder since. Of another folder that has no
    parts of its own, all images are new to the model, and all are evaluated by default.
    """
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    typed = {text.partition("=")[0].lstrip("+") for text in overrides}
    build = partial(build_datamodule, classes=list(model.classes), task=model.hparams["task"])
    datamodule, trained_on = build(settings), record["config"]["data"]
    keys = ["_target_", *own_parameters(type(datamodule))]
    own_data = all(_place(settings.get(key)) == _place(trained_on.get(key)) for key in keys)
    if own_data and "data.split_file" not in typed:
        division = [*inspect.signature(Splitting).parameters, "group_pattern", "group_duplicates"]
        stored = {key: trained_on[key] for key in division if key in trained_on and f"data.{key}" not in typed}
        if split_file.is_file():
            stored = {"split_file": str(split_file)}
        require_plain(stored, "data")
        datamodule = build({**settings, **stored})
    divided = own_data or datamodule.read().reindex(columns=["split"]).notna().any(axis=None)
    datamodule.setup()
    if own_data and fingerprint(datamodule.samples) != record["data_fingerprint"]:
        log.warning("%s is not as it was in training: files came, went or changed their class", datamodule.root)
    datamodule.test_split = "test" if divided else "all"
    return datamodule


def _place(value: Any) -> Any:
    """`value`, equal for all spellings of a path."""
    return os.path.realpath(Path(value).expanduser()) if isinstance(value, str) else value
