from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch.nn import functional
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassF1Score

from classifier.evaluation.metrics import EvalMetrics, macro_f1

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


@pytest.mark.parametrize(("num_classes", "present"), [(2, 2), (5, 5), (6, 6), (120, 120), (5, 3), (20, 7)])
def test_results_equal_those_of_torchmetrics(num_classes: int, present: int) -> None:
    data = random_data(num_classes, present=present)
    logits, labels, losses = data
    results = evaluate(data, num_classes).compute()

    def accuracy(top_k: int) -> torch.Tensor:
        value: torch.Tensor = MulticlassAccuracy(num_classes, average="micro", top_k=top_k)(logits, labels)
        return value

    expected = {
        "acc": accuracy(1),
        "f1": MulticlassF1Score(num_classes, average="macro")(logits, labels),
        "loss": losses.double().mean(),
    }
    if num_classes > 5:
        expected["acc_top5"] = accuracy(5)
    assert results.keys() == {*expected, "confusion"}
    for name, value in expected.items():
        assert results[name].item() == pytest.approx(value.item(), abs=1e-6), name
    assert torch.equal(results["confusion"], MulticlassConfusionMatrix(num_classes)(logits, labels))


def test_f1_leaves_out_classes_that_never_occur() -> None:
    # class 2 is neither label nor prediction; class 3 is predicted once, wrongly
    confusion = torch.tensor([[3, 1, 0, 1], [0, 4, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    assert macro_f1(confusion).item() == pytest.approx((6 / 8 + 8 / 9 + 0) / 3)


@pytest.mark.parametrize("scale", [1.0, 5.0, 20.0])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_results_do_not_depend_on_the_batches(batch_size: int, scale: float) -> None:
    data = random_data(10, scale=scale)
    whole = evaluate(data, 10, batch_size=500).compute()
    parts = evaluate(data, 10, batch_size=batch_size).compute()
    for name, value in whole.items():  # in float32, as they are logged
        assert torch.equal(value.float(), parts[name].float()), name


def test_reset_forgets() -> None:
    metrics = evaluate(random_data(6), 6)
    metrics.reset()
    metrics.update(torch.eye(6), torch.arange(6), torch.zeros(6))
    results = metrics.compute()
    assert (results["acc"].item(), results["f1"].item(), results["loss"].item()) == (1.0, 1.0, 0.0)
    assert torch.equal(results["confusion"], torch.eye(6, dtype=torch.int64))


def in_process(rank: int, folder: str) -> None:
    """Evaluate every second image; the first process has one more."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/init", rank=rank, world_size=2)
    share: Data = tuple(tensor[rank::2] for tensor in random_data(8, count=101))  # type: ignore[assignment]
    results = evaluate(share, 8).compute()
    torch.save(results, Path(folder, f"{rank}.pt"))
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(in_process, (str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call]
    expected = evaluate(random_data(8, count=101), 8).compute()
    for rank in (0, 1):
        results = torch.load(tmp_path / f"{rank}.pt")
        assert results.keys() == expected.keys()
        assert all(torch.equal(results[name].float(), value.float()) for name, value in expected.items())
