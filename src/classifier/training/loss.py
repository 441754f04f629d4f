"""What training minimises: cross entropy with smoothed, weighted and mixed labels, which compose."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torchvision.transforms.v2 import CutMix, MixUp

from classifier.errors import UserError, require_number


class TrainingLoss(nn.Module):
    """Cross entropy of each image.

    A class weight multiplies the loss of its images. The sum of the weights is not divided by, as torch's own mean
    does: several processes with batches of one size then have the gradients of one, whatever classes each meets.

    Args:
        classes: Names, in the order of the labels.
        label_smoothing: 0 to 1, the share of the target that goes to all classes alike.
        class_weight: A number for each class, or None.
    """

    weight: torch.Tensor | None

    def __init__(
        self, classes: Sequence[str], label_smoothing: float = 0.0, class_weight: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        require_number("loss.label_smoothing", label_smoothing, least=0, most=1)
        self.label_smoothing = label_smoothing
        if class_weight is not None:
            _require_weights(class_weight, classes)
        weight = None if class_weight is None else torch.tensor(class_weight, dtype=torch.float32)
        self.register_buffer("weight", weight, persistent=False)  # the hyper-parameters hold it

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """logits float (B, K), targets int64 (B,) or shares float (B, K) -> losses float (B,)."""
        return functional.cross_entropy(
            logits, targets, weight=self.weight, reduction="none", label_smoothing=self.label_smoothing
        )


def _require_weights(weights: Any, classes: Sequence[str]) -> None:
    if not isinstance(weights, Sequence) or isinstance(weights, str):
        raise UserError(f"loss.class_weight={weights} must be none, balanced, or a number for each class")
    if len(weights) != len(classes):
        raise UserError(
            f"loss.class_weight has {len(weights)} numbers for {len(classes)} classes ({', '.join(classes[:10])}"
            f"{', ...' if len(classes) > 10 else ''}): give one for each, or use loss.class_weight=balanced"
        )
    if not all(isinstance(weight, (int, float)) and 0 <= weight < float("inf") for weight in weights):
        raise UserError(f"loss.class_weight={list(weights)} must be numbers from 0 on")


class BatchMix(nn.Module):
    """Mixup or cutmix of a batch with itself, drawn anew for each; at any batch size.

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
