"""A config -> a data module."""

import os
from collections.abc import Mapping
from typing import Any

from classifier.data.datamodule import ClassificationDataModule
from classifier.errors import UserError
from classifier.instantiate import build, require_targets

DATA_ROOTS = ("classifier.data.", "torchvision.transforms.")


def build_datamodule(settings: Mapping[str, Any], **arguments: Any) -> ClassificationDataModule:
    """Instantiate a data module's config.

    Raises:
        UserError: The config does not fit the data module.
    """
    require_targets(settings, "data", DATA_ROOTS)
    if not str(settings.get("_target_", "DataModule")).endswith("DataModule"):
        raise UserError(f"data._target_={settings['_target_']} is no data module: name one of classifier.data")
    if isinstance(settings.get("root"), str):  # ~ in a YAML file
        settings = {**settings, "root": os.path.expanduser(settings["root"])}  # noqa: PTH111
    datamodule: ClassificationDataModule = build(settings, "data", recursive=False, **arguments)
    return datamodule
