"""Counts, or scores, from which every figure follows, exact at any number of processes."""

import numpy as np
import torch
from sklearn.metrics import precision_recall_curve, roc_auc_score
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

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


class MultiLabelTrainMetrics(TrainMetrics):
    """Mean loss, and micro F1 at a probability of 0.5: cheap enough for every step."""

    marks: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("marks", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits: torch.Tensor, labels: torch.Tensor, losses: torch.Tensor) -> None:
        """Add a batch: logits float (B, K), labels float (B, K) of 0 and 1, losses float (B,)."""
        found, true = logits > 0, labels > 0
        self.count += len(labels)
        self.correct += (found & true).sum()
        self.marks += found.sum() + true.sum()
        self.loss_sum += losses.sum(dtype=SUM_DTYPE)

    def compute(self) -> dict[str, torch.Tensor]:
        """`loss` and `f1_micro`, scalars; the latter 0 without any label, true or predicted."""
        return {"loss": self.loss_sum / self.count, "f1_micro": 2 * self.correct / self.marks.clamp(min=1)}


class MultiLabelScores(TrainMetrics):
    """Keeps the probabilities of all images, as their ranks are what is measured."""

    scores: list[torch.Tensor]
    targets: list[torch.Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("targets", [], dist_reduce_fx="cat")

    def update(self, logits: torch.Tensor, labels: torch.Tensor, losses: torch.Tensor) -> None:
        """Add a batch: logits float (B, K), labels float (B, K) of 0 and 1, losses float (B,)."""
        self.scores.append(logits.float().sigmoid())
        self.targets.append((labels > 0).byte())
        self.loss_sum += losses.sum(dtype=SUM_DTYPE)

    def compute(self) -> dict[str, torch.Tensor]:
        """`loss`, a scalar; `scores` float32 (N, K), `targets` uint8 (N, K), of all processes."""
        scores, targets = (dim_zero_cat(state) for state in (self.scores, self.targets))
        return {"loss": self.loss_sum / len(scores), "scores": scores, "targets": targets}


def of_ranks(scores: np.ndarray, targets: np.ndarray) -> tuple[float, float, float]:
    """What the ranks of the scores, float (N,), say of one class; nan where it cannot be said. `targets` are bool (N,).

    Returns:
        The average precision and the area under the ROC curve, as scikit-learn defines them; the threshold at or above
        which scores give the best F1, in the middle between two of them.
    """
    if not targets.any() or np.isnan(scores).any():
        return np.nan, np.nan, np.nan
    precision, recall, levels = precision_recall_curve(targets, scores)
    best = int((precision * recall / np.maximum(precision + recall, 1e-12))[:-1].argmax())
    lower, upper = levels[best - 1] if best else np.float32(0), levels[best]
    middle = np.float32((float(upper) + float(lower)) / 2)
    ap = -float(np.sum(np.diff(recall) * precision[:-1]))
    auc = float(roc_auc_score(targets, scores)) if not targets.all() else np.nan
    return ap, auc, float(middle if middle > lower else upper)


def of_sets(found: np.ndarray, targets: np.ndarray) -> tuple[dict[str, float], np.ndarray]:
    """What is measured of predicted sets of labels, bool (N, K), and the true ones.

    Returns:
        `f1_micro`; `f1`, the mean of the classes that occur, as label or as prediction; `exact`, the share of the sets
        that are equal. And the F1 of each class, float64 (K,), 0 where it does not occur.
    """
    hits, marks = (found & targets).sum(axis=0), found.sum(axis=0) + targets.sum(axis=0)
    of_class = 2 * hits / np.maximum(marks, 1)
    mean = of_class[marks > 0].mean() if marks.any() else 0.0
    exact = (found == targets).all(axis=1).mean()
    return {"f1": mean, "f1_micro": 2 * hits.sum() / max(1, marks.sum()), "exact": exact}, of_class
