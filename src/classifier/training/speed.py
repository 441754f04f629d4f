"""Two ways to run a network faster that leave its weights and their names as they are."""

import pytorch_lightning as pl
import torch
from torch import nn

from classifier.errors import UserError
from classifier.training.module import ImageClassifier


class Compile(pl.Callback):
    """Compiles the network before the first batch, after the summary and TensorBoard's graph were made.

    In place: the names in checkpoints stay, and the checkpoint of a compiled network opens without a compiler.

    Args:
        mode: Of torch.compile.

    Raises:
        UserError: There is no such mode.
    """

    def __init__(self, mode: str = "default") -> None:
        try:
            torch.compile(nn.Identity(), mode=mode)  # which compiles nothing yet
        except RuntimeError as error:
            raise UserError(f"speed.compile={mode} must be true, false or a mode: {error}") from error
        self.mode = mode
        self.done = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, ImageClassifier)
        if not self.done:  # as it may be for the test after the fit
            # finetune=gradual and data.train_size have torch compile again; after the limit it would run uncompiled
            torch.compiler.config.recompile_limit = max(torch.compiler.config.recompile_limit, 64)
            pl_module.network.compile(mode=self.mode)
        self.done = True

    on_test_start = on_predict_start = on_train_start


def speed_up(network: nn.Module, *, channels_last: bool, compile: bool | str) -> list[pl.Callback]:
    """Prepare a network; return what the Trainer needs for the rest.

    Args:
        channels_last: Keep convolutions' weights in memory as batches are, (out, height, width, in).
        compile: Whether to, or the mode of torch.compile.
    """
    if channels_last:
        network.to(memory_format=torch.channels_last)
    if not compile:
        return []
    return [Compile() if compile is True else Compile(str(compile))]
