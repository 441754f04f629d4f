"""What a run has reached: metrics.json, and the last lines on the terminal."""

import logging
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint

from classifier.data import ClassificationDataModule
from classifier.evaluation.predictions import rounded
from classifier.training.checkpoints import RUN_KEY, read_checkpoint
from classifier.training.module import ImageClassifier

log = logging.getLogger(__name__)


def final_metrics(
    trainer: pl.Trainer, model: ImageClassifier, datamodule: ClassificationDataModule, run_dir: Path, test: bool
) -> dict[str, float]:
    """The metrics of the best checkpoint, or else of the last: those it holds, and its test."""
    checkpoint = trainer.checkpoint_callback
    best = checkpoint.best_model_path if isinstance(checkpoint, ModelCheckpoint) else ""
    last = run_dir / "checkpoints" / "last.ckpt"
    if not best and last.is_file():
        log.warning("no checkpoint was kept as the best: these are the metrics of %s", last)
        best = str(last)
    # not `current_epoch`, which a run that was resumed behind its last epoch has not counted up
    done = trainer.fit_loop.epoch_progress.state_dict()["current"]["processed"]
    progress = {"epoch": done, "global_step": trainer.global_step}
    values = {name: value.item() for name, value in trainer.callback_metrics.items()}
    if best:
        kept = read_checkpoint(Path(best))
        values = kept[RUN_KEY]["metrics"]
        progress["best_epoch"] = kept["epoch"] + 1
    if test and "test" in datamodule.split:
        trainer.test(model, datamodule=datamodule, ckpt_path=best or None, weights_only=True, verbose=False)
        values |= {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("test/")}
    elif test:
        log.warning("%s has no test part: nothing was tested", datamodule.source.root)
    return {**rounded(values), **progress}


def report(run_dir: Path, metrics: dict[str, float]) -> None:
    """Tell where the run is and what it reached."""
    shown = [name for name in ("val/acc", "val/loss", "test/acc", "test/loss", "test/f1") if name in metrics]
    for split in ("val/", "test/"):
        log.info("%s", "  ".join(f"{name} {metrics[name]:.4f}" for name in shown if name.startswith(split)))
    log.info("%s", run_dir)
