"""A config and its data -> the classifier to train."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl

from classifier.data import ClassificationDataModule
from classifier.data.samples import labels_of
from classifier.errors import UserError, did_you_mean
from classifier.models.network import require_image_size, without_weights
from classifier.training.checkpoints import init_from
from classifier.training.module import ImageClassifier

log = logging.getLogger(__name__)


def build_classifier(settings: dict[str, Any], datamodule: ClassificationDataModule, new: bool) -> ImageClassifier:
    """Build what a run trains, and refuse what can be refused before its first step.

    Args:
        settings: The resolved config.
        datamodule: Set up.
        new: Whether the weights are those that the config names; else a checkpoint brings them.

    Raises:
        UserError: The config does not fit together.
    """
    if settings["loss"].get("class_weight") == settings["data"]["sampler"] == "balanced":
        log.warning("data.sampler=balanced and loss.class_weight=balanced: rare classes count twice")
    labels = labels_of(datamodule.samples)[datamodule.rows("train")]
    pl.seed_everything(settings["seed"], verbose=False)
    model = ImageClassifier(
        model=settings["model"] if new else without_weights(settings["model"]),
        classes=list(datamodule.classes),
        preprocessing=datamodule.preprocessing.to_dict(),
        class_counts=np.bincount(labels, minlength=datamodule.num_classes).tolist(),
        trusted=True,
        **{key: settings[key] for key in ("optimizer", "scheduler", "finetune", "loss", "mix", "seed")},
    )
    channels, image_size = model.preprocessing.channels, model.preprocessing.image_size
    require_image_size(model.network, channels, image_size)
    for size in set(datamodule.augmentation.sizes.values()) - {image_size}:
        require_image_size(model.network, channels, size, "use data.train_size=null")
    _require_monitor(settings, model, datamodule)
    if settings["init_from"] is not None and new:
        log.info(init_from(model, Path(settings["init_from"])))
    if new:
        _warn_of_freezing(settings, model)
    return model


def _require_monitor(settings: dict[str, Any], model: ImageClassifier, datamodule: ClassificationDataModule) -> None:
    monitor = settings["monitor"]
    if monitor not in model.task.metric_names:
        raise UserError(f"monitor={monitor} is not logged: {did_you_mean(str(monitor), model.task.metric_names)}")
    mode = "min" if monitor.endswith("loss") else "max"
    if settings["mode"] != mode:
        raise UserError(f"mode={settings['mode']} would keep the worst {monitor}: use mode={mode}")
    if monitor.startswith("val/") and ("val" not in datamodule.parts or settings["trainer"]["limit_val_batches"] == 0):
        raise UserError(
            f"monitor={monitor} needs validation images: use data.val_fraction=0.1 trainer.limit_val_batches=null, or "
            "monitor=train/loss mode=min"
        )


def _warn_of_freezing(settings: dict[str, Any], model: ImageClassifier) -> None:
    finetuning, epochs = model.finetuning, settings["trainer"]["max_epochs"]
    if finetuning.trained(0) == len(finetuning.stages):
        return
    sources = [settings["model"].get(key) for key in ("pretrained", "checkpoint_path")]
    if not any([*sources, settings["init_from"]]):
        log.warning("finetune freezes features that nothing has trained: use model.pretrained=true, or init_from=...")
    if finetuning.most > 0 and epochs is not None and 0 < epochs <= finetuning.head_epochs:
        log.warning(
            "the run ends before more than the head is trained: use finetune.head_epochs=%d or less, or more than "
            "trainer.max_epochs=%d", epochs - 1, epochs
        )  # fmt: skip
