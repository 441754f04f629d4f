"""Keys of a script's config, checked where they are read."""

from collections.abc import Sequence

from omegaconf import DictConfig

from classifier.data import ClassificationDataModule, build_datamodule
from classifier.errors import UserError, require_choice, require_flag, require_whole
from classifier.runs import plain


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


def whole(config: DictConfig, key: str, least: int, most: int | None = None) -> int:
    """The whole number at `key`."""
    require_whole(key, config[key], least, most)
    return int(config[key])


def flag(config: DictConfig, key: str) -> bool:
    """The truth value at `key`."""
    require_flag(key, config[key])
    return bool(config[key])


def choice(config: DictConfig, key: str, options: Sequence[str]) -> str:
    """The word at `key`, one of `options`."""
    value = str(config[key])
    require_choice(key, value, options)
    return value
