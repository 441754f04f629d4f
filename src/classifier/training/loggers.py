"""What a run logs of each epoch: TensorBoard's curves, metrics.csv, and a line on the terminal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only
from torch.utils.tensorboard.summary import hparams

from classifier.errors import as_typed
from classifier.files import write_csv
from classifier.runs import named_settings


class RunTensorBoardLogger(TensorBoardLogger):
    """Lightning's TensorBoardLogger for one run directory.

    Args:
        save_dir: The run directory.
    """

    def __init__(self, save_dir: str) -> None:
        super().__init__(save_dir, name="", version="", default_hp_metric=False)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log epochs and steps as counted from 1: a point stands at the number of steps that are done."""
        ahead = int(not any(name.startswith("test/") for name in metrics))  # a test has the numbers that are done
        counted = {name: value + ahead if name == "epoch" else value for name, value in metrics.items()}
        super().log_metrics(counted, None if step is None else step + ahead)

    @rank_zero_only
    def log_run(self, settings: Mapping[str, Any]) -> None:
        """Fill the HPARAMS tab with the settings; the last points of all curves are its metrics.

        Without torch's list of names and metrics, of which TensorBoard would read one run's alone. So it collects the
        names from all runs, and shows those first in which they differ.
        """
        named = {key: value for key, value in named_settings(settings).items() if not key.endswith("._target_")}
        shown = {key: value if type(value) in (int, float) else as_typed(value) for key, value in named.items()}
        for summary in hparams(shown, {})[1:]:  # type: ignore[no-untyped-call]
            self.experiment.file_writer.add_summary(summary)

    @rank_zero_only
    def save(self) -> None:
        """Nothing beside the events: config.yaml has the hyper-parameters."""


class EpochLogger(Logger):
    """A logger of one run directory that has no use for hyper-parameters."""

    name = version = ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml has them."""


class EpochCSVLogger(EpochLogger):
    """Keeps what is logged once an epoch in `save_dir`/metrics.csv, rewritten whole, so that it is never torn.

    A resumed run replaces the rows of the epochs it repeats. (Lightning's CSVLogger writes a row for each call, and
    deletes its file on resume.)
    """

    def __init__(self, save_dir: str) -> None:
        super().__init__()
        self.path = Path(save_dir) / "metrics.csv"
        known = pd.read_csv(self.path, dtype=str, keep_default_na=False) if self.path.exists() else pd.DataFrame()
        self.rows: dict[int, dict[Any, str]] = {int(row["epoch"]): row for row in known.to_dict("records")}

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if "epoch" not in metrics or any(name.endswith("_step") or name.startswith("test/") for name in metrics):
            return  # a test is of the best epoch, not of the last: metrics.json has it
        row = self.rows.setdefault(int(metrics["epoch"]) + 1, {})  # both count from 1 here, and from 0 in Lightning
        row |= {name: f"{value + (name == 'epoch'):.6g}" for name, value in metrics.items()}
        row["step"] = str((step or 0) + 1)
        table = pd.DataFrame([self.rows[epoch] for epoch in sorted(self.rows)])
        names = sorted({*table} - {"epoch", "step"})
        write_csv(self.path, table.reindex(columns=["epoch", "step", *names]), "log_dir")

    def log_epoch(self, trainer: pl.Trainer) -> None:
        """Log the training metrics of this epoch, which Lightning itself does only after all callbacks."""
        known = trainer.callback_metrics.items()
        metrics = {name: value.item() for name, value in known if name[:6] == "train/" and name[-5:] != "_step"}
        self.log_metrics({**metrics, "epoch": trainer.current_epoch}, trainer.global_step - 1)  # as Lightning counts


# name -> how it is shown, in 80 columns; what an epoch does not have is left out
SHOWN = {"train/loss": "loss {:.3f}", "train/acc": "acc {:.3f} ", "train/f1_micro": "f1 {:.3f} ",
         "val/loss": "val loss {:.3f}",
         "val/acc": "acc {:.3f} ", "val/map": "map {:.3f} ",
         "train/images_per_second": "{:.0f} img/s ", "train/data_wait": "{:.0%} wait"}  # fmt: skip


class ConsoleLogger(EpochLogger):
    """Prints a line for each epoch when its last results come, those of training. It stays where the bar does not: in a
    log file, above the next bar.
    """

    def __init__(self) -> None:
        super().__init__()
        self.results: dict[str, float] = {}

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.results |= metrics
        if "train/loss" in metrics:
            line = " ".join(text.format(self.results[name]) for name, text in SHOWN.items() if name in self.results)
            print(f"epoch {int(self.results['epoch']) + 1}: {line}", flush=True)
            self.results = {}
