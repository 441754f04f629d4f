"""Short trainings that find a learning rate, or the batch that fits into memory."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.memory import garbage_collection_cuda

from classifier.data import ClassificationDataModule
from classifier.errors import UserError
from classifier.evaluation.figures import rate_figure
from classifier.files import write_csv
from classifier.training.averaging import WeightAverage
from classifier.training.hardware import is_out_of_memory, same_effective_batch, speed_up
from classifier.training.module import ImageClassifier
from classifier.training.trainer import build_trainer

log = logging.getLogger(__name__)

KINDS = ("lr", "batch_size")
CURVE = "lr_find"  # .png and .csv in the run directory
RATES = np.geomspace(1e-6, 10.0, 100).tolist()  # 14 steps for each power of ten
STILL = 15  # steps at the beginning, whose rates change nothing yet


class RateSweep(pl.Callback):
    """Raises the rate of all parameter groups from step to step; stops when the loss diverges.

    (Lightning's `lr_find` gives all groups one rate and divides its mean loss by a wrong number. And it looks for the
    steepest slope along the rate itself, not along its logarithm: there, noise at 1e-6 is a hundred times steeper
    than learning at 1e-3.)

    Attributes:
        losses: For each of `RATES` that was tried, the mean of the step over accumulated batches and processes.

    Source: L. Smith, Cyclical Learning Rates for Training Neural Networks, arXiv:1506.01186.
    """

    def __init__(self) -> None:
        self.losses: list[float] = []
        self._ratios: list[float] = []
        self._of_step: list[torch.Tensor] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        [optimizer] = trainer.optimizers
        base = optimizer.defaults["lr"]
        self._ratios = [group["lr"] / base if base else 1.0 for group in optimizer.param_groups]

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        for group, ratio in zip(trainer.optimizers[0].param_groups, self._ratios, strict=True):
            group["lr"] = RATES[trainer.global_step] * ratio

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        self._of_step.append(outputs["loss"])  # its share of the step's mean
        if trainer.global_step == len(self.losses):
            return  # the step has more batches to accumulate
        loss = trainer.strategy.reduce(torch.stack(self._of_step).sum(), reduce_op="mean").item()
        self._of_step.clear()
        self.losses += [loss] if math.isfinite(loss) else []
        if not math.isfinite(loss) or np.mean(self.losses[-5:]) > 4 * np.mean(self.losses[:5]):
            trainer.should_stop = True


def suggestion(losses: Sequence[float]) -> tuple[float, float] | None:
    """The rates at which the loss falls fastest, and at which it is lowest.

    None where it does not fall by more than it varies between batches.
    """
    if len(losses) < 2 * STILL:
        return None
    curve = smoothed(losses)
    bottom = int(curve.argmin())
    still = np.asarray(losses[:STILL])
    if still.mean() - curve[bottom] <= 2 * still.std():
        return None
    slope = np.gradient(curve)  # along the logarithm of the rate
    return RATES[int(slope[: bottom + 1].argmin())], RATES[bottom]


def smoothed(losses: Sequence[float]) -> np.ndarray:
    """Each loss averaged with its neighbours on both sides, so that the curve is not shifted."""
    bounded = np.minimum(losses, 2 * np.mean(losses[:STILL]))  # a huge loss would outweigh its neighbours
    steps = np.arange(len(losses))
    weights = np.exp(-0.5 * ((steps[:, None] - steps) / 3) ** 2)  # a bell with a deviation of three steps
    mean: np.ndarray = weights @ bounded / weights.sum(1)
    return mean


def tune(
    settings: dict[str, Any], model: ImageClassifier, datamodule: ClassificationDataModule, run_dir: Path
) -> dict[str, float]:
    """Find what `tune` names; return it by its key. Nothing is compiled, which would take longer than the search.

    Args:
        settings: The run's config.

    Raises:
        UserError: There is nothing to suggest.
    """
    speed_up(model.network, **{**settings["speed"], "compile": False})
    find = find_rate if settings["tune"] == "lr" else find_batch_size
    return find(settings, model, datamodule, run_dir)


def find_rate(
    settings: dict[str, Any], model: ImageClassifier, datamodule: ClassificationDataModule, run_dir: Path
) -> dict[str, float]:
    """Sweep the learning rate; draw the curve into the run directory, and log what to type.

    Raises:
        UserError: The loss does not fall at any rate.
    """
    model.scheduler_config = None
    # as in the first epoch, however many the sweep takes
    model.finetuning.stay(model.finetuning.trained(0))
    datamodule.augmentation.hold(0)
    sweep = RateSweep()
    trainer = _short_trainer(settings, run_dir, len(RATES), [sweep])
    log.info("%d steps, from a rate of %g up to %g", len(RATES), RATES[0], RATES[-1])
    trainer.fit(model, datamodule=datamodule)
    losses, rates = sweep.losses, RATES[: len(sweep.losses)]
    if not losses:
        raise UserError("the loss of the first step is not finite: check the data and trainer.precision")
    found = suggestion(losses)
    curve = run_dir / f"{CURVE}.png"
    if trainer.is_global_zero:
        write_csv(curve.with_suffix(".csv"), pd.DataFrame({"rate": rates, "loss": losses}), "log_dir")
        rate_figure(rates, losses, smoothed(losses), found and found[0]).savefig(curve, dpi=120)
    if found is None:
        raise UserError(
            f"no learning rate to suggest: over {len(losses)} steps the loss does not fall by more than it varies "
            f"from batch to batch, see {curve}. Use a larger data.batch_size, or check the labels"
        )
    log.info("the loss fell fastest at a rate of %.2g, and was lowest at %.2g: %s", *found, curve)
    log.info("optimizer.lr=%.2g", found[0])
    return {"optimizer.lr": float(f"{found[0]:.2g}")}


def find_batch_size(
    settings: dict[str, Any], model: ImageClassifier, datamodule: ClassificationDataModule, run_dir: Path
) -> dict[str, float]:
    """Try larger and larger batches for a few steps; log what to type for the effective batch of the config.

    Raises:
        UserError: No GPU, several processes, or not even two images fit.
    """
    trainer = _short_trainer(settings, run_dir, 1)
    if trainer.world_size > 1 or trainer.strategy.root_device.type == "cpu":  # which would end without an error
        raise UserError("tune=batch_size needs one GPU: use trainer=gpu trainer.devices=1 trainer.num_nodes=1")
    largest = largest_batch(settings, model, datamodule, run_dir)
    if not largest:
        raise UserError("not even two images fit: use a smaller data.image_size, or a smaller network")
    effective = settings["data"]["batch_size"] * settings["trainer"]["accumulate_grad_batches"]
    size, times = same_effective_batch(effective, at_most=largest)
    log.info("the largest that fits is %d; for an effective batch of %d:", largest, effective)
    log.info("data.batch_size=%d trainer.accumulate_grad_batches=%d", size, times)
    return {"data.batch_size": size, "trainer.accumulate_grad_batches": times}


def largest_batch(
    settings: dict[str, Any], model: ImageClassifier, datamodule: ClassificationDataModule, run_dir: Path
) -> int:
    """The largest power of two that fits in the epoch that takes most memory; 0 if not even two images fit."""
    model.finetuning.stay(model.finetuning.most)
    datamodule.augmentation.hold(datamodule.augmentation.largest)
    settings = {**settings, "trainer": {**settings["trainer"], "accumulate_grad_batches": 1}}
    size = 2
    while size <= len(datamodule.rows("train")):
        datamodule.batch_size = size
        callbacks = [] if settings["ema"] is None else [WeightAverage(settings["ema"])]
        try:
            # the optimiser takes its memory in the first step; an epoch of one batch needs three
            _short_trainer(settings, run_dir, 3, callbacks).fit(model, datamodule=datamodule)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            log.info("data.batch_size=%d does not fit", size)
            break
        finally:
            model.zero_grad()
            garbage_collection_cuda()
        log.info("data.batch_size=%d fits", size)
        size *= 2
    return size // 2 if size > 2 else 0


def _short_trainer(
    settings: dict[str, Any], run_dir: Path, steps: int, callbacks: Sequence[pl.Callback] = ()
) -> pl.Trainer:
    """The run's Trainer for a few steps, which writes nothing."""
    limits = {"max_steps": steps, "max_epochs": -1, "min_epochs": None, "max_time": None, "limit_val_batches": 0}
    silent = {"fast_dev_run": False, "profiler": None, "enable_progress_bar": False}
    short = {**settings, "trainer": {**settings["trainer"], **limits, **silent}, "callbacks": {}, "logger": {}}
    return build_trainer(short, run_dir, list(callbacks))
