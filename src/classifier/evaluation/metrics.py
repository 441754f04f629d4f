"""Counts from which every figure follows, exact at any number of processes."""

import torch
from torchmetrics import Metric

# integers and float64 sums do not depend on how the data was batched; Apple's GPUs have no float64
SUM_DTYPE = torch.float32 if torch.backends.mps.is_available() else torch.float64


class TrainMetrics(Metric):
    """Mean loss and accuracy, as two sums: cheap enough for every step."""

    STATES = ("count", "correct", "loss_sum")
    full_state_update = False
    count: torch.Tensor
    correct: torch.Tensor
    loss_sum: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("correct", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("loss_sum", torch.tensor(0, dtype=SUM_DTYPE), dist_reduce_fx="sum")

    def update(self, logits: torch.Tensor, labels: torch.Tensor, losses: torch.Tensor) -> None:
        """Add a batch: logits float (B, K), labels int64 (B,), losses float (B,)."""
        self.count += len(labels)
        self.correct += (logits.argmax(1) == labels).sum()
        self.loss_sum += losses.sum(dtype=SUM_DTYPE)

    def compute(self) -> dict[str, torch.Tensor]:
        """`loss` and `acc`, scalars."""
        return {"loss": self.loss_sum / self.count, "acc": self.correct / self.count}


class EvalMetrics(TrainMetrics):
    """Adds the confusion matrix, macro F1 and, for more than five classes, top-5 accuracy.

    Attributes:
        confusion: int64 (K, K), true class by predicted class; of all processes after `compute`.
    """

    confusion: torch.Tensor
    in_top5: torch.Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.add_state("confusion", torch.zeros(num_classes, num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("in_top5", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits: torch.Tensor, labels: torch.Tensor, losses: torch.Tensor) -> None:
        super().update(logits, labels, losses)
        pairs = labels * self.num_classes + logits.argmax(1)
        self.confusion += torch.bincount(pairs, minlength=self.num_classes**2).view_as(self.confusion)
        if self.num_classes > 5:
            self.in_top5 += (logits.topk(5, dim=1).indices == labels[:, None]).sum()

    def compute(self) -> dict[str, torch.Tensor]:
        """`loss`, `acc`, `f1` and `acc_top5` (K > 5), scalars; and `confusion`, int64 (K, K)."""
        results = {**super().compute(), "f1": macro_f1(self.confusion), "confusion": self.confusion.clone()}
        if self.num_classes > 5:
            results["acc_top5"] = self.in_top5 / self.count
        return results


def macro_f1(confusion: torch.Tensor) -> torch.Tensor:
    """Mean F1 of the classes that occur, as label or as prediction; `confusion` int64 (K, K)."""
    hits = confusion.diagonal()
    occurrences = confusion.sum(0) + confusion.sum(1)  # twice the hits, plus the false ones on both sides
    return (2 * hits[occurrences > 0] / occurrences[occurrences > 0]).mean()
