"""Short trainings that find a learning rate, or the batch that fits into memory."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.memory import garbage_collection_cuda
from torch.utils.tensorboard import SummaryWriter

from classifier.data import ClassificationDataModule
from classifier.data.loader import Batch
from classifier.errors import UserError
from classifier.evaluation.figures import rate_figure
from classifier.evaluation.predictions import write_table
from classifier.training.averaging import WeightAverage
from classifier.training.memory import is_out_of_memory, same_effective_batch
from classifier.training.module import ImageClassifier
from classifier.training.speed import speed_up
from classifier.training.trainer import build_trainer

log = logging.getLogger(__name__)


LOWEST, HIGHEST, STEPS = 1e-6, 10.0, 100  # 14 steps for each power of ten
STILL = 15  # steps at the beginning, whose rates change nothing yet
WIDTH = 3.0  # steps: standard deviation of the bell that the losses are smoothed with
DIVERGED = 4.0  # times the loss of the beginning


class RateSweep(pl.Callback):
    """Multiplies the rate of all parameter groups from step to step; stops when the loss has left all bounds.

    (Lightning's `lr_find` gives all groups one rate and divides its mean loss by a wrong number. And it looks for the
    steepest slope along the rate itself, not along its logarithm: there, noise at 1e-6 is a hundred times steeper
    than learning at 1e-3.)

    Attributes:
        rates: That of `optimizer.lr` in each optimiser step. Groups keep their ratios to it.
        losses: Mean of the step, over accumulated batches and processes.

    Source: L. Smith, Cyclical Learning Rates for Training Neural Networks, arXiv:1506.01186.
    """

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.losses: list[float] = []
        self._ratios: list[float] = []
        self._of_step: list[torch.Tensor] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        [optimizer] = trainer.optimizers
        base = optimizer.defaults["lr"]
        self._ratios = [group["lr"] / base if base else 1.0 for group in optimizer.param_groups]

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        rate = _rate(trainer.global_step)
        for group, ratio in zip(trainer.optimizers[0].param_groups, self._ratios, strict=True):
            group["lr"] = rate * ratio

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._of_step.append(outputs["loss"])  # its share of the step's mean
        step = len(self.losses)
        if trainer.global_step == step:
            return  # it has more batches to accumulate
        loss = trainer.strategy.reduce(torch.stack(self._of_step).sum(), reduce_op="mean").item()
        self._of_step.clear()
        if not math.isfinite(loss):
            trainer.should_stop = True
            return
        self.rates.append(_rate(step))
        self.losses.append(loss)
        if np.mean(self.losses[-5:]) > DIVERGED * np.mean(self.losses[:5]):
            trainer.should_stop = True


def _rate(step: int) -> float:
    return float(LOWEST * (HIGHEST / LOWEST) ** (step / (STEPS - 1)))


class Suggestion(NamedTuple):
    """Where the loss falls fastest, and where it is lowest."""

    steepest: float
    lowest: float


def suggestion(rates: Sequence[float], losses: Sequence[float]) -> Suggestion | None:
    """What a sweep says; None where its loss does not fall by more than it varies between batches."""
    if len(losses) < 2 * STILL:
        return None
    curve = smoothed(losses)
    bottom = int(curve.argmin())
    still = np.asarray(losses[:STILL])
    if still.mean() - curve[bottom] <= 2 * still.std():
        return None
    slope = np.gradient(curve, np.log(rates))
    return Suggestion(rates[int(slope[: bottom + 1].argmin())], rates[bottom])


def smoothed(losses: Sequence[float]) -> np.ndarray:
    """Each loss averaged with its neighbours on both sides, so that the curve is not shifted."""
    # one that has left all bounds would outweigh its neighbours
    bounded = np.minimum(losses, 2 * np.mean(losses[:STILL]))
    steps = np.arange(len(losses))
    weights = np.exp(-0.5 * ((steps[:, None] - steps) / WIDTH) ** 2)
    mean: np.ndarray = weights @ bounded / weights.sum(1)
    return mean


KINDS = ("lr", "batch_size")
CURVE = "lr_find"  # .png and .csv in the run directory, and the tag in TensorBoard
TRIAL_STEPS = 3  # the optimiser takes its memory in the first; a set that gives one whole batch an epoch needs three


def tune(
    settings: dict[str, Any], model: ImageClassifier, datamodule: ClassificationDataModule, run_dir: Path
) -> dict[str, float]:
    """Find what `tune` names; neither way compiles, which would take longer than the search.

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
    """Sweep the learning rate; draw the curve into the run directory and TensorBoard, and tell what to type.

    Raises:
        UserError: The loss does not fall at any rate.
    """
    model.scheduler_config = None
    # a sweep may take several epochs, and is of the first
    model.finetuning.stay(model.finetuning.trained(0))
    datamodule.augmentation.hold(0)
    sweep = RateSweep()
    trainer = _short_trainer(settings, run_dir, STEPS, [sweep])
    log.info("%d steps, from a rate of %g up to %g", STEPS, LOWEST, HIGHEST)
    trainer.fit(model, datamodule=datamodule)
    if not sweep.losses:
        raise UserError("the loss of the first step is no finite number: check the data and trainer.precision")
    found = suggestion(sweep.rates, sweep.losses)
    if trainer.is_global_zero:
        write_table(run_dir / f"{CURVE}.csv", ["rate", "loss"], zip(sweep.rates, sweep.losses, strict=True))
        figure = rate_figure(sweep.rates, sweep.losses, smoothed(sweep.losses), found and found.steepest)
        figure.savefig(run_dir / f"{CURVE}.png", dpi=120)
        if settings["logger"].get("tensorboard") is not None:
            with SummaryWriter(str(run_dir)) as board:
                board.add_figure(CURVE, figure)
    curve = run_dir / f"{CURVE}.png"
    if found is None:
        raise UserError(
            f"no learning rate to suggest: over {len(sweep.losses)} steps the loss does not fall by more than it "
            f"varies from batch to batch, see {curve}. Use a larger data.batch_size, or check the labels"
        )
    log.info("the loss fell fastest at a rate of %.2g, and was lowest at %.2g: %s", *found, curve)
    log.info("optimizer.lr=%.2g", found.steepest)
    return {"optimizer.lr": float(f"{found.steepest:.2g}")}


