"""The one LightningModule."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch.nn import functional
from torch.optim.lr_scheduler import ReduceLROnPlateau

from classifier.data.loader import Batch
from classifier.data.transforms import Preprocessing
from classifier.errors import UserError, require_choice
from classifier.evaluation.metrics import EvalMetrics, TrainMetrics
from classifier.models.network import build_model
from classifier.seeding import seed_place
from classifier.training.finetune import FineTuning
from classifier.training.loss import BatchMix, TrainingLoss
from classifier.training.memory import MicroBatches, require_divisible
from classifier.training.optimizers import build_optimizer, has_weight_decay
from classifier.training.parameter_groups import require_same_rates
from classifier.training.schedules import build_scheduler, forget_length, run_length
from classifier.training.sharding import shard
from classifier.training.share import step_share

TRAIN_COUNTS = "train_counts"  # of the epoch that a checkpoint was taken in the middle of
MICRO_BATCHES = "micro_batches"  # of each process, 0 for whole batches


def without_weights(model: Mapping[str, Any]) -> dict[str, Any]:
    """A network's config that loads nothing: a checkpoint brings its own weights, and opening one needs no hub."""
    loading = {"pretrained": False, "weights": None, "checkpoint_path": None}
    return {**model, **{key: value for key, value in loading.items() if key in model}}


