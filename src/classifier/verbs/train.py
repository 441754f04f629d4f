"""The training run, from a config to metrics."""

import logging
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from pytorch_lightning.callbacks import ModelCheckpoint

from classifier.data import ClassificationDataModule, build_datamodule
from classifier.errors import UserError, as_typed, require_choice, require_flag, require_whole
from classifier.evaluation.predictions import rounded, write_json
from classifier.files import report_full_disk, require_outside
from classifier.models.network import require_image_size, without_weights
from classifier.runs import folder_of, named_settings, plain, prolongs, require_changeable, stored_config
from classifier.training.averaging import WeightAverage
from classifier.training.checkpoints import RUN_KEY, RunRecord, init_from, read_checkpoint, require_same_model
from classifier.training.hardware import report_out_of_memory, smaller_batch, speed_up
from classifier.training.loggers import RunTensorBoardLogger
from classifier.training.module import ImageClassifier
from classifier.training.stopping import ending_on_sigterm, exit_code
from classifier.training.trainer import build_trainer
from classifier.training.tuning import CURVE, KINDS, tune
from classifier.verbs.run_directory import own_processes, run_directory

log = logging.getLogger(__name__)
LAST = "checkpoints/last.ckpt"


@ending_on_sigterm()
def train(config: DictConfig) -> dict[str, float]:
    """Train, test the best checkpoint, and return the metrics that metrics.json holds.

    With `tune` set, find a learning rate or a batch size instead, and return that. A finished run is left alone.

    Args:
        config: As configs/train.yaml composes it; with `resume` set, that of the run to resume.

    Raises:
        UserError: Wrong input. What a new run has written by then is removed.
    """
    require_whole("seed", config.seed, 0, 2**32 - 1)
    require_flag("test", config.test)
    if config.tune is not None:
        require_choice("tune", config.tune, KINDS)
    resumed = Path(config.resume) if config.resume else None
    if resumed is not None:
        require_changeable(stored_config(resumed), plain(config))
        if (resumed / "metrics.json").is_file() and not prolongs(stored_config(resumed), plain(config)):
            done = config.trainer.max_epochs
            log.info("%s is finished: trainer.max_epochs=N with N above %s prolongs it", resumed, done)
            return {}
    else:
        choices = HydraConfig.get().runtime.choices
        name = str(config.name or choices.get("experiment") or choices["data"])
        config.name = folder_of(name, choices.get("debug"))
    datamodule = build_datamodule(plain(config.data))
    if resumed is None:
        key = "log_dir" if config.run_dir is None else "run_dir"
        require_outside(Path(config[key]), datamodule.root, key)
    datamodule.prepare_data()
    if resumed is not None and (resumed / "split.csv").is_file():
        datamodule.split_file = str(resumed / "split.csv")
    datamodule.setup()
    written = f"{CURVE}.csv" if config.tune else "config.yaml"
    with run_directory(config, written) as run_dir, report_full_disk(f"type resume={run_dir}"):
        settings = plain(config)
        last = run_dir / LAST if resumed and (run_dir / LAST).exists() else None
        if resumed and last is None:
            log.warning("%s has no checkpoint yet: it starts from the beginning", run_dir)
        model = build_classifier(settings, datamodule, new=last is None)
        if last is not None:
            _require_resumable(settings, model, last)
        size = settings["data"]["batch_size"]
        advice = smaller_batch(size, settings["trainer"]["accumulate_grad_batches"])
        with own_processes(config), report_out_of_memory(f"data.batch_size={size}", advice):
            if config.tune:
                return tune(settings, model, datamodule, run_dir)
            return _fit(settings, model, datamodule, last)


def _fit(
    settings: dict[str, Any], model: ImageClassifier, datamodule: ClassificationDataModule, ckpt_path: Path | None
) -> dict[str, float]:
    run_dir = Path(settings["run_dir"])
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    callbacks = [RunRecord(settings, datamodule, overrides), *speed_up(model.network, **settings["speed"])]
    if settings["ema"] is not None:
        callbacks.insert(0, WeightAverage(settings["ema"]))
    trainer = build_trainer(settings, run_dir, extra_callbacks=callbacks)
    if not settings["trainer"]["overfit_batches"]:
        datamodule.require_batch(trainer.world_size)  # before other processes start, which would report it again
    _log_run(trainer, datamodule, settings)
    log.info("parameters: %s", f"{sum(value.numel() for value in model.parameters()):,}")
    started = time.monotonic()
    try:
        trainer.fit(model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True)
        fit_seconds = round(time.monotonic() - started, 3)
        metrics = _results(trainer, datamodule, settings)
    except SystemExit as stop:
        if trainer.is_global_zero and (run_dir / "config.yaml").exists():  # else the directory is removed
            log.warning("stopped in epoch %d: resume=%s continues", trainer.current_epoch + 1, run_dir)
        sys.exit(exit_code(signal.SIGINT) if stop.code == 1 else stop.code)  # 1: so Lightning ends on Ctrl-C
    metrics["fit_seconds"] = fit_seconds
    if trainer.is_global_zero:
        write_json(run_dir / "metrics.json", metrics, "log_dir")
        # for HPARAMS; charts of one point come last among the others by this name
        compared = (settings["monitor"], f"test/{model.task.headline}")
        reached = {f"with_best/{name}": metrics[name] for name in compared if name in metrics}
        for logger in trainer.loggers:
            if isinstance(logger, RunTensorBoardLogger):
                logger.log_metrics(reached, trainer.global_step - 1)  # as Lightning counts
                logger.finalize("success")
        shown = [f"{name} {value:.4f}" for name, value in metrics.items() if name.startswith(("val/", "test/"))]
        log.info("%s\n%s", "  ".join(shown), run_dir)
    return metrics


