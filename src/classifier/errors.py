"""Wrong input, which the user can mend; everything else that is raised is a bug."""

import difflib
import json
import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

INF = math.inf


class UserError(Exception):
    """Wrong input. Shown without a traceback; the program ends with exit code 2.

    The message names the thing, the value found and the override to type.
    """


def as_typed(value: Any) -> str:
    r"""A value as it is typed on the command line: null, true, [1,2]; with bytes that are not UTF-8 as `\udcff`."""
    if not isinstance(value, (str, float)):
        value = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str).replace('"', "")
    return str(value).encode("utf-8", "backslashreplace").decode()


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """A sentence with the options nearest to `name`, or with all of them (up to 40) where none is near."""
    known = sorted({str(option) for option in options})
    by_lower = {option.lower(): option for option in known}
    near = [by_lower[match] for match in difflib.get_close_matches(name.lower(), by_lower)]
    return f"did you mean {' or '.join(near)}?" if near else f"choose from: {', '.join(known[:40])}"


def require_choice(key: str, value: Any, options: Iterable[str]) -> None:
    """Raise a UserError unless the value of `key` is one of `options`."""
    if value not in options:
        raise UserError(f"{key}={as_typed(value)} is unknown: {did_you_mean(str(value), options)}")


def require_flag(key: str, value: Any) -> None:
    """Raise a UserError unless the value of `key` is true or false."""
    if not isinstance(value, bool):
        raise UserError(f"{key}={as_typed(value)} must be true or false")


def require_whole(key: str, value: Any, least: int, most: int | None = None, otherwise: str = "") -> None:
    """Raise a UserError unless the value of `key` is a whole number from `least` to `most`.

    Args:
        otherwise: End of the message.
    """
    fits = isinstance(value, Integral) and not isinstance(value, bool)
    if not fits or value < least or (most is not None and value > most):
        limits = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise UserError(f"{key}={as_typed(value)} must be a whole number {limits}{otherwise}")


def require_number(key: str, value: Any, *, least: float = -INF, above: float = -INF, most: float = INF) -> None:
    """Raise a UserError unless the value of `key` is a finite number within the limits."""
    fits = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or not (least <= value <= most and value > above):
        limits = {"at least": least, "above": above, "at most": most}
        words = [f"{word} {limit:g}" for word, limit in limits.items() if math.isfinite(limit)]
        raise UserError(f"{key}={as_typed(value)} must be a number, {' and '.join(words)}".rstrip(", "))
