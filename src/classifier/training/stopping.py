"""How a run is told to stop: by a signal, or by early stopping."""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason
from pytorch_lightning.trainer.states import TrainerFn

log = logging.getLogger(__name__)


def exit_code(signum: int) -> int:
    """That of a program which a signal ended, as shells count: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + signum


@contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """SIGTERM ends the program as an exception does, so that what is half made is cleared away."""

    def leave(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(exit_code(signum))

    if threading.current_thread() is not threading.main_thread():  # which alone can set what a signal does
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class StopSignals:
    """Notes SIGTERM and Ctrl-C, for a run that stops where it can be resumed; a second Ctrl-C stops at once.

    (Lightning's own handler waits for another process within the handler itself, stops in the middle of accumulated
    gradients, sees the signals of the first process alone, and saves nothing.)
    """

    def __init__(self) -> None:
        self.received = 0
        self._since = 0.0
        self._group: Any = None

    def attach(self, trainer: pl.Trainer) -> None:
        """Handle the signals while `trainer` fits; while it tests, leave SIGTERM to whom it was left before.

        Lightning puts back the handlers that were there before, when it is done.
        """
        connector = trainer._signal_connector
        register = connector.register_signal_handlers

        def handle() -> None:
            before = signal.getsignal(signal.SIGTERM)
            register()  # for those of SLURM
            if threading.current_thread() is not threading.main_thread():
                return
            if trainer.state.fn == TrainerFn.FITTING:
                signal.signal(signal.SIGTERM, self._note)
                signal.signal(signal.SIGINT, self._note)
            else:
                signal.signal(signal.SIGTERM, before)

        connector.register_signal_handlers = handle  # type: ignore[method-assign]

    def connect(self, trainer: pl.Trainer) -> None:
        """Let several processes agree, now that they know each other."""
        if trainer.world_size > 1:
            # on the CPU: a GPU then does not wait for the agreement
            self._group = torch.distributed.new_group(backend="gloo")
            # Lightning's, which has a GPU wait at each step
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing  # type: ignore[method-assign]

    def _note(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        # within a second, it is the same one: torchrun hands on what a terminal has sent to all
        if signum == signal.SIGINT and self.received and now - self._since > 1:
            raise KeyboardInterrupt
        if not self.received:
            self.received, self._since = signum, now
            # not the log: the signal may have come while it writes
            os.write(2, b"stopping behind this step, with a checkpoint\n")

    def agreed(self, due: bool) -> tuple[int, bool]:
        """The signal that any process got, 0 for none; and whether a checkpoint is due for any."""
        if self._group is None:
            return self.received, due
        wishes = torch.tensor([self.received, int(due)])
        torch.distributed.all_reduce(wishes, torch.distributed.ReduceOp.MAX, group=self._group)
        return int(wishes[0]), bool(wishes[1])


def _nothing() -> None:
    pass


class RunEarlyStopping(EarlyStopping):
    """Lightning's EarlyStopping, which after a resume keeps to its decision, and to the patience of the config.

    (Lightning's trains an epoch more, with the patience of the checkpoint.)
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if self.monitor.startswith("train/"):  # of the epoch, and not of one before it
            self._check_on_train_epoch_end = True
        self.strict = False  # a run that ends before its first validation has nothing to stop for

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.stopping_reason != EarlyStoppingReason.NOT_STOPPED:
            log.info("early stopping (callbacks.early_stopping=null goes on): %s", self.stopping_reason_message)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        state = checkpoint["callbacks"].get(self.state_key)
        if state is None or trainer.state.fn != TrainerFn.FITTING:
            return
        reason = EarlyStoppingReason(state["stopping_reason"])
        patient = reason == EarlyStoppingReason.PATIENCE_EXHAUSTED and state["wait_count"] < self.patience
        if reason != EarlyStoppingReason.NOT_STOPPED and not patient:
            trainer.should_stop = True
            log.info("early stopping has ended this run: callbacks.early_stopping=null takes it further")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({**state_dict, "patience": self.patience})
