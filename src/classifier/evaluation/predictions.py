"""Probabilities -> rows of predictions.csv; metrics -> metrics.json."""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from classifier.files import whole_file


def label_columns(top_k: int) -> list[str]:
    """label, confidence, label_2, confidence_2, ..."""
    return [f"{name}_{k}" if k > 1 else name for k in range(1, top_k + 1) for name in ("label", "confidence")]


def top_labels(probabilities: torch.Tensor, classes: Sequence[str], top_k: int) -> list[str]:
    """The cells of `label_columns` for one image; probabilities float (K,)."""
    values, labels = probabilities.topk(top_k)
    cells: list[str] = []
    for value, label in zip(values.tolist(), labels.tolist(), strict=True):
        cells += [classes[label], f"{value:.6f}"]
    return cells


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]], key: str = "output") -> None:
    """Write a CSV; it appears under its name when it is whole.

    Args:
        key: The setting that names another place.

    Raises:
        UserError: It cannot be written.
    """
    with (
        whole_file(path, key) as scratch,
        scratch.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


def rounded(values: dict[str, float]) -> dict[str, float]:
    """The metrics among `values`, to six decimals: what lies behind depends on the order of additions."""
    kept = {
        name: round(value, 6) for name, value in values.items() if name.split("/")[0] in ("train", "val", "test", "all")
    }
    return {name: kept[name] for name in sorted(kept) if not name.endswith("_step")}


def write_json(path: Path, metrics: dict[str, float], key: str = "output_dir") -> None:
    """Write a JSON file; it appears under its name when it is whole.

    Args:
        key: The setting that names another place.

    Raises:
        UserError: It cannot be written.
    """
    with whole_file(path, key) as scratch:
        scratch.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
