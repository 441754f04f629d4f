"""Ways to run a network faster that leave its weights, and their names, what they are."""

import pytorch_lightning as pl
import torch
from torch import nn

from classifier.errors import UserError, did_you_mean
from classifier.training.module import ImageClassifier


class Compile(pl.Callback):
    """Compiles the network when the first batch is near: the summary and TensorBoard's graph come from the plain one.

    In place, so that the names in checkpoints stay, and one of a compiled network opens without a compiler.

    Args:
        mode: Of torch.compile.

    Raises:
        UserError: There is no such mode.
    """

    def __init__(self, mode: str = "default") -> None:
        modes = list(torch._inductor.list_mode_options())
        if mode not in modes:
            raise UserError(f"speed.compile={mode} must be true, false or a mode: {did_you_mean(mode, modes)}")
        self.mode = mode
        self.done = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, ImageClassifier)
        if not self.done:  # as it may be for the test after the fit
            # each stage that finetune=gradual frees, and each data.train_size, is compiled anew; past the limit torch
            # goes on without a word, and without what was compiled
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
            pl_module.network.compile(mode=self.mode)
        self.done = True

    on_test_start = on_predict_start = on_train_start


def speed_up(network: nn.Module, *, channels_last: bool, compile: bool | str) -> list[pl.Callback]:
    """Prepare a network; return what the Trainer needs for the rest.

    Args:
        channels_last: Keep convolutions' weights in memory as batches come, (out, height, width, in).
        compile: Whether to, or the mode of torch.compile.
    """
    if channels_last:
        network.to(memory_format=torch.channels_last)
    if not compile:
        return []
    return [Compile() if compile is True else Compile(str(compile))]
