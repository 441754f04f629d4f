"""The training run, from a config to metrics."""

import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from pytorch_lightning.callbacks import ModelCheckpoint

from classifier.cli import override, restore_variable
from classifier.config import new_run_dir, on_main_process, plain
from classifier.data import ClassificationDataModule, build_datamodule
from classifier.errors import UserError, did_you_mean
from classifier.evaluation.tables import rounded, write_json
from classifier.models import require_image_size
from classifier.training.checkpoint import RUN_KEY, RunRecord, init_from, read_checkpoint
from classifier.training.loggers import RunTensorBoardLogger
from classifier.training.module import ImageClassifier, without_weights
from classifier.training.trainer import build_trainer

log = logging.getLogger(__name__)

LAUNCH_VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")


def train(config: DictConfig) -> dict[str, float]:
    """Train, test the best checkpoint, and return the metrics that metrics.json holds.

    Args:
        config: As configs/train.yaml composes it; with `resume` set, that of the run to go on with.

    Raises:
        UserError: Wrong input. What a new run has written by then is removed.
    """
    started = time.monotonic()
    resuming = config.resume is not None
    if config.name is None:
        config.name = str(HydraConfig.get().runtime.choices["experiment"])
    datamodule = build_datamodule(plain(config.data))
    if resuming and (Path(config.resume) / "split.csv").is_file():
        datamodule.split_file = str(Path(config.resume) / "split.csv")
    datamodule.setup()
    with _run_directory(config, resuming) as run_dir:
        settings = plain(config)
        last = run_dir / "checkpoints" / "last.ckpt"
        if resuming and not last.exists():
            log.warning("%s has no checkpoint yet: it starts from the beginning", run_dir)
        ckpt_path = last if resuming and last.exists() else None
        model = _build_model(settings, datamodule, new=ckpt_path is None)
        require_image_size(model.network, model.preprocessing.channels, model.preprocessing.image_size)
        _require_monitor(settings["monitor"], model, datamodule)
        if settings["init_from"] is not None and ckpt_path is None:
            log.info(init_from(model, Path(settings["init_from"])))
        if ckpt_path is not None:
            _tell_progress(read_checkpoint(ckpt_path, key="resume"), settings)
        trainer = build_trainer(settings, run_dir, extra_callbacks=[RunRecord(settings, datamodule)])
        _log_hyperparameters(trainer, settings)
        _announce(trainer, model, datamodule, run_dir)
        with _own_processes(run_dir, resuming):
            trainer.fit(model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True)
            metrics = _final_metrics(trainer, model, datamodule, test=settings["test"])
        metrics["fit_seconds"] = round(time.monotonic() - started, 3)
        if trainer.is_global_zero:
            write_json(run_dir / "metrics.json", metrics)
            _report(run_dir, metrics)
    return metrics


def _build_model(settings: dict[str, Any], datamodule: ClassificationDataModule, new: bool) -> ImageClassifier:
    network = settings["model"] if new else without_weights(settings["model"])
    pl.seed_everything(settings["seed"], verbose=False)
    return ImageClassifier(
        model=network,
        classes=list(datamodule.classes),
        preprocessing=datamodule.preprocessing.to_dict(),
        optimizer=settings["optimizer"],
        scheduler=settings["scheduler"],
        loss=settings["loss"],
        seed=settings["seed"],
    )


def _tell_progress(checkpoint: dict[str, Any], settings: dict[str, Any]) -> None:
    epoch, limit = checkpoint["epoch"] + 1, settings["trainer"]["max_epochs"]
    log.info("going on from step %d in epoch %d", checkpoint["global_step"], epoch)
    if limit is not None and checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"] >= limit > 0:
        log.info("all %d epochs are done: use trainer.max_epochs=... to go further", limit)


def _require_monitor(monitor: str, model: ImageClassifier, datamodule: ClassificationDataModule) -> None:
    if monitor not in model.metric_names:
        raise UserError(f"monitor={monitor} is not logged: {did_you_mean(monitor, model.metric_names)}")
    if monitor.startswith("val/") and "val" not in datamodule.split:
        raise UserError(
            f"monitor={monitor} needs validation images and there are none: use data.val_fraction=0.1, "
            "or monitor=train/loss mode=min"
        )


