"""What the user can mend, as against a bug."""

import difflib
from collections.abc import Iterable


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
