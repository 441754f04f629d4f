"""KEY=VALUE on the command line, in Hydra's grammar."""

import os
import re
import sys

from classifier.errors import UserError

# values that Hydra's grammar would stumble over: `=`, blanks, `*` in file names
PATH_KEYS = ("ckpt_path", "resume", "init_from", "run_dir", "log_dir", "inputs", "output", "output_dir", "json",
             "data.root", "data.table", "data.images", "data.annotations", "data.image_sets", "data.split_file",
             "data.weights_file", "data.cache_dir", "model.weights", "model.checkpoint_path")  # fmt: skip
PATTERN_KEYS = ("data.group_pattern",)  # regular expressions, full of what the grammar has a meaning for
BY_PART = ("data.annotations", "data.images")  # {train: PATH, val: PATH} too
GROUP_OFF = r"(experiment|debug|scheduler|callbacks|logger)=null"
GROUP_NEEDED = r"(data|augment|model|finetune|optimizer|trainer|speed)=null"


def argument(key: str) -> str | None:
    """The value typed as key=value on the command line, unquoted; None where it is absent or null."""
    for text in reversed(sys.argv[1:]):
        name, equals, value = text.partition("=")
        if equals and name.lstrip("+") == key:
            if value[:1] in ("'", '"'):  # what `override` does, undone
                value = re.sub(r"(\\+)(['\"]|$)", lambda match: match[1][: len(match[1]) // 2] + match[2], value[1:-1])
            return None if value in ("null", "") else value
    return None


def override(key: str, value: str) -> str:
    """key=value with the value quoted for Hydra's grammar."""
    # Hydra takes a backslash for itself only before a quote
    escaped = re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), value)
    return f"{key}='{escaped}'"


def quoted(arguments: list[str]) -> list[str]:
    """The arguments with `~` expanded, paths and regular expressions quoted, and GROUP=null in Hydra's words.

    Raises:
        UserError: A path is empty, or a group that a run needs is switched off.
    """
    multirun = any(text in ("-m", "--multirun") for text in arguments)
    for text in arguments:
        if needed := re.fullmatch(GROUP_NEEDED, text):
            raise UserError(f"{text}: there is no run without; --help shows what {needed[1]} can be")
    arguments = [_at_home(text, multirun) for text in arguments]
    # Hydra's word for no option of a group
    arguments = [f"~{text[:-5]}" if re.fullmatch(GROUP_OFF, text) else text for text in arguments]
    arguments = [_quoted_pattern(text) for text in arguments]
    if multirun:
        return arguments  # a comma there separates values
    result = []
    for text in arguments:
        key, equals, value = text.partition("=")
        if equals and value == "" and key in PATH_KEYS:
            raise UserError(f"{key}= is empty: name a path, without blanks around =")
        plain = key.lstrip("+") not in PATH_KEYS or value in ("", "null", "???") or value[0] in "'\"[$"
        plain = plain or (key in BY_PART and value[0] == "{")
        result.append(text if not equals or plain else override(key, value))
    return result


def _at_home(text: str, multirun: bool) -> str:
    """A path with its `~`, which the shell leaves as it is behind KEY=, replaced by the home folder."""
    key, equals, value = text.partition("=")
    if key.lstrip("+") not in PATH_KEYS or "~" not in value:
        return text
    values = value.split(",") if multirun else [value]
    return f"{key}{equals}{','.join(os.path.expanduser(path) for path in values)}"  # noqa: PTH111


def _quoted_pattern(text: str) -> str:
    key, _, value = text.partition("=")
    plain = key.lstrip("+") not in PATTERN_KEYS or value in ("", "null") or value[0] in "'\""
    return text if plain else override(key, value)


def replace_arguments(values: dict[str, str], drop: tuple[str, ...] = ()) -> None:
    """Put `values` in the place of what was typed for these keys, and take out the keys in `drop`."""
    gone = {*values, *drop}
    kept = [text for text in sys.argv[1:] if text.partition("=")[0].lstrip("+") not in gone]
    # before the options: behind one, argparse takes no more overrides
    sys.argv[1:] = [*(override(key, value) for key, value in values.items()), *kept]
