"""A config -> a data module with its data at hand."""

from collections.abc import Mapping
from typing import Any

import hydra

from classifier.data.datamodule import ClassificationDataModule
from classifier.errors import UserError


def build_datamodule(settings: Mapping[str, Any], **arguments: Any) -> ClassificationDataModule:
    """Instantiate a data module's config and make or fetch its data.

    Raises:
        UserError: The config does not fit the data module, or the data cannot be had.
    """
    try:
        datamodule: ClassificationDataModule = hydra.utils.instantiate(
            dict(settings), **arguments, _recursive_=False, _convert_="all"
        )
    except hydra.errors.InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from error
        raise UserError(f"cannot build the data module: {str(error).splitlines()[0]} (data.*)") from error
    datamodule.prepare_data()
    return datamodule
