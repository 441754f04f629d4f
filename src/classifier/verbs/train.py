"""The training run, from a config to metrics."""

import logging
import signal
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from pytorch_lightning.callbacks import ModelCheckpoint

from classifier.data import ClassificationDataModule, build_datamodule
from classifier.errors import UserError, require_choice, require_flag, require_whole
from classifier.evaluation.predictions import rounded, write_json
from classifier.files import report_full_disk
from classifier.runs import folder_of, plain, require_changeable, stored_config
from classifier.training.averaging import WeightAverage
from classifier.training.checkpoints import RUN_KEY, RunRecord, read_checkpoint, require_same_model
from classifier.training.hardware import report_out_of_memory, smaller_batch, speed_up
from classifier.training.loggers import RunTensorBoardLogger
from classifier.training.module import ImageClassifier
from classifier.training.stopping import ending_on_sigterm, exit_code
from classifier.training.trainer import build_trainer
from classifier.training.tuning import CURVE, KINDS, tune
from classifier.verbs.classifier import build_classifier
from classifier.verbs.run_directory import own_processes, run_directory

log = logging.getLogger(__name__)


@ending_on_sigterm()
def train(config: DictConfig) -> dict[str, float]:
    """Train, test the best checkpoint, and return the metrics that metrics.json holds.

    With `tune` set, find a learning rate or a batch size instead, and return that.

    Args:
        config: As configs/train.yaml composes it; with `resume` set, that of the run to resume.

    Raises:
        UserError: Wrong input. What a new run has written by then is removed.
    """
    require_whole("seed", config.seed, 0, 2**32 - 1)
    require_flag("test", config.test)
    tuned = config.tune
    if tuned is not None:
        require_choice("tune", tuned, KINDS)
    resumed = None if config.resume is None else Path(config.resume)
    if resumed is not None:
        require_changeable(stored_config(resumed), plain(config))
    else:
        choices = HydraConfig.get().runtime.choices
        name = str(config.name or choices.get("experiment") or choices["data"])
        config.name = folder_of(name, choices.get("debug"))
    datamodule = build_datamodule(plain(config.data))
    datamodule.prepare_data()
    if resumed is not None and (resumed / "split.csv").is_file():
        datamodule.split_file = str(resumed / "split.csv")
    datamodule.setup()
    written = f"{CURVE}.csv" if tuned else "config.yaml"
    resuming = resumed is not None
    with run_directory(config, resuming, written) as run_dir, report_full_disk(f"type resume={run_dir}"):
        settings = plain(config)
        if tuned is None:
            return _fit(settings, datamodule, run_dir, resuming)
        model = build_classifier(settings, datamodule, new=True)
        with own_processes(run_dir, resuming), _out_of_memory_reported(settings):
            return tune(settings, model, datamodule, run_dir)


def _fit(
    settings: dict[str, Any], datamodule: ClassificationDataModule, run_dir: Path, resuming: bool
) -> dict[str, float]:
    last = run_dir / "checkpoints" / "last.ckpt"
    if resuming and not last.exists():
        log.warning("%s has no checkpoint yet: it starts from the beginning", run_dir)
    ckpt_path = last if resuming and last.exists() else None
    model = build_classifier(settings, datamodule, new=ckpt_path is None)
    if ckpt_path is not None:
        _require_resumable(settings, model, ckpt_path)
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    callbacks = [RunRecord(settings, datamodule, overrides), *speed_up(model.network, **settings["speed"])]
    if settings["ema"] is not None:
        callbacks.insert(0, WeightAverage(settings["ema"]))
    trainer = build_trainer(settings, run_dir, extra_callbacks=callbacks)
    if not settings["trainer"]["overfit_batches"]:
        datamodule.require_batch(trainer.world_size)  # before other processes start, which would report it again
    _log_hyperparameters(trainer, settings)
    _log_plan(trainer, model, datamodule)
    with own_processes(run_dir, resuming), _out_of_memory_reported(settings):
        started = time.monotonic()
        try:
            trainer.fit(model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True)
            fit_seconds = time.monotonic() - started
            metrics = _final_metrics(trainer, model, datamodule, run_dir, test=settings["test"])
        except SystemExit as stop:
            if trainer.is_global_zero and (run_dir / "config.yaml").exists():  # else the directory is removed
                log.warning("stopped in epoch %d: resume=%s continues", trainer.current_epoch + 1, run_dir)
            sys.exit(exit_code(signal.SIGINT) if stop.code == 1 else stop.code)  # 1: so Lightning ends on Ctrl-C
    metrics["fit_seconds"] = round(fit_seconds, 3)
    if trainer.is_global_zero:
        write_json(run_dir / "metrics.json", metrics, "log_dir")
        shown = [name for name in ("val/acc", "val/loss", "test/acc", "test/loss", "test/f1") if name in metrics]
        for part in ("val/", "test/"):
            log.info("%s", "  ".join(f"{name} {metrics[name]:.4f}" for name in shown if name.startswith(part)))
        log.info("%s", run_dir)
    return metrics


