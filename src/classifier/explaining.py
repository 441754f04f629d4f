"""Hydra's refusals, in words that say what to type."""

import re
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from classifier.config import CONFIG_DIR
from classifier.errors import did_you_mean


def is_bug(error: Exception) -> bool:
    """Whether an exception of Hydra's comes from our code, not from the command line."""
    return (
        isinstance(error, OmegaConfBaseException)
        and not isinstance(error, MissingMandatoryValue)
        and not error.full_key
    )


def explain(error: Exception, verb: str) -> str:
    """Hydra's message, with the near matches of what was mistyped."""
    text = str(error)
    if isinstance(error, MissingMandatoryValue):
        key = error.full_key or text.rsplit(" ", 1)[-1]
        return f"{key} is not set: type {key}=..."
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        near = did_you_mean(option, error.options)
        # these have a way to name any of timm's
        other = f" or {group}=timm {group}.name={option}" if group in ("model", "optimizer") else ""
        return f"{group}={option} does not exist: {near.removesuffix('?')}{other}{'?' if near.endswith('?') else ''}"
    if isinstance(error, OverrideParseException) and "=" not in str(error.override):
        return f"{error.override} has no value: type {error.override}=VALUE"
    if isinstance(error, OverrideParseException):
        return f"cannot read the override {error.override!r}: put its value into quotes, such as \"key='a value'\""
    if isinstance(error, ConfigCompositionException) and (found := re.search(r"Could not override '([^'@]+)", text)):
        key = found[1]
        return f"there is no key {key}: {_near_key(key, _known_keys(verb, key))}"
    return " ".join(text.split())


def _near_key(wrong: str, known: list[str]) -> str:
    """`optimizer.lr` for `lr`, `trainer.max_epochs` for `epochs`; else what is spelt alike."""
    last = wrong.rpartition(".")[2]
    same = [key for key in known if key.rpartition(".")[2] == last and key != wrong]
    same = same or [key for key in known if last in key.rpartition(".")[2].split("_")]
    same.sort(key=lambda key: not key.startswith("trainer."))  # whose epochs and steps are mostly meant
    return f"did you mean {' or '.join(same[:3])}?" if same else did_you_mean(wrong, known)


def _known_keys(verb: str, wrong: str) -> list[str]:
    """All keys that can be overridden beside the ones that are right on this command line."""
    overrides = [
        text
        for text in sys.argv[1:]
        if re.match(r"[\w/]+=[\w/]+$", text)
        and text.partition("=")[0] != wrong
        and Path(CONFIG_DIR, text.partition("=")[0]).is_dir()
    ]
    with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = hydra.compose(verb, overrides)
    keys = ["experiment"]  # a group that is no key

    def walk(node: Any, prefix: str) -> None:
        for key, value in node.items():
            keys.append(prefix + str(key))
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")

    walk(OmegaConf.to_container(config, resolve=False), "")
    return keys
