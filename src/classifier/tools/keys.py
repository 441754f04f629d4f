"""Keys of a script's config, checked where they are read."""

from collections.abc import Sequence

from omegaconf import DictConfig

from classifier.errors import require_choice, require_flag, require_whole


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