def _out_of_memory_reported(settings: dict[str, Any]) -> AbstractContextManager[None]:
    """Have an out-of-memory error name the batch size to type."""
    batch_size = settings["data"]["batch_size"]
    advice = smaller_batch(batch_size, settings["trainer"]["accumulate_grad_batches"])
    if settings["resume"] is not None:  # which cannot change them
        advice += ", in a new run with init_from=..."
    return report_out_of_memory(f"data.batch_size={batch_size}", advice)


def _require_resumable(settings: dict[str, Any], model: ImageClassifier, ckpt_path: Path) -> None:
    checkpoint = read_checkpoint(ckpt_path, key="resume")
    require_same_model(checkpoint, model, ckpt_path)
    epoch, limit = checkpoint["epoch"] + 1, settings["trainer"]["max_epochs"]
    done = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    log.info("resuming from step %d, %s epoch %d", checkpoint["global_step"], "in" if epoch > done else "after", epoch)
    if limit is not None and done > limit > 0:
        raise UserError(f"{done} epochs are done already: use trainer.max_epochs={done + 1} or more")
    if limit is not None and done == limit:
        log.info("all %d epochs are done: use trainer.max_epochs=... to train further", limit)


def _final_metrics(
    trainer: pl.Trainer, model: ImageClassifier, datamodule: ClassificationDataModule, run_dir: Path, test: bool
) -> dict[str, float]:
    """The metrics of the best checkpoint, or else of the last: those it holds, and its test."""
    checkpoint = trainer.checkpoint_callback
    best = checkpoint.best_model_path if isinstance(checkpoint, ModelCheckpoint) else ""
    last = run_dir / "checkpoints" / "last.ckpt"
    if not best and last.is_file():
        log.warning("no checkpoint was kept as the best: these are the metrics of %s", last)
        best = str(last)
    # not `current_epoch`, which a run that was resumed after its last epoch has not counted up
    done = trainer.fit_loop.epoch_progress.state_dict()["current"]["processed"]
    progress = {"epoch": done, "global_step": trainer.global_step}
    values = {name: value.item() for name, value in trainer.callback_metrics.items()}
    if best:
        kept = read_checkpoint(Path(best))
        values = kept[RUN_KEY]["metrics"]
        progress["best_epoch"] = kept["epoch"] + 1
    if test and "test" in datamodule.parts:
        trainer.test(model, datamodule=datamodule, ckpt_path=best or None, weights_only=True, verbose=False)
        values |= {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("test/")}
    elif test:
        log.warning("%s has no test part: nothing was tested", datamodule.root)
    return {**rounded(values), **progress}


def _log_hyperparameters(trainer: pl.Trainer, settings: dict[str, Any]) -> None:
    # what runs are compared by; TensorBoard's table is hard to read with more
    groups = ("model", "finetune", "optimizer", "scheduler", "loss", "mix", "ema", "seed")
    shown = {key: settings[key] for key in groups}
    shown["data"] = {key: settings["data"][key] for key in ("batch_size", "image_size")}
    metrics = [settings["monitor"], *(["test/acc", "test/loss"] if settings["test"] else [])]
    for logger in trainer.loggers:
        if isinstance(logger, RunTensorBoardLogger):
            logger.log_run({key: value for key, value in shown.items() if value is not None}, metrics)


def _log_plan(trainer: pl.Trainer, model: ImageClassifier, datamodule: ClassificationDataModule) -> None:
    parts = ", ".join(f"{len(datamodule.rows(part))} {part}" for part in datamodule.parts)
    log.info("%s: %s images of %d classes", datamodule.root, parts, datamodule.num_classes)
    device = trainer.strategy.root_device.type
    log.info("%s on %s x %d, precision %s", type(model.network).__name__, device, trainer.world_size, trainer.precision)
