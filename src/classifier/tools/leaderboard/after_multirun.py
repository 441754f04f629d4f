"""The leaderboard of a multirun's jobs behind the last of them."""

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from classifier.config import on_main_process
from classifier.tools.leaderboard.compare import compare


class Leaderboard(Callback):
    """Prints it at the end of `-m`; configs/train.yaml names it among Hydra's callbacks."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        sweep_dir = Path(config.hydra.sweep.dir)
        if on_main_process() and any(sweep_dir.glob("*/config.yaml")):  # else all jobs were refused
            compare(sweep_dir)