def build_classifier(settings: dict[str, Any], datamodule: ClassificationDataModule, new: bool) -> ImageClassifier:
    """Build what a run trains, and refuse what can be refused before its first step.

    Args:
        settings: The resolved config.
        datamodule: Set up.
        new: Whether the weights are those that the config names; else a checkpoint brings them.

    Raises:
        UserError: The config does not fit together.
    """
    counts = datamodule.class_counts("train")
    pl.seed_everything(settings["seed"], verbose=False)
    model = ImageClassifier(
        model=settings["model"] if new else without_weights(settings["model"]),
        classes=list(datamodule.classes),
        preprocessing=datamodule.preprocessing.to_dict(),
        class_counts=counts.tolist(),
        image_count=len(datamodule.rows("train")),
        trusted=True,
        **{key: settings[key] for key in ("optimizer", "scheduler", "finetune", "loss", "mix", "seed", "task")},
    )
    for size in {model.preprocessing.image_size, *datamodule.augmentation.sizes.values()}:
        require_image_size(
            model.network, model.preprocessing.channels, size, "use another data.image_size, or data.train_size=null"
        )
    monitor, mode, limit = settings["monitor"], settings["mode"], settings["trainer"]["limit_val_batches"]
    require_choice("monitor", monitor, model.task.metric_names)
    if mode != (best := "min" if monitor.endswith("loss") else "max"):
        raise UserError(f"mode={as_typed(mode)} would keep the worst {monitor}: use mode={best}")
    if monitor.startswith("val/") and ("val" not in datamodule.parts or limit == 0):
        remedy = "data.val_fraction=0.1 trainer.limit_val_batches=null, or monitor=train/loss mode=min"
        raise UserError(f"monitor={monitor} needs validation images: use {remedy}")
    if settings["init_from"] is not None and new:
        log.info(init_from(model, Path(settings["init_from"])))
    loaded = [settings["init_from"], *(settings["model"].get(key) for key in ("pretrained", "checkpoint_path"))]
    if new and not any(loaded) and model.finetuning.trained(0) < len(model.finetuning.stages):
        log.warning("finetune freezes features that nothing has trained: use model.pretrained=true, or init_from=...")
    return model


def _require_resumable(settings: dict[str, Any], model: ImageClassifier, ckpt_path: Path) -> None:
    checkpoint = read_checkpoint(ckpt_path, key="resume")
    require_same_model(checkpoint, model, ckpt_path)
    epoch, limit = checkpoint["epoch"] + 1, settings["trainer"]["max_epochs"]
    done = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    log.info("resuming from step %d, %s epoch %d", checkpoint["global_step"], "in" if epoch > done else "after", epoch)
    if limit is not None and done > limit > 0:
        raise UserError(f"epoch {done} is done already: use trainer.max_epochs={done + 1} or more")


def _results(trainer: pl.Trainer, datamodule: ClassificationDataModule, settings: dict[str, Any]) -> dict[str, float]:
    """The metrics of the best checkpoint, or else of the last: those it holds, and its test."""
    checkpoint = trainer.checkpoint_callback
    best = checkpoint.best_model_path if isinstance(checkpoint, ModelCheckpoint) else ""
    last = Path(settings["run_dir"], LAST)
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
    if settings["test"] and "test" in datamodule.parts:
        model = trainer.lightning_module
        trainer.test(model, datamodule=datamodule, ckpt_path=best or None, weights_only=True, verbose=False)
        values |= {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("test/")}
    elif settings["test"]:
        log.warning("%s has no test part: nothing was tested", datamodule.root)
    return {**rounded(values), **progress}


def _log_run(trainer: pl.Trainer, datamodule: ClassificationDataModule, settings: dict[str, Any]) -> None:
    parts = ", ".join(f"{len(datamodule.rows(part))} {part}" for part in datamodule.parts)
    log.info("%s: %s images of %d classes", datamodule.root, parts, len(datamodule.classes))
    model, device = named_settings(settings)["model"], trainer.strategy.root_device.type
    log.info("%s on %s x %d, precision %s", model, device, trainer.world_size, trainer.precision)
    # what runs are compared by; TensorBoard's table is hard to read with more
    groups = ("model", "finetune", "optimizer", "scheduler", "loss", "mix", "ema", "seed")
    shown = {key: settings[key] for key in groups}
    shown["data"] = data = {key: settings["data"].get(key) for key in ("batch_size", "image_size", "augment")}
    steps = {"crop": (data["augment"] or {}).get("crop"), **((data["augment"] or {}).get("transforms") or {})}
    shown["augment"] = " ".join(name for name, step in steps.items() if step is not None) or "none"
    for logger in trainer.loggers:
        if isinstance(logger, RunTensorBoardLogger):
            logger.log_run(shown)
