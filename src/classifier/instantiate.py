"""A config section -> the object it names, with what can go wrong put into words."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import hydra
import yaml
from hydra.errors import InstantiationException
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from classifier.errors import UserError, as_typed
from classifier.runs import CONFIG_DIR

# the first, where there is no such target
WRONG_INPUT = (ImportError, TypeError, ValueError, RuntimeError, MisconfigurationException)


@cache
def known_targets(group: str) -> frozenset[str]:
    """What the files of configs/<group>/ name as their `_target_`: a checkpoint may name these, and no others."""
    configs = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in (CONFIG_DIR / group).glob("*.yaml")]
    return frozenset(config["_target_"] for config in configs if "_target_" in config)


def require_plain(value: Any, key: str) -> None:
    """Refuse a value from a checkpoint that Hydra would do more with than pass it on.

    Raises:
        UserError: It holds, at any depth, a key such as `_target_` or `defaults`, an interpolation, or an object.
    """
    if isinstance(value, Mapping):
        for name, item in value.items():
            if not isinstance(name, str) or name.startswith("_") or "@" in name or name == "defaults":
                raise UserError(f"{key}.{name} is refused: from a checkpoint come plain values alone")
            require_plain(item, f"{key}.{name}")
    elif isinstance(value, (list, tuple)):
        for item in value:
            require_plain(item, key)
    elif not isinstance(value, (str, int, float, type(None))) or (isinstance(value, str) and "${" in value):
        raise UserError(f"{key}={as_typed(value)} is refused: from a checkpoint come plain values alone")


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
