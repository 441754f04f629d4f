from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed
import torch.multiprocessing
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, roc_auc_score
from torch import nn
from torch.nn import functional
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassF1Score

from classifier.evaluation.metrics import EvalMetrics
from classifier.training.task import MultiLabel

Data = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def random_data(num_classes: int, count: int = 500, present: int | None = None, scale: float = 1.0) -> Data:
    """Logits, labels and losses; the last classes are absent where fewer are `present`."""
    generator = torch.Generator().manual_seed(num_classes)
    present = present or num_classes
    labels = torch.randint(0, present, (count,), generator=generator)
    logits = scale * torch.randn(count, num_classes, generator=generator)
    logits[:, present:] -= 100 * scale
    logits[torch.arange(count), labels] += scale
    return logits, labels, functional.cross_entropy(logits, labels, reduction="none")


def evaluate(data: Data, num_classes: int, batch_size: int = 64) -> EvalMetrics:
    metrics = EvalMetrics(num_classes)
    for start in range(0, len(data[0]), batch_size):
        metrics.update(*(tensor[start : start + batch_size] for tensor in data))
    return metrics


@pytest.mark.parametrize(("num_classes", "present"), [(2, 2), (5, 3), (6, 6), (120, 120)])
def test_results_equal_those_of_torchmetrics(num_classes: int, present: int) -> None:
    data = random_data(num_classes, present=present)
    logits, labels, losses = data
    results = evaluate(data, num_classes).compute()

    expected = {
        "acc": MulticlassAccuracy(num_classes, average="micro")(logits, labels),
        "f1": MulticlassF1Score(num_classes, average="macro")(logits, labels),
        "loss": losses.mean(),
        "confusion": MulticlassConfusionMatrix(num_classes)(logits, labels),
    }
    if num_classes > 5:
        expected["acc_top5"] = MulticlassAccuracy(num_classes, average="micro", top_k=5)(logits, labels)
    torch.testing.assert_close(results, expected, check_dtype=False, rtol=0, atol=1e-6)


def as_logged(results: dict[str, torch.Tensor]) -> dict[str, list[float]]:
    return {name: value.float().tolist() for name, value in results.items()}


@pytest.mark.parametrize(("batch_size", "scale"), [(1, 1.0), (7, 5.0), (64, 20.0)])
def test_results_do_not_depend_on_the_batches(batch_size: int, scale: float) -> None:
    data = random_data(10, scale=scale)
    whole = evaluate(data, 10, batch_size=500).compute()
    assert as_logged(evaluate(data, 10, batch_size).compute()) == as_logged(whole)


def in_process(rank: int, folder: str) -> None:
    """Evaluate every second image; the first process has one more."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/init", rank=rank, world_size=2)
    share: Data = tuple(tensor[rank::2] for tensor in random_data(8, count=101))  # type: ignore[assignment]
    results = evaluate(share, 8).compute()
    torch.save(results, Path(folder, f"{rank}.pt"))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(in_process, (str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call]
    expected = as_logged(evaluate(random_data(8, count=101), 8).compute())
    assert [as_logged(torch.load(tmp_path / f"{rank}.pt")) for rank in (0, 1)] == [expected] * 2


def random_sets(count: int = 101) -> Data:
    """Logits, sets of labels and losses; the fifth class has no image, the sixth all."""
    generator = torch.Generator().manual_seed(0)
    targets = (torch.rand(count, 6, generator=generator) < 0.3).float()
    targets[:, 4], targets[:, 5] = 0, 1
    logits = (torch.randn(count, 6, generator=generator) + targets).round(decimals=1)  # with ties
    return logits, targets, functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)


def results_of_sets(share: slice) -> dict[str, Any]:
    task = MultiLabel(list("abcdef"), nn.Identity())
    gathered = task.evaluation_metrics()
    logits, targets, losses = (tensor[share] for tensor in random_sets())
    for start in range(0, len(logits), 16):
        batch = slice(start, start + 16)
        gathered.update(logits[batch], targets[batch], losses[batch])
    return task.results(gathered, fitting=True)


def require_results_of_scikit_learn(results: dict[str, Any]) -> None:
    logits, targets, losses = random_sets()
    table, scores, true = results["classes"], logits.sigmoid().numpy(), targets.numpy()
    found = scores >= table["threshold"].to_numpy()
    known = [0, 1, 2, 3, 5]
    expected = {
        "loss": losses.mean(),
        "map": average_precision_score(true[:, known], scores[:, known], average="macro"),
        "auc": roc_auc_score(true[:, known[:4]], scores[:, known[:4]], average="macro"),
        "f1": f1_score(true, found, average="macro", zero_division=np.nan),
        "f1_micro": f1_score(true, found, average="micro"),
        "exact": accuracy_score(true, found),
    }
    for name, value in expected.items():
        assert float(results[name]) == pytest.approx(float(value), abs=1e-6), name
    assert table["images"].tolist() == true.sum(0).tolist()
    assert table["ap"][known].tolist() == pytest.approx(
        average_precision_score(true[:, known], scores[:, known], average=None).tolist(), abs=1e-6
    )
    best = [max(f1_score(true[:, k], scores[:, k] >= level) for level in scores[:, k]) for k in known]
    assert table["f1"][known].tolist() == pytest.approx(best)
    assert np.isnan(table["ap"][4])
    assert np.isnan(table["auc"][5])


def test_sets_of_labels_are_measured_as_by_scikit_learn() -> None:
    require_results_of_scikit_learn(results_of_sets(slice(None)))


def sets_in_process(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", f"file://{folder}/init", rank=rank, world_size=2)
    torch.save(results_of_sets(slice(rank, None, 2)), Path(folder, f"{rank}.pt"))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_sets_of_labels_in_two_processes(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(sets_in_process, (str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call]
    for rank in (0, 1):
        require_results_of_scikit_learn(torch.load(tmp_path / f"{rank}.pt", weights_only=False))
