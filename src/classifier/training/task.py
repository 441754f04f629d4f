"""What differs between kinds of classification: targets, loss, probabilities, metrics, and a prediction's columns."""

import copy
import inspect
import logging
import math
import pydoc
from collections.abc import Mapping, Sequence
from itertools import compress
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional
from torchmetrics import Metric
from torchvision.transforms.v2 import CutMix, MixUp

from classifier.data.labels import JOIN, MULTI, SINGLE
from classifier.errors import UserError, as_typed, did_you_mean, require_choice, require_number
from classifier.evaluation import metrics
from classifier.evaluation.figures import bar_figure, confusion_figure
from classifier.evaluation.metrics import EvalMetrics, TrainMetrics
from classifier.instantiate import build

log = logging.getLogger(__name__)


class CrossEntropy(nn.CrossEntropyLoss):
    """Cross entropy of each image. Label smoothing, class weights and mixed labels compose.

    A class weight multiplies the loss of its images. Unlike in torch's own mean, the sum is not divided by the weights:
    several processes then get the gradient of one, whatever classes each of them meets.

    Args:
        classes: Names, in the order of the labels.
        class_counts: Training images of each class, for `balanced`.
        label_smoothing: 0 to 1, the share of the target that is spread evenly over all classes.
        class_weight: `none`, `balanced` (inverse to how often a class occurs, with a mean of 1 over the images), or a
            number for each class: by name, or in the order of the labels.

    Raises:
        UserError: A value is out of range.
    """

    def __init__(
        self,
        *,
        classes: Sequence[str],
        class_counts: Sequence[int] | None = None,
        label_smoothing: float = 0.0,
        class_weight: str | Sequence[float] | Mapping[Any, float] = "none",
    ) -> None:
        require_number("loss.label_smoothing", label_smoothing, least=0, most=1)
        if isinstance(class_weight, Mapping):
            named = {str(name): number for name, number in class_weight.items()}  # folders called 1, 2, ... are numbers
            if unknown := sorted({*named}.difference(classes)):
                raise UserError(f"loss.class_weight has the class {unknown[0]}: {did_you_mean(unknown[0], classes)}")
            if missing := [name for name in classes if name not in named]:
                what = f"lacks {', '.join(missing[:10])}, of {len(classes)} classes"
                raise UserError(f"loss.class_weight={as_typed(class_weight)} {what}: add {missing[0]}:1")
            class_weight = [named[name] for name in classes]
        if class_weight == "balanced" and class_counts is not None:
            occurring = sum(count > 0 for count in class_counts)
            class_weight = [sum(class_counts) / (occurring * count) if count else 0.0 for count in class_counts]
        weight = None
        if class_weight != "none":
            numbers = class_weight if isinstance(class_weight, (list, tuple)) else ()
            fits = all(isinstance(number, (int, float)) and 0 <= number < math.inf for number in numbers)
            if len(numbers) != len(classes) or not fits:
                raise UserError(f"loss.class_weight={as_typed(class_weight)}: use balanced, or {len(classes)} numbers")
            shown = ", ".join(f"{name} {number:.4g}" for name, number in zip(classes[:50], numbers, strict=False))
            log.info("loss.class_weight: %s", shown)
            weight = torch.tensor(class_weight, dtype=torch.float32)
        super().__init__(weight, reduction="none", label_smoothing=label_smoothing)