class ImageClassifier(pl.LightningModule):
    """A network with its normalisation, loss, metrics and optimiser, built from plain values.

    So a checkpoint holds plain values too: `ImageClassifier.load_from_checkpoint(path)` needs no argument, and torch
    opens the file with `weights_only=True`.

    Args:
        model: `_target_` and arguments of a network, see `build_model`.
        classes: Names, in the order of the labels.
        preprocessing: How images were read, as `Preprocessing.to_dict` gives it.
        optimizer: `_target_` and arguments of an optimiser; None where nothing is trained.
        scheduler: `_target_` and arguments of one of `schedules`; None for a constant rate.
        finetune: Arguments of `FineTuning`; None to train everything at one rate.
        loss: Arguments of `TrainingLoss`; evaluation has the plain cross entropy.
        mix: Arguments of `BatchMix`, for training alone.
        seed: Of dropout and whatever else draws on the device, together with epoch, batch and rank.
        on_oom: `accumulate` goes on with smaller parts of each batch when memory runs out in training, see
            `MicroBatches`; `raise` stops.

    Attributes:
        evaluated_split: What the metrics of a test are named for.
        flip: Evaluate and predict by the mean of two probabilities: of the image and of its mirror image.
    """

    def __init__(
        self,
        *,
        model: Mapping[str, Any],
        classes: Sequence[str],
        preprocessing: Mapping[str, Any],
        optimizer: Mapping[str, Any] | None = None,
        scheduler: Mapping[str, Any] | None = None,
        finetune: Mapping[str, Any] | None = None,
        loss: Mapping[str, Any] | None = None,
        mix: Mapping[str, Any] | None = None,
        seed: int = 0,
        on_oom: str = "raise",
    ) -> None:
        super().__init__()
        require_choice("on_oom", on_oom, ("raise", "accumulate"))
        self.save_hyperparameters(logger=False)
        self.hparams["model"] = without_weights(model)  # what checkpoints keep
        self.preprocessing = Preprocessing.from_dict(preprocessing)
        self.classes = tuple(classes)
        self.training_loss = TrainingLoss(self.classes, **(loss or {}))
        self.mix = BatchMix(len(classes), **(mix or {}))
        channels, size = self.preprocessing.channels, self.preprocessing.image_size
        self.normalize, self.network = build_model(model, num_classes=len(classes), in_chans=channels, image_size=size)
        self.finetuning = FineTuning(self.network, **(finetune or {}))
        self.train_metrics = TrainMetrics()
        self.eval_metrics = EvalMetrics(len(classes))
        self.micro_batches = MicroBatches() if on_oom == "accumulate" else None
        self.confusion: torch.Tensor | None = None
        self.evaluated_split = "test"
        self.flip = False
        self.example_input_array = torch.zeros(1, channels, *size, dtype=torch.uint8)

    @property
    def metric_names(self) -> set[str]:
        """What can be monitored."""
        names = {"train/loss", "train/acc", "val/loss", "val/acc", "val/f1"}
        return names | {"val/acc_top5"} if len(self.classes) > 5 else names

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_current_fx_name":  # Lightning notes each hook's name, twice; torch would look for parameters first
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def configure_model(self) -> None:
        if self.device_mesh is not None:  # trainer.strategy=sharded
            shard(self.network, self.device_mesh["data_parallel"])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """images uint8 (B, C, H, W) -> logits float (B, K)."""
        logits: torch.Tensor = self.network(self.normalize(images))
        return logits

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.finetuning.prepare(self.trainer)

    def on_fit_start(self) -> None:
        if self.micro_batches is not None:
            require_divisible(self.trainer)

    def on_train_start(self) -> None:
        trainer = self.trainer
        steps = trainer.num_training_batches / trainer.accumulate_grad_batches
        # curves of a small data set, too
        trainer.log_every_n_steps = min(trainer.log_every_n_steps, math.ceil(steps / 5))  # type: ignore[attr-defined]
        self.finetuning.begin_epoch(self.trainer)  # a resumed run may be in any

    def on_train_epoch_start(self) -> None:
        self.finetuning.begin_epoch(self.trainer)

    def train(self, mode: bool = True) -> Self:
        """As of every module, except that what is frozen stays in evaluation mode."""
        super().train(mode)
        self.finetuning.hold()
        return self

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        seed_place(self.hparams["seed"], self.current_epoch, batch_idx, self.global_rank)
        if self.device.type != "cpu":
            torch.manual_seed(torch.initial_seed())

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        labels = batch["label"]
        images, targets = self.mix(self.normalize(batch["image"]), labels)
        share = step_share(self.trainer, batch_idx, len(labels))

        def forward(part: slice) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            logits = self.network(images[part])
            losses = self.training_loss(logits, targets[part])
            return losses.mean() * share, logits, losses

        if self.micro_batches is None:
            loss, logits, losses = forward(slice(None))
        else:
            loss, logits, losses = self.micro_batches.differentiate(self, forward, len(labels))
        self.train_metrics.update(logits.detach(), labels, losses.detach())
        if self._is_logged_step():
            self.log("train/loss_step", losses.detach().mean(), prog_bar=True)
        return loss

    def backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        if self.micro_batches is None:
            super().backward(loss, *args, **kwargs)
        else:
            self.micro_batches.hand_over()

    def _is_logged_step(self) -> bool:
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return bool(every) and bool((self.trainer.fit_loop.epoch_loop._batches_that_stepped + 1) % every == 0)

    def on_train_epoch_end(self) -> None:
        self._log_results("train", self.train_metrics)
        scheduler = self.lr_schedulers()
        validated = (self.current_epoch + 1) % (self.trainer.check_val_every_n_epoch or 1) == 0
        if isinstance(scheduler, ReduceLROnPlateau) and validated:
            scheduler.step(self.trainer.callback_metrics[self.hparams["scheduler"]["monitor"]])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        self._log_results("val", self.eval_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        return self._evaluate(batch)

    def on_test_epoch_end(self) -> None:
        self._log_results(self.evaluated_split, self.eval_metrics)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor | None:
        """Probabilities, float (B, K); None for a batch without an image."""
        if batch["image"] is None:
            return None
        return self._evaluation_logits(batch["image"]).softmax(1)

    def _evaluate(self, batch: Batch) -> torch.Tensor:
        """Count a batch; return its logits, float (B, K). The loss is the plain cross entropy."""
        logits = self._evaluation_logits(batch["image"])
        losses = functional.cross_entropy(logits, batch["label"], reduction="none")
        self.eval_metrics.update(logits, batch["label"], losses)
        return logits

    def _evaluation_logits(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self(images).float()
        if not self.flip:
            return logits
        mirrored: torch.Tensor = self(images.flip(3)).float()
        # the logarithm of the mean probability, which is the logits of that
        return torch.logaddexp(logits.log_softmax(1), mirrored.log_softmax(1)) - math.log(2)

    def _log_results(self, split: str, metrics: TrainMetrics) -> None:
        results = metrics.compute()
        if split == "train" and results["loss"].isnan():
            raise UserError(
                f"the training loss became nan in epoch {self.current_epoch + 1}: use a lower optimizer.lr, a longer "
                "scheduler.warmup_epochs or trainer.gradient_clip_val=1.0; trainer.detect_anomaly=true says where"
            )
        metrics.reset()
        self.confusion = results.pop("confusion", self.confusion)
        for name, value in results.items():
            # the counts are summed over processes already
            self.log(f"{split}/{name}", value.float(), sync_dist=False)

    def train_results(self) -> dict[str, float]:
        """Loss and accuracy of the epoch so far, over all processes; nothing at its end, when they are logged."""
        metrics = self.train_metrics
        with metrics.sync_context():  # always, as after a resume the first process alone has counts
            if metrics.count == 0:
                return {}
            loss, acc = metrics.loss_sum / metrics.count, metrics.correct / metrics.count
            return {"train/loss": loss.float().item(), "train/acc": acc.item()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        with self.train_metrics.sync_context():  # summed over processes
            checkpoint[TRAIN_COUNTS] = {name: getattr(self.train_metrics, name).cpu() for name in TrainMetrics.STATES}
        if self.micro_batches is not None:
            sizes = self.all_gather(torch.tensor(self.micro_batches.size or 0, device=self.device))
            assert isinstance(sizes, torch.Tensor)
            checkpoint[MICRO_BATCHES] = sizes.flatten().tolist()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        require_same_rates(checkpoint["hyper_parameters"]["finetune"], self.hparams["finetune"])
        for name, count in checkpoint[TRAIN_COUNTS].items() if self.global_rank == 0 else ():
            setattr(self.train_metrics, name, count.to(self.device))
        if self.micro_batches is not None and (sizes := checkpoint.get(MICRO_BATCHES)):
            self.micro_batches.size = sizes[self.global_rank % len(sizes)] or None
        for state in checkpoint.get("lr_schedulers", ()):
            forget_length(state)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        config = self.hparams["optimizer"]
        groups = self.finetuning.groups.build(config.get("lr"), has_weight_decay(config))
        optimizer = build_optimizer(config, groups)
        if self.hparams["scheduler"] is None:
            return optimizer
        scheduler = build_scheduler(self.hparams["scheduler"], optimizer, run_length(self.trainer))
        if isinstance(scheduler, ReduceLROnPlateau):
            # Lightning would step it after the checkpoint of the epoch is written, and a resumed run would miss that
            # step: `on_train_epoch_end` takes it, and Lightning only keeps its state
            never = 1 << 62
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": scheduler, "interval": "epoch", "frequency": never, "strict": False,
                                 "monitor": self.hparams["scheduler"]["monitor"]},
            }  # fmt: skip
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
