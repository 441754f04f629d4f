"""A script's config -> the data as training divides it."""

from omegaconf import DictConfig

from classifier.config import plain
from classifier.data import ClassificationDataModule, build_datamodule
from classifier.errors import UserError


def open_data(config: DictConfig) -> ClassificationDataModule:
    """The data module of `config.data`, its samples listed, checked and split.

    Raises:
        UserError: Wrong input.
    """
    if config.seed < 0:
        raise UserError(f"seed={config.seed} must not be negative")
    datamodule = build_datamodule(plain(config.data))
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule
