"""A line on the terminal for each epoch, which stays where the bar does not: in a log file, above the next bar."""

import csv
import warnings
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only
from torch.utils.tensorboard.summary import hparams

from classifier.files import whole_file


class RunTensorBoardLogger(TensorBoardLogger):
    """Lightning's TensorBoardLogger for one run directory.

    Args:
        save_dir: The run directory.
        log_graph: Show the network's graph.
    """

    def __init__(self, save_dir: str, log_graph: bool = True) -> None:
        super().__init__(save_dir, name="", version="", log_graph=log_graph, default_hp_metric=False)

    @rank_zero_only
    def log_run(self, settings: Mapping[str, Any], metrics: list[str]) -> None:
        """Fill the HPARAMS tab: the settings, and the names of the metrics whose own curves give the values."""
        shown = {key: value for key, value in _flatten(settings) if isinstance(value, (bool, int, float, str))}
        for summary in hparams(shown, dict.fromkeys(metrics, 0.0)):  # type: ignore[no-untyped-call]
            self.experiment.file_writer.add_summary(summary)

    @rank_zero_only
    def log_graph(self, model: pl.LightningModule, input_array: torch.Tensor | None = None) -> None:  # type: ignore[override]
        if model.device_mesh is not None:
            return  # the tracing process would wait for the others' shares of the weights
        with warnings.catch_warnings():
            # TensorBoard's graph is a trace, and torch calls tracing deprecated at each call
            warnings.simplefilter("ignore", FutureWarning)
            super().log_graph(model, input_array)
        _forget_traced_classes()
        self._log_graph = False  # the test after the fit need not show it again

    @rank_zero_only
    def save(self) -> None:
        """Nothing beside the events: config.yaml has the hyper-parameters."""


def _forget_traced_classes() -> None:
    """Let go of the classes that a trace makes for each module, and torch keeps: in a sweep, they add up with each job.

    Source: `clear_class_registry` of torch.testing._internal.jit_utils.
    """
    torch._C._jit_clear_class_registry()
    torch.jit._recursive.concrete_type_store = torch.jit._recursive.ConcreteTypeStore()
    torch.jit._state._clear_class_state()


def _flatten(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value) if isinstance(value, list) else value


class EpochCSVLogger(Logger):
    """Keeps what is logged once an epoch in `save_dir`/metrics.csv, rewritten whole, so that it is never torn.

    A resumed run replaces the rows of the epochs it repeats. (Lightning's CSVLogger writes a row for each call, and
    starts anew on resume.)
    """

    def __init__(self, save_dir: str) -> None:
        super().__init__()
        self.path = Path(save_dir) / "metrics.csv"
        self.rows: dict[int, dict[str, str]] | None = None

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml beside it has them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if "epoch" not in metrics or any(name.endswith("_step") for name in metrics):
            return  # logged within an epoch
        if any(name.startswith("test/") for name in metrics):
            return  # of the best epoch, not of the last: metrics.json has it
        if self.rows is None:
            self.rows = self._read()
        epoch = int(metrics["epoch"])
        row = self.rows.setdefault(epoch, {"epoch": str(epoch)})
        row.update({name: f"{value:.6g}" for name, value in metrics.items() if name != "epoch"})
        if step is not None:
            row["step"] = str(step)
        self._write(self.rows)

    def log_epoch(self, trainer: pl.Trainer) -> None:
        """Log the training metrics of this epoch, which Lightning does behind the callbacks alone."""
        known = {name: value.item() for name, value in trainer.callback_metrics.items()}
        metrics = {name: value for name, value in known.items() if name[:6] == "train/" and name[-5:] != "_step"}
        step = trainer.fit_loop.epoch_loop._batches_that_stepped - 1
        self.log_metrics({**metrics, "epoch": trainer.current_epoch}, step)

    def _read(self) -> dict[int, dict[str, str]]:
        if not self.path.exists():
            return {}
        with self.path.open(newline="") as file:
            return {
                int(row["epoch"]): {key: value for key, value in row.items() if value} for row in csv.DictReader(file)
            }

    def _write(self, rows: dict[int, dict[str, str]]) -> None:
        names = sorted({name for row in rows.values() for name in row} - {"epoch", "step"})
        with whole_file(self.path, "log_dir") as scratch, scratch.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["epoch", "step", *names], restval="")
            writer.writeheader()
            writer.writerows(rows[epoch] for epoch in sorted(rows))


# name -> how it is shown; what an epoch does not have is left out
SHOWN = {
    "train/loss": "train loss {:.4f}",
    "train/acc": "acc {:.4f}",
    "val/loss": "val loss {:.4f}",
    "val/acc": "acc {:.4f}",
    "train/images_per_second": "{:,.0f} images/s",
    "train/data_wait": "{:.0%} of the time waiting for data",
}


class ConsoleLogger(Logger):
    """Prints an epoch's results when its last ones come, those of training."""

    def __init__(self) -> None:
        super().__init__()
        self.results: dict[str, float] = {}

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.results |= metrics
        if "train/loss" in metrics:
            line = "  ".join(text.format(self.results[name]) for name, text in SHOWN.items() if name in self.results)
            print(f"epoch {int(self.results['epoch']) + 1}: {line}", flush=True)
            self.results = {}
