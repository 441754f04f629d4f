"""Configs -> the settings in which they differ."""

from collections.abc import Mapping, Sequence
from typing import Any

Settings = dict[str, str]
"""Key of a config, such as `optimizer.lr` -> its value, as it is typed."""

TARGET = "._target_"
ABSENT = "null"  # a key that a config lacks is off, as one that is null
PLACES = ("name", "log_dir", "run_dir", "resume")  # no choice that a result depends on


def flat(config: Mapping[str, Any]) -> Settings:
    """The config in one level. A section that names what to build is a setting, too: `model` -> `resnet18`.

    Its value is its `name`, or else the last word of its `_target_`.
    """
    settings: Settings = {}
    run_dir = str(config.get("run_dir"))

    def add(key: str, value: Any) -> None:
        if not isinstance(value, Mapping):
            settings[key] = _text(value).replace(run_dir, "")  # callbacks and loggers write there
            return
        target = value.get("_target_")
        if target is not None:
            settings[key] = str(value.get("name", target.rpartition(".")[2]))
        for inner, item in value.items():
            if not (target is not None and inner == "name"):
                add(f"{key}.{inner}", item)

    for key, value in config.items():
        if key == "augment" and "augment" in config.get("data", {}):
            continue  # it is in both, but in a run that was resumed
        if key not in PLACES:
            add(key, value)
    return settings


def differing(all_settings: Sequence[Settings]) -> list[str]:
    """The keys whose values are not the same in all.

    Where two sections build different things, that is the difference: keys that belong to one of them alone are
    compared among those who have it. What only repeats another key, as `data.seed` does `seed`, is left out.
    """
    keys = {key: None for settings in all_settings for key in settings if not key.endswith(TARGET)}
    found = [key for key in keys if _differs(key, all_settings)]

    def values(key: str) -> list[str]:
        return [settings.get(key, ABSENT) for settings in all_settings]

    def repeats(key: str) -> bool:
        return any(key.endswith(f".{other}") and values(key) == values(other) for other in found)

    return [key for key in found if not repeats(key)]


def _differs(key: str, all_settings: Sequence[Settings]) -> bool:
    values: dict[str, set[tuple[str, str]]] = {}  # of those that build the same
    for settings in all_settings:
        value = settings.get(key, ABSENT), settings.get(key + TARGET, "")
        values.setdefault(_builder(key, settings), set()).add(value)
    return any(len(found) > 1 for found in values.values())


def _builder(key: str, settings: Settings) -> str:
    """What the section that `key` is in builds."""
    while key:
        key = key.rpartition(".")[0]
        if key + TARGET in settings:
            return settings[key + TARGET]
    return ""


def _text(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