class BinaryCrossEntropy(nn.BCEWithLogitsLoss):
    """Binary cross entropy of each image and class, for images with any number of labels.

    Args:
        classes: Names, in the order of the labels.
        class_counts: Training images of each class, for `balanced`.
        image_count: Training images, for `balanced`.
        label_smoothing: 0 to 1, the share of each target that becomes one half.
        pos_weight: The factor on the loss of the images that have a class: `none`, `balanced` (how many images are
            without it for one with it), or class -> number, 1 for the others.

    Raises:
        UserError: A value is out of range, or there is no such class.
    """

    def __init__(
        self,
        *,
        classes: Sequence[str],
        class_counts: Sequence[int] | None = None,
        image_count: int = 0,
        label_smoothing: float = 0.0,
        pos_weight: str | Mapping[str, float] = "none",
    ) -> None:
        require_number("loss.label_smoothing", label_smoothing, least=0, most=1)
        weights = pos_weight if isinstance(pos_weight, Mapping) else {}
        if pos_weight == "balanced" and class_counts is not None:
            counts = zip(classes, class_counts, strict=True)
            weights = {name: (image_count - count) / count for name, count in counts if 0 < count < image_count}
        elif pos_weight not in ("none", "balanced") and not weights:
            raise UserError(f"loss.pos_weight={as_typed(pos_weight)}: use none, balanced, or {{CLASS: NUMBER}}")
        for name, number in weights.items():
            require_choice("loss.pos_weight", str(name), classes)
            require_number(f"loss.pos_weight.{name}", number, least=0)
        by_name = {str(name): float(number) for name, number in weights.items()}
        factors = torch.tensor([by_name.get(name, 1.0) for name in classes])
        super().__init__(pos_weight=factors if weights else None, reduction="none")
        self.label_smoothing = label_smoothing

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Logits float (B, K), targets float (B, K) -> losses float (B, K)."""
        return super().forward(logits, targets + self.label_smoothing * (0.5 - targets))


def build_loss(
    config: Mapping[str, Any],
    *,
    classes: Sequence[str],
    class_counts: Sequence[int] | None = None,
    image_count: int = 0,
) -> nn.Module:
    """Build a loss of torch.nn, or a class of your own, that gives the loss of each image.

    Args:
        config: `_target_` and its arguments. Where the class takes them, it also gets `reduction="none"`, `classes`,
            `class_counts` and `image_count`.
        classes: Names, in the order of the labels.
        class_counts: Training images of each class.
        image_count: Training images.

    Raises:
        UserError: There is no such class, it does not take the arguments, or it has parameters to train.
    """
    target = pydoc.locate(str(config.get("_target_")))
    accepted = inspect.signature(target).parameters if callable(target) else {}
    counts = {"class_counts": class_counts, "image_count": image_count}
    offered: dict[str, Any] = {"reduction": "none", "classes": list(classes), **counts}
    given: dict[str, Any] = {key: value for key, value in offered.items() if key in accepted}
    loss: nn.Module = build(config, "loss", **given)
    if any(parameter.requires_grad for parameter in loss.parameters()):
        raise UserError(f"loss._target_={config['_target_']} has parameters, but the network's alone are trained")
    return loss


class BatchMix(nn.Module):
    """Mixes a batch with itself, drawn for each batch; at any batch size.

    Args:
        mixup: Alpha of the Beta distribution of the shares, 0 for none. With both, each batch draws one of them.
        cutmix: The same for cutmix.

    Source: H. Zhang et al., mixup, ICLR 2018; S. Yun et al., CutMix, ICCV 2019.
    """

    def __init__(self, num_classes: int, mixup: float = 0.0, cutmix: float = 0.0) -> None:
        super().__init__()
        self.kinds: list[nn.Module] = []
        for name, kind, alpha in (("mixup", MixUp, mixup), ("cutmix", CutMix, cutmix)):
            require_number(f"mix.{name}", alpha, least=0)
            if alpha > 0:
                self.kinds.append(kind(alpha=alpha, num_classes=num_classes))

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """images float (B, C, H, W), labels int64 (B,) or float (B, K) -> the same, or mixed ones, float (B, K)."""
        if not self.kinds:
            return images, labels
        chosen = self.kinds[int(torch.randint(len(self.kinds), ()))] if len(self.kinds) > 1 else self.kinds[0]
        mixed: tuple[torch.Tensor, torch.Tensor] = chosen(images, labels)
        return mixed


class Task(nn.Module):
    """What all kinds of classification share.

    Args:
        classes: Names, in the order of the labels.
        loss: Logits float (B, K) and targets -> losses float (B,), or (B, K), of which the mean is taken.
    """

    default_loss: str  # the class
    headline: str  # the metric that runs are compared by, without the part of the data

    def __init__(self, classes: Sequence[str], loss: nn.Module) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.loss = loss

    def losses(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Training loss of each image, float (B,)."""
        found: torch.Tensor = self.loss(logits, targets)
        return found

    def trial_targets(self, mixed: bool) -> torch.Tensor:
        """Those of two made-up images; as mixup and cutmix give them, where they are `mixed`."""
        raise NotImplementedError

    def require_loss(self, target: str, mixed: bool) -> None:
        """Try the loss on two made-up images.

        Args:
            target: What `loss._target_` names.
            mixed: Whether targets are shares, as mixup and cutmix give them.

        Raises:
            UserError: It does not take the targets, or does not give one loss for each image.
        """
        trial = copy.deepcopy(self)  # whose loss may keep statistics
        try:
            found = trial.losses(torch.zeros(2, len(self.classes)), self.trial_targets(mixed))
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            advice = "use mix.mixup=0 mix.cutmix=0, or another loss" if mixed else "use another loss"
            reason = " ".join(str(error).split())
            raise UserError(f"loss._target_={target} does not take the targets ({reason}): {advice}") from error
        shape = tuple(getattr(found, "shape", ()))
        if shape != (2,):
            raise UserError(f"loss._target_={target} must give one loss for each image, (2,) for two, and gave {shape}")


