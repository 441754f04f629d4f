"""A line on the terminal for each epoch, which stays where the bar does not: in a log file, above the next bar."""

from argparse import Namespace
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

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
