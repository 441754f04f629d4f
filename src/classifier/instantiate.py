"""A config section -> the object it names, with what can go wrong put into words."""

from collections.abc import Mapping
from typing import Any

import hydra
from hydra.errors import InstantiationException
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from classifier.errors import UserError

# the first, where there is no such target
WRONG_INPUT = (ImportError, TypeError, ValueError, RuntimeError, MisconfigurationException)


def build(config: Mapping[str, Any], section: str, *arguments: Any, recursive: bool = True, **keywords: Any) -> Any:
    """Call `_target_` with the section's keys and the given arguments; containers arrive as dict and list.

    Args:
        section: Its name on the command line, for messages.
        recursive: Build nested sections too.

    Raises:
        UserError: There is no such target, or it does not take these arguments.
    """
    if "_target_" not in config:
        raise UserError(f"{section}._target_ is missing: name what to build")
    try:
        return hydra.utils.instantiate(dict(config), *arguments, **keywords, _recursive_=recursive, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise cause from error
        if cause is not None and not isinstance(cause, WRONG_INPUT):
            raise
        # without a cause where Hydra itself refuses the target
        raise UserError(f"{section} is not accepted: {' '.join(str(cause or error).split())} ({section}.*)") from error