def find_batch_size(
    settings: dict[str, Any], model: ImageClassifier, datamodule: ClassificationDataModule, run_dir: Path
) -> dict[str, float]:
    """Try larger and larger batches for a few steps; tell what to type for the effective batch of the config.

    Raises:
        UserError: Several processes, no limit to the memory, or not even two images fit.
    """
    trainer = _short_trainer(settings, run_dir, TRIAL_STEPS)
    if trainer.world_size > 1:
        raise UserError(
            f"tune=batch_size tries one process, not {trainer.world_size}: use trainer.devices=1 trainer.num_nodes=1 "
            "trainer.strategy=auto. What it finds is for each process"
        )
    if trainer.strategy.root_device.type == "cpu":
        raise UserError(
            "tune=batch_size needs a GPU: on a CPU the kernel ends a process that needs too much memory. "
            "Use trainer=gpu, or lower data.batch_size by hand"
        )
    # the epoch that takes most
    model.finetuning.stay(model.finetuning.most)
    datamodule.augmentation.hold(datamodule.augmentation.largest)
    effective = settings["data"]["batch_size"] * settings["trainer"]["accumulate_grad_batches"]
    largest = 0
    for size in _candidates(effective, len(datamodule.rows("train"))):
        fits = _fits(settings, model, datamodule, run_dir, size)
        height, width = datamodule.augmentation.sizes[0]
        log.info("data.batch_size=%d at %dx%d pixels %s", size, height, width, "fits" if fits else "does not fit")
        if not fits:
            break
        largest = size
    if not largest:
        raise UserError("not even two images fit: use a smaller data.image_size, or a smaller network")
    size, times = same_effective_batch(effective, at_most=largest)
    log.info("the largest that fits is %d; for an effective batch of %d:", largest, effective)
    log.info("data.batch_size=%d trainer.accumulate_grad_batches=%d", size, times)
    return {"data.batch_size": size, "trainer.accumulate_grad_batches": times}


def _candidates(effective: int, images: int) -> list[int]:
    """Powers of two, and what divides the effective batch; BatchNorm cannot train on one image."""
    powers = {1 << exponent for exponent in range(images.bit_length())}
    divisors = {size for size in range(1, effective + 1) if effective % size == 0}
    return sorted(size for size in powers | divisors if 2 <= size <= images)


def _fits(
    settings: dict[str, Any], model: ImageClassifier, datamodule: ClassificationDataModule, run_dir: Path, size: int
) -> bool:
    datamodule.batch_size = size
    settings = {**settings, "trainer": {**settings["trainer"], "accumulate_grad_batches": 1}}
    try:
        callbacks: list[pl.Callback] = [] if settings["ema"] is None else [WeightAverage(settings["ema"])]
        _short_trainer(settings, run_dir, TRIAL_STEPS, callbacks).fit(model, datamodule=datamodule)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        model.zero_grad()
        garbage_collection_cuda()
    return True


def _short_trainer(
    settings: dict[str, Any], run_dir: Path, steps: int, callbacks: list[pl.Callback] | None = None
) -> pl.Trainer:
    """The run's Trainer for a few steps, which writes nothing."""
    short = {
        **settings["trainer"],
        "max_steps": steps,
        "max_epochs": -1,
        "min_epochs": None,
        "max_time": None,
        "limit_val_batches": 0,
        "fast_dev_run": False,
        "profiler": None,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,  # a bar counts epochs, and here they say nothing
    }
    return build_trainer({**settings, "trainer": short, "callbacks": {}, "logger": {}}, run_dir, callbacks or [])