@contextmanager
def _run_directory(config: DictConfig, resuming: bool) -> Iterator[Path]:
    """Make the run's directory and write it into the config; remove it again where the run never started."""
    given = config.run_dir is not None
    parent = Path(config.log_dir, config.name)
    made_here = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    if given:
        run_dir = Path(config.run_dir)
        if not resuming and on_main_process() and (run_dir / "config.yaml").exists():
            raise UserError(f"run_dir={run_dir} holds a run already: use resume={run_dir}, or another run_dir")
    elif HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        run_dir = Path(os.path.relpath(HydraConfig.get().runtime.output_dir))
    else:
        run_dir = _agree_on(lambda: new_run_dir(parent))
    run_dir.mkdir(parents=True, exist_ok=True)
    config.run_dir = str(run_dir)
    try:
        yield run_dir
    finally:
        if on_main_process() and not given and not (run_dir / "config.yaml").exists():
            shutil.rmtree(run_dir, ignore_errors=True)
            for folder in made_here:
                with suppress(OSError):  # not empty
                    folder.rmdir()


def _agree_on(choose: Callable[[], Path]) -> Path:
    """The main process's choice. Processes that torchrun started learn it over torchrun's own store."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ["WORLD_SIZE"] == "1":
        return choose()
    store = torch.distributed.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    key = f"run_dir of attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    if on_main_process():
        store.set(key, str(choose()))
    return Path(store.get(key).decode())


@contextmanager
def _own_processes(run_dir: Path, resuming: bool) -> Iterator[None]:
    """Let processes that Lightning starts run this job alone, in this directory, and leave no trace of them.

    They repeat sys.argv: a multirun would run whole again in each, and `latest` could mean another run. And what
    the first job of a multirun leaves behind in the environment would keep the second from starting its own.
    """
    arguments, environment = list(sys.argv), {key: os.environ.get(key) for key in LAUNCH_VARIABLES}
    if HydraConfig.initialized() and not resuming:
        sys.argv[1:] = [*HydraConfig.get().overrides.task, override("run_dir", str(run_dir))]
    started_here = not torch.distributed.is_initialized()
    try:
        yield
    finally:
        sys.argv[:] = arguments
        if started_here and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
            for key, value in environment.items():
                restore_variable(key, value)


def _log_hyperparameters(trainer: pl.Trainer, settings: dict[str, Any]) -> None:
    # what runs are compared by; TensorBoard's table is hard to read with more
    shown = {key: settings[key] for key in ("model", "optimizer", "scheduler", "loss", "seed")}
    shown["data"] = {key: settings["data"][key] for key in ("batch_size", "image_size")}
    metrics = [settings["monitor"], *(["test/acc", "test/loss"] if settings["test"] else [])]
    for logger in trainer.loggers:
        if isinstance(logger, RunTensorBoardLogger):
            logger.log_run({key: value for key, value in shown.items() if value is not None}, metrics)


def _final_metrics(
    trainer: pl.Trainer, model: ImageClassifier, datamodule: ClassificationDataModule, test: bool
) -> dict[str, float]:
    """The metrics of the best checkpoint: those it holds, and its test."""
    checkpoint = trainer.checkpoint_callback
    best = checkpoint.best_model_path if isinstance(checkpoint, ModelCheckpoint) else ""
    progress = {"epoch": trainer.current_epoch, "global_step": trainer.global_step}
    values = {name: value.item() for name, value in trainer.callback_metrics.items()}
    if best:
        values = read_checkpoint(Path(best))[RUN_KEY]["metrics"]
    if test and "test" in datamodule.split:
        trainer.test(model, datamodule=datamodule, ckpt_path=best or None, weights_only=True, verbose=False)
        values |= {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("test/")}
    elif test:
        log.warning("%s has no test part: nothing was tested", datamodule.source.root)
    return {**rounded(values), **progress}


def _announce(trainer: pl.Trainer, model: ImageClassifier, datamodule: ClassificationDataModule, run_dir: Path) -> None:
    parts = ", ".join(f"{len(rows)} {name}" for name, rows in datamodule.split.items())
    log.info("%s: %s images of %d classes", datamodule.source.root, parts, datamodule.num_classes)
    device = trainer.strategy.root_device.type
    log.info("%s on %s x %d, precision %s", type(model.network).__name__, device, trainer.world_size, trainer.precision)
    log.info("%s", run_dir)


def _report(run_dir: Path, metrics: dict[str, float]) -> None:
    shown = [name for name in ("val/acc", "val/loss", "test/acc", "test/loss", "test/f1") if name in metrics]
    log.info("%s", "  ".join(f"{name} {metrics[name]:.4f}" for name in shown))
    log.info("in %s: checkpoints/best.ckpt, metrics.json, metrics.csv, config.yaml, split.csv", run_dir)
