"""Wrong input, which the user can mend; everything else that is raised is a bug."""

import difflib
import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any


class UserError(Exception):
    """Wrong input. Shown without a traceback; the program ends with exit code 2.

    The message names the thing, the value found and the override to type.
    """


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """A sentence with the options nearest to `name`, or with all of them where none is near."""
    known = sorted({str(option) for option in options})
    by_lower = {option.lower(): option for option in known}
    near = [by_lower[match] for match in difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.6)]
    if near:
        return f"did you mean {' or '.join(near)}?"
    if len(known) > 40:
        return f"there are {len(known)} to choose from, {known[0]} to {known[-1]}"
    return f"choose from: {', '.join(known)}"


def require_choice(key: str, value: Any, options: Iterable[str]) -> None:
    """Raise a UserError unless the value of `key` is one of `options`."""
    if value not in options:
        raise UserError(f"{key}={value} is unknown: {did_you_mean(str(value), options)}")


def require_flag(key: str, value: Any) -> None:
    """Raise a UserError unless the value of `key` is true or false."""
    if not isinstance(value, bool):
        raise UserError(f"{key}={value} must be true or false")


def require_whole(key: str, value: Any, least: int, most: int | None = None, otherwise: str = "") -> None:
    """Raise a UserError unless the value of `key` is a whole number from `least` to `most`.

    Args:
        otherwise: End of the message.
    """
    fits = isinstance(value, Integral) and not isinstance(value, bool)
    if not fits or value < least or (most is not None and value > most):
        limits = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise UserError(f"{key}={value} must be a whole number {limits}{otherwise}")


def require_number(
    key: str, value: Any, *, least: float = -math.inf, above: float = -math.inf, most: float = math.inf
) -> None:
    """Raise a UserError unless the value of `key` is a finite number within the limits."""
    low, high = math.isfinite(least), math.isfinite(most)
    limits = [("from" if high else "of at least", least), ("above", above), ("to" if low else "up to", most)]
    words = [f"{word} {limit:g}" for word, limit in limits if math.isfinite(limit)]
    fits = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or value < least or value <= above or value > most:
        raise UserError(" ".join([f"{key}={value} must be a number", *words]))
