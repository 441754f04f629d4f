"""What differs between kinds of classification: targets, loss, probabilities, metrics, and a prediction's columns."""

import copy
import inspect
import logging
import math
import pydoc
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import nn
from torch.nn import functional
from torchmetrics import Metric
from torchvision.transforms.v2 import CutMix, MixUp

from classifier.errors import UserError, as_typed, did_you_mean, require_number
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


def build_loss(
    config: Mapping[str, Any], *, classes: Sequence[str], class_counts: Sequence[int] | None = None
) -> nn.Module:
    """Build a loss of torch.nn, or a class of your own, that gives the loss of each image.

    Args:
        config: `_target_` and its arguments. Where the class takes them, it also gets `reduction="none"`, `classes`
            and `class_counts`.
        classes: Names, in the order of the labels.
        class_counts: Training images of each class.

    Raises:
        UserError: There is no such class, it does not take the arguments, or it has parameters to train.
    """
    target = pydoc.locate(str(config.get("_target_")))
    accepted = inspect.signature(target).parameters if callable(target) else {}
    offered = {"reduction": "none", "classes": list(classes), "class_counts": class_counts}
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
        """images float (B, C, H, W), labels int64 (B,) -> the same, or mixed images and shares float (B, K)."""
        if not self.kinds:
            return images, labels
        chosen = self.kinds[int(torch.randint(len(self.kinds), ()))] if len(self.kinds) > 1 else self.kinds[0]
        mixed: tuple[torch.Tensor, torch.Tensor] = chosen(images, labels)
        return mixed


class SingleLabel(nn.Module):
    """Each image has exactly one class.

    Args:
        classes: Names, in the order of the labels.
        loss: Logits float (B, K) and targets, int64 (B,) or shares float (B, K) -> losses float (B,).
    """

    def __init__(self, classes: Sequence[str], loss: nn.Module) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.loss = loss

    def losses(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Training loss of each image, float (B,)."""
        found: torch.Tensor = self.loss(logits, targets)
        return found

    def require_loss(self, target: str, mixed: bool) -> None:
        """Try the loss on two made-up images.

        Args:
            target: What `loss._target_` names.
            mixed: Whether targets are shares, as mixup and cutmix give them.

        Raises:
            UserError: It does not take the targets, or does not give one loss for each image.
        """
        labels = torch.arange(2) % len(self.classes)
        targets = functional.one_hot(labels, len(self.classes)).float() if mixed else labels
        trial = copy.deepcopy(self.loss)  # which may keep statistics
        try:
            found = trial(torch.zeros(2, len(self.classes)), targets)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            advice = "use mix.mixup=0 mix.cutmix=0, or another loss" if mixed else "use another loss"
            reason = " ".join(str(error).split())
            raise UserError(f"loss._target_={target} does not take the targets ({reason}): {advice}") from error
        shape = tuple(getattr(found, "shape", ()))
        if shape != (2,):
            raise UserError(f"loss._target_={target} must give one loss for each image, (2,) for two, and gave {shape}")

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


TASKS: dict[str, type[SingleLabel]] = {"single_label": SingleLabel}
