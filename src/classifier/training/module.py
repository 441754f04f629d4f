"""The LightningModule: a network, and how it learns."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import Metric

from classifier.data.loader import Batch, ResumableLoader
from classifier.data.transforms import Preprocessing
from classifier.errors import UserError, require_choice
from classifier.instantiate import build
from classifier.models.network import build_model, without_weights
from classifier.runs import find_checkpoint
from classifier.seeding import seed_place
from classifier.training.finetune import FineTuning
from classifier.training.optimizers import build_optimizer
from classifier.training.schedules import forget_length, run_length
from classifier.training.task import TASKS, BatchMix, build_loss
from classifier.untrusted import read_whole, report_no_weights, require_plain

TRAIN_COUNTS = "train_counts"  # the training metrics of an unfinished epoch, in a checkpoint


def load_plain(path: Path, key: str) -> Any:
    """What a checkpoint's file holds, on the CPU; nothing in it is executed.

    Raises:
        UserError: It is cut off, holds code, or is something else.
    """
    otherwise = (
        "cannot be read, is cut off or changed, or holds more than tensors and plain values, which could run code: "
        "name a checkpoint that src/train.py wrote"
    )
    with report_no_weights(path, key, otherwise):
        return read_whole(path)


class ImageClassifier(pl.LightningModule):
    """A network with its normalisation, task, metrics and optimiser.

    A checkpoint holds what using the model needs, as plain values: `model`, `classes`, `preprocessing` and `task`. The
    other arguments are for training alone.

    Args:
        model: `_target_` and arguments of a network, see `build_model`.
        classes: Names, in the order of the labels.
        preprocessing: How images were read, as `Preprocessing.to_dict` gives it.
        task: One of `TASKS`.
        optimizer: `_target_` and arguments of an optimiser.
        scheduler: `_target_` and arguments of one of `schedules`; None for a constant rate.
        finetune: Arguments of `FineTuning`; None to train everything at one rate.
        loss: `_target_` and arguments of a training loss, see `build_loss`; None for the task's own.
        class_counts: Training images of each class, for losses that ask for them.
        image_count: Training images, for the same.
        mix: Arguments of `BatchMix`.
        seed: Of dropout and whatever else is drawn on the device, together with epoch, batch and rank.
        trusted: Whether the user wrote `model`; else it may only name what a checkpoint may.

    Attributes:
        evaluated_split: The prefix of a test's metrics.
        details: What the last validation or test has found besides scalars: a confusion matrix, or a table of classes.
        flip: Evaluate and predict by the mean of two probabilities: of the image and of its mirror image.
    """

    def __init__(
        self,
        *,
        model: Mapping[str, Any],
        classes: Sequence[str],
        preprocessing: Mapping[str, Any],
        task: str = "single_label",
        optimizer: Mapping[str, Any] | None = None,
        scheduler: Mapping[str, Any] | None = None,
        finetune: Mapping[str, Any] | None = None,
        loss: Mapping[str, Any] | None = None,
        class_counts: Sequence[int] | None = None,
        image_count: int = 0,
        mix: Mapping[str, Any] | None = None,
        seed: int = 0,
        trusted: bool = False,
    ) -> None:
        super().__init__()
        require_choice("task", task, TASKS)
        saved = {"model": without_weights(model), "classes": list(classes), "preprocessing": dict(preprocessing)}
        self.save_hyperparameters({**saved, "task": task}, logger=False)
        self.preprocessing = Preprocessing.from_dict(preprocessing)
        self.classes = tuple(classes)
        channels, size = self.preprocessing.channels, self.preprocessing.image_size
        made_for: dict[str, Any] = {"num_classes": len(classes), "in_chans": channels, "image_size": size}
        self.normalize, self.network = build_model(model, trusted=trusted, **made_for)
        self.mix = BatchMix(len(classes), **(mix or {}))
        loss = loss or {"_target_": TASKS[task].default_loss}
        counts: dict[str, Any] = {"class_counts": class_counts, "image_count": image_count}
        self.task = TASKS[task](classes, build_loss(loss, classes=classes, **counts))
        self.task.require_loss(loss["_target_"], mixed=bool(self.mix.kinds))
        self.train_metrics = self.task.train_metrics()
        self.eval_metrics = self.task.evaluation_metrics()
        self.finetuning = FineTuning(self.network, **(finetune or {}))
        self.optimizer_config, self.scheduler_config = optimizer, scheduler
        self.seed = seed
        self.details: dict[str, Any] = {}
        self.evaluated_split = "test"
        self.flip = False
        self.example_input_array = torch.zeros(1, channels, *size, dtype=torch.uint8)

    @classmethod
    def from_checkpoint(cls, checkpoint: Mapping[str, Any]) -> Self:
        """The model that a checkpoint holds, on the CPU. No loss and no optimiser of the file's is built.

        Raises:
            UserError: It names a network that may not come from a checkpoint, see `build_model`.
        """
        arguments = {key: checkpoint["hyper_parameters"][key] for key in ("model", "classes", "preprocessing", "task")}
        require_plain({key: arguments[key] for key in arguments if key != "model"}, "")
        weights = {k: v for k, v in checkpoint["state_dict"].items() if not k.startswith("task.loss.")}
        # a network as large as the config says takes no memory before its weights are known to be as large
        storages = [value.untyped_storage() for value in weights.values() if not value.is_meta]
        sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
        # in a file that was not written by torch.save, one may reach into the next
        held = sum(min(sizes[at], end - at) for at, end in pairwise([*sorted(sizes), math.inf]))
        if sum(value.nbytes for value in weights.values()) > 2 * held:  # some may share theirs
            raise UserError(f"its weights claim more than the {held} bytes that they have")
        outlines: list[Self] = []
        with suppress(Exception), torch.device("meta"):  # what is wrong with it, the real one says
            outlines.append(cls(**arguments))
        for outline in outlines:
            outline.load_state_dict(weights, assign=True)
        model = cls(**arguments)
        model.load_state_dict(weights)
        return model

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, map_location: Any = "cpu") -> Self:  # type: ignore[override]
        """As `from_checkpoint`, on the device `map_location`. Nothing in the file is executed.

        Args:
            checkpoint_path: A file, a run directory (its best), or `latest` of those in `logs`.
        """
        path = find_checkpoint(str(checkpoint_path), Path("logs"), "checkpoint_path")
        return cls.from_checkpoint(load_plain(path, "checkpoint_path")).to(map_location)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """images uint8 (B, C, H, W) -> logits float (B, K)."""
        logits: torch.Tensor = self.network(self.normalize(images))
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        labels = batch["label"]
        images, targets = self.mix(self.normalize(batch["image"]), labels)
        try:
            logits = self.network(images)
        except ValueError as error:
            if len(images) > 1:
                raise
            # BatchNorm has no deviation of one value
            reason = f"data.batch_size=1 is too small for this network in training ({error})"
            raise UserError(f"{reason}: use data.batch_size=2 or more, or a larger data.image_size") from error
        losses = self.task.losses(logits, targets)
        self.train_metrics.update(logits.detach(), labels, losses.detach())
        if (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.log("train/loss_step", losses.detach().mean(), prog_bar=True)
        return losses.mean() * self._share_of_step(batch_idx, len(labels))

    def _share_of_step(self, batch_idx: int, images: int) -> float:
        """The factor on a batch's mean loss that makes a step's gradient the mean over all of its images.

        Lightning averages over processes and divides by `accumulate_grad_batches`. At the end of an epoch batches are
        smaller, and a step may have fewer of them.
        """
        loader = self.trainer.train_dataloader
        if not isinstance(loader, ResumableLoader):
            return 1.0
        accumulated = self.trainer.accumulate_grad_batches
        first = batch_idx - batch_idx % accumulated
        last = min(first + accumulated, int(self.trainer.num_training_batches))
        bounds = loader.epoch_sampler.bounds
        return images * self.trainer.world_size * accumulated / (bounds[last] - bounds[first])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Probabilities, float (B, K)."""
        return self.task.probabilities(self._evaluate(batch))

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor | None:
        """Probabilities, float (B, K); None for a batch without an image."""
        return None if batch["image"] is None else self.task.probabilities(self._evaluation_logits(batch["image"]))

    def _evaluate(self, batch: Batch) -> torch.Tensor:
        logits = self._evaluation_logits(batch["image"])
        self.eval_metrics.update(logits, batch["label"], self.task.evaluation_losses(logits, batch["label"]))
        return logits

    def _evaluation_logits(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self(images).float()
        return self.task.mean_logits(logits, self(images.flip(3)).float()) if self.flip else logits

    def on_validation_epoch_end(self) -> None:
        fitting = self.trainer.state.fn == "fit" and not self.trainer.sanity_checking
        self._log_results("val", self.task.results(self.eval_metrics, fitting), self.eval_metrics)

    def on_test_epoch_end(self) -> None:
        self._log_results(self.evaluated_split, self.task.results(self.eval_metrics, fitting=False), self.eval_metrics)

    def on_train_epoch_end(self) -> None:
        self._log_results("train", self.train_metrics.compute(), self.train_metrics)
        scheduler = self.lr_schedulers()
        validated = (self.current_epoch + 1) % (self.trainer.check_val_every_n_epoch or 1) == 0
        if isinstance(scheduler, ReduceLROnPlateau) and validated:
            assert self.scheduler_config is not None
            scheduler.step(self.trainer.callback_metrics[self.scheduler_config["monitor"]])

    def _log_results(self, split: str, results: dict[str, Any], metrics: Metric) -> None:
        if split == "train" and results["loss"].isnan():
            raise UserError("the training loss became nan: use a lower optimizer.lr, or trainer.gradient_clip_val=1.0")
        metrics.reset()
        self.details = {name: value for name, value in results.items() if value.ndim} or self.details
        for name, value in results.items():
            if value.ndim == 0:
                self.log(f"{split}/{name}", value.float(), sync_dist=False)  # it is of all processes

    def train_results(self) -> dict[str, float]:
        """Training metrics of the epoch so far, over all processes; nothing at its end, when they are logged."""
        if not self.train_metrics.update_called:
            return {}
        return {f"train/{name}": value.float().item() for name, value in self.train_metrics.compute().items()}

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.finetuning.prepare(self.trainer)

    def configure_model(self) -> None:
        if self.device_mesh is not None:  # trainer.strategy=sharded
            self.trainer.strategy.shard(self.network)  # type: ignore[attr-defined]

    def on_train_start(self) -> None:
        trainer = self.trainer
        steps = trainer.num_training_batches / trainer.accumulate_grad_batches
        # at least five points of an epoch's curve
        trainer.log_every_n_steps = max(1, min(trainer.log_every_n_steps, math.ceil(steps / 5)))  # type: ignore[attr-defined]
        self.finetuning.begin_epoch(self.trainer)  # a resumed epoch has no start of its own

    def on_train_epoch_start(self) -> None:
        self.finetuning.begin_epoch(self.trainer)

    def train(self, mode: bool = True) -> Self:
        """As of every module, except that what is frozen stays in evaluation mode."""
        super().train(mode)
        self.finetuning.hold()
        return self

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        seed_place(self.seed, self.current_epoch, batch_idx, self.global_rank)
        if self.device.type != "cpu":
            torch.manual_seed(torch.initial_seed())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        with self.train_metrics.sync_context():  # summed over processes
            counts = self.train_metrics.metric_state
            checkpoint[TRAIN_COUNTS] = {name: value.cpu() for name, value in counts.items()}  # type: ignore[union-attr]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for name, count in checkpoint[TRAIN_COUNTS].items() if self.global_rank == 0 else ():
            setattr(self.train_metrics, name, count.to(self.device))
        for state in checkpoint.get("lr_schedulers", ()):
            forget_length(state)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        assert self.optimizer_config is not None, "a model to train needs an optimizer"
        optimizer = build_optimizer(self.optimizer_config, self.network, **self.finetuning.rates)
        if self.scheduler_config is None:
            return optimizer
        scheduler = build(self.scheduler_config, "scheduler", optimizer, run_length(self.trainer))
        settings: dict[str, Any] = {"interval": "step"}
        if isinstance(scheduler, ReduceLROnPlateau):
            # Lightning would step it after the epoch's checkpoint is written, and a resumed run would miss that step:
            # `on_train_epoch_end` takes it, and Lightning only keeps its state
            monitor = self.scheduler_config["monitor"]
            settings = {"interval": "epoch", "frequency": 1 << 62, "strict": False, "monitor": monitor}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, **settings}}  # type: ignore[return-value]
