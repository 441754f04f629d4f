"""Probabilities -> a table of predictions; metrics -> metrics.json."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch

from classifier.files import whole_file


class Predictions(pl.Callback):
    """Collects what was predicted of each image in a test, of all processes, or in a prediction.

    Args:
        columns: Of the table.
        predict: Probabilities float (B, K) -> a table of B rows with these columns.

    Attributes:
        unreadable: The number of each image that could not be read -> why.
    """

    def __init__(self, columns: list[str], predict: Callable[[torch.Tensor], pd.DataFrame]) -> None:
        self.parts = [pd.DataFrame(columns=columns)]
        self.predict = predict
        self.unreadable: dict[int, str] = {}

    def on_test_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *_: Any, **__: Any) -> None:
        self.unreadable |= batch.get("unreadable", {})
        if outputs is not None:
            self.parts.append(self.predict(outputs).set_index(batch["index"].numpy(force=True)))

    on_predict_batch_end = on_test_batch_end

    def on_test_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.world_size > 1:
            found: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(found, self.table())
            self.parts = found

    def table(self) -> pd.DataFrame:
        """A row for each image, indexed by its number, in the order of these."""
        filled = [part for part in self.parts if len(part)]
        return pd.concat(filled).sort_index() if filled else self.parts[0]


def rounded(values: dict[str, float]) -> dict[str, float]:
    """The metrics among `values`, to six decimals: further ones depend on the order of additions."""
    names = [name for name in sorted(values) if re.match(r"(train|val|test|all)/(?!.*_step$)", name)]
    return {name: round(values[name], 6) for name in names}


def write_json(path: Path, metrics: dict[str, float], key: str = "output_dir") -> None:
    """Write a JSON file; it appears under its name when it is whole.

    Args:
        key: The setting that names another place.

    Raises:
        UserError: It cannot be written.
    """
    with whole_file(path, key) as scratch:
        scratch.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
