"""A config -> a data module with its data at hand."""

from collections.abc import Mapping
from typing import Any

from classifier.data.datamodule import ClassificationDataModule
from classifier.instantiate import build


def build_datamodule(settings: Mapping[str, Any], **arguments: Any) -> ClassificationDataModule:
    """Instantiate a data module's config and make or fetch its data.

    Raises:
        UserError: The config does not fit the data module, or the data cannot be had.
    """
    datamodule: ClassificationDataModule = build(settings, "data", recursive=False, **arguments)
    datamodule.prepare_data()
    return datamodule
