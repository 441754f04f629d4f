"""Keys of a script's config, checked where they are read."""

from collections.abc import Sequence

from omegaconf import DictConfig

from classifier.errors import UserError, did_you_mean


def whole(config: DictConfig, key: str, least: int, most: int | None = None) -> int:
    """The whole number at `key`."""
    value = config[key]
    fits = isinstance(value, int) and not isinstance(value, bool)
    if not fits or value < least or (most is not None and value > most):
        limits = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise UserError(f"{key}={value} must be a whole number {limits}")
    return int(value)


def flag(config: DictConfig, key: str) -> bool:
    """The truth value at `key`."""
    value = config[key]
    if not isinstance(value, bool):
        raise UserError(f"{key}={value} must be true or false")
    return value


def choice(config: DictConfig, key: str, options: Sequence[str]) -> str:
    """The word at `key`, one of `options`."""
    value = str(config[key])
    if value not in options:
        raise UserError(f"{key}={value} is unknown: {did_you_mean(value, options)}")
    return value