class SingleLabel(Task):
    """Each image has exactly one class.

    Args:
        classes: Names, in the order of the labels.
        loss: Logits float (B, K) and targets, int64 (B,) or shares float (B, K) -> losses float (B,).
    """

    default_loss = "classifier.training.task.CrossEntropy"
    headline = "acc"

    def trial_targets(self, mixed: bool) -> torch.Tensor:
        labels = torch.arange(2) % len(self.classes)
        return functional.one_hot(labels, len(self.classes)).float() if mixed else labels

    def evaluation_losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Plain cross entropy of each image, float (B,), whatever the training loss is."""
        return functional.cross_entropy(logits, labels, reduction="none")

    def mean_logits(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Logits (B, K) of the mean of two predictions' probabilities."""
        return torch.logaddexp(first.log_softmax(1), second.log_softmax(1)) - math.log(2)

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits float (B, K) -> the same shape, rows that add up to 1."""
        return logits.softmax(1)

    def train_metrics(self) -> Metric:
        """What is measured of training: called with logits, labels and training losses."""
        return TrainMetrics()

    def evaluation_metrics(self) -> Metric:
        """What is measured of a validation or a test: called with logits, labels and evaluation losses."""
        return EvalMetrics(len(self.classes))

    def results(self, gathered: Metric, fitting: bool) -> dict[str, Any]:
        """Scalars of what `evaluation_metrics` has gathered, and `confusion`, int64 (K, K)."""
        found: dict[str, Any] = gathered.compute()
        return found

    def figure(self, details: Mapping[str, Any]) -> tuple[str, Figure]:
        """A name, and the picture of what `results` has besides scalars."""
        return "confusion_matrix", confusion_figure(details["confusion"].cpu(), self.classes)

    def names(self, labels: torch.Tensor) -> list[str]:
        """The labels of a batch, int64 (B,), as text."""
        return [self.classes[label] for label in labels.tolist()]

    @property
    def metric_names(self) -> set[str]:
        """What a run logs each epoch, and so can monitor."""
        top5 = {"val/acc_top5"} if len(self.classes) > 5 else set()
        return {"train/loss", "train/acc", "val/loss", "val/acc", "val/f1", *top5}

    def prediction_columns(self, top_k: int) -> list[str]:
        """label, confidence, label_2, confidence_2, ...; of as many classes as there are."""
        ranks = range(1, min(top_k, len(self.classes)) + 1)
        return [name if rank == 1 else f"{name}_{rank}" for rank in ranks for name in ("label", "confidence")]

    def predictions(self, probabilities: torch.Tensor, top_k: int) -> pd.DataFrame:
        """The likeliest classes of each image, in `prediction_columns`; probabilities float (B, K)."""
        columns = self.prediction_columns(top_k)
        values, labels = probabilities.double().cpu().topk(len(columns) // 2)
        ranks = zip(labels.T.numpy(), values.T.numpy().round(6), strict=True)
        cells = [column for label, confidence in ranks for column in (pd.Index(self.classes).take(label), confidence)]
        return pd.DataFrame(dict(zip(columns, cells, strict=True)))


class MultiLabel(Task):
    """Each image has any number of classes.

    Args:
        classes: Names, in the order of the labels.
        loss: Logits float (B, K) and targets float (B, K) of 0 and 1, or mixed -> losses float (B,) or (B, K).

    Attributes:
        thresholds: float32 (K,), probabilities from which on a class is predicted: those that give the best F1 of each
            class in the latest validation of the training, and 0.5 of a class that it lacks.
    """

    default_loss = "classifier.training.task.BinaryCrossEntropy"
    headline = "map"
    thresholds: torch.Tensor

    def __init__(self, classes: Sequence[str], loss: nn.Module) -> None:
        super().__init__(classes, loss)
        self.register_buffer("thresholds", torch.full((len(classes),), 0.5))

    def losses(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        found = super().losses(logits, targets)
        return found.mean(1) if getattr(found, "shape", None) == logits.shape else found

    def trial_targets(self, mixed: bool) -> torch.Tensor:
        return torch.ones(2, len(self.classes)) - 0.5 * mixed

    def require_loss(self, target: str, mixed: bool) -> None:
        if isinstance(self.loss, nn.CrossEntropyLoss):  # takes the targets for shares
            advice = "use loss=binary_cross_entropy, or task=single_label"
            raise UserError(f"loss._target_={target} is for one class an image, not task=multi_label: {advice}")
        super().require_loss(target, mixed)

    def evaluation_losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Plain binary cross entropy, float (B,), the mean over classes, whatever the training loss is."""
        return functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)

    def mean_logits(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Logits (B, K) of the mean of two predictions' probabilities."""
        log = functional.logsigmoid
        return torch.logaddexp(log(first), log(second)) - torch.logaddexp(log(-first), log(-second))

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits float (B, K) -> the same shape, each from 0 to 1."""
        return logits.sigmoid()

    def train_metrics(self) -> Metric:
        """What is measured of training: called with logits, labels and training losses."""
        return metrics.MultiLabelTrainMetrics()

    def evaluation_metrics(self) -> Metric:
        """What is measured of a validation or a test: called with logits, labels and evaluation losses."""
        return metrics.MultiLabelScores()

    def results(self, gathered: Metric, fitting: bool) -> dict[str, Any]:
        """Scalars: `loss`, `map`, `auc`, `f1`, `f1_micro` and `exact`; and `classes`, a table of what is known of each.

        Args:
            fitting: Choose the thresholds first.
        """
        found = gathered.compute()
        scores, targets = (found[name].numpy(force=True) for name in ("scores", "targets"))
        targets = targets > 0
        ap, auc, best = np.array([metrics.of_ranks(*pair) for pair in zip(scores.T, targets.T, strict=True)]).T
        if fitting:
            self.thresholds.copy_(torch.from_numpy(np.where(np.isnan(best), 0.5, best)))
        limits = self.thresholds.numpy(force=True)
        sets, f1 = metrics.of_sets(scores >= limits, targets)
        columns = {"class": self.classes, "images": targets.sum(axis=0), "ap": ap, "auc": auc, "f1": f1}
        table = pd.DataFrame({**columns, "threshold": limits})
        numbers = {"map": table["ap"].mean(), "auc": table["auc"].mean(), **sets}  # of those that are known
        return {"loss": found["loss"], **{name: torch.tensor(numbers[name]) for name in numbers}, "classes": table}

    def figure(self, details: Mapping[str, Any]) -> tuple[str, Figure]:
        """A name, and the picture of what `results` has besides scalars."""
        return "average_precision", bar_figure(details["classes"]["ap"].tolist(), self.classes, "average precision")

    def names(self, labels: torch.Tensor) -> list[str]:
        """The labels of a batch, float (B, K), as text."""
        return [JOIN.join(compress(self.classes, row)) for row in (labels > 0).tolist()]

    @property
    def metric_names(self) -> set[str]:
        """What a run logs each epoch, and so can monitor."""
        return {"train/loss", "train/f1_micro", "val/loss", "val/map", "val/auc", "val/f1", "val/f1_micro", "val/exact"}

    def prediction_columns(self, top_k: int) -> list[str]:
        """labels, and the probability of each class; of all classes, as any number of them may be true."""
        return ["labels", *(f"p_{name}" for name in self.classes)]

    def predictions(self, probabilities: torch.Tensor, top_k: int) -> pd.DataFrame:
        """The predicted classes of each image, in `prediction_columns`; probabilities float (B, K)."""
        labels = pd.Series(self.names(probabilities >= self.thresholds.to(probabilities)), dtype="str")
        values = probabilities.double().cpu().numpy().round(6)
        return pd.concat([labels, pd.DataFrame(values)], axis=1).set_axis(self.prediction_columns(top_k), axis=1)


TASKS: dict[str, type[SingleLabel | MultiLabel]] = {SINGLE: SingleLabel, MULTI: MultiLabel}
