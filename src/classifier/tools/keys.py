"""Keys of a script's config, checked where they are read."""

from collections.abc import Sequence

from omegaconf import DictConfig

from classifier.errors import UserError, require_choice, require_whole


def whole(config: DictConfig, key: str, least: int, most: int | None = None) -> int:
    """The whole number at `key`."""
    require_whole(key, config[key], least, most)
    return int(config[key])


def flag(config: DictConfig, key: str) -> bool:
    """The truth value at `key`."""
    value = config[key]
    if not isinstance(value, bool):
        raise UserError(f"{key}={value} must be true or false")
    return value


def choice(config: DictConfig, key: str, options: Sequence[str]) -> str:
    """The word at `key`, one of `options`."""
    value = str(config[key])
    require_choice(key, value, options)
    return value
