"""What is taken from the files of strangers: plain values, known targets, whole bytes. Imports no torch on its own."""

import re
import zipfile
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from classifier.errors import UserError
from classifier.runs import CONFIG_DIR

MOST_VALUES = 100_000  # of a config, in all


def targets_in(value: Any) -> list[str]:
    """What `_target_` names, at any depth."""
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    own = [str(value["_target_"])] if isinstance(value, Mapping) and "_target_" in value else []
    return own + [found for item in inside for found in targets_in(item)]


@cache
def known_targets(group: str) -> frozenset[str]:
    """What the files of configs/<group>/ name as a `_target_`, `**` for all: a stored config names no others."""
    found: set[str] = set()
    for path in CONFIG_DIR.glob(f"{group}/*.yaml"):
        with suppress(yaml.YAMLError, UnicodeError):  # of a broken file, Hydra says more where it is used
            found.update(targets_in(yaml.safe_load(path.read_text(encoding="utf-8"))))
    return frozenset(found)


def require_plain(value: Any, key: str, targets: Set[str] | None = None, most: int = 1 << 63) -> None:
    """Refuse a stored value that Hydra would do more with than pass it on, or that is too large.

    Args:
        key: Its place, for messages.
        targets: What it may call at any depth; None for nothing, not even by Hydra's other keys, such as `_args_`.
        most: The largest integer.

    Raises:
        UserError: It holds, at any depth, such a key, `defaults`, `hydra`, `@`, an interpolation, or an object.
    """
    found = [(key, value)]  # a list may hold itself, or one list a thousand times
    for _ in range(MOST_VALUES):
        if not found:
            return
        key, value = found.pop()
        if isinstance(value, Mapping):
            for name, item in value.items():
                place = f"{key}.{name}".lstrip(".")
                if name == "_target_" and targets is not None and str(item) not in targets:
                    raise UserError(f"{place} is in no file of configs/: if you trust it, type it, {place}={item}")
                hidden = str(name).startswith("_") and targets is None
                if hidden or "@" in str(name) or name in ("defaults", "hydra") or not isinstance(name, (str, int)):
                    raise UserError(f"{place} is refused: from a stored config come plain values alone")
                found.append((place, item))
        elif isinstance(value, (list, tuple)):
            found += [(f"{key}.{position}", item) for position, item in enumerate(value)]
        elif not isinstance(value, (str, int, float, type(None))) or "${" in str(value):
            raise UserError(f"{key}={value!s:.99} is refused: from a stored config come plain values alone")
        elif isinstance(value, int) and abs(value) > most:
            raise UserError(f"{key}={value} is refused: from a checkpoint come numbers up to {most}")
    raise UserError(f"{key} is refused: it is one of more than {MOST_VALUES} values")


def read_whole(path: Path) -> Any:
    """Tensors and plain values out of a file of torch.save, mapped from it to the CPU; nothing in it is executed.

    Raises:
        Exception: Of many kinds, where it is no such file, holds more, or has other bytes than were written.
    """
    import torch

    with zipfile.ZipFile(path) as archive:  # torch does not look at the checksums
        if any(member.compress_type for member in archive.infolist()) or archive.testzip():
            raise ValueError("its bytes are not those that torch has written")
    # mapped: a tensor then ends where the file does, whatever size it claims
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


# how a file may begin that is not what its name says -> what it is, and what to do
BEGINNINGS = {
    rb"version https://git-lfs": "a pointer of Git LFS and not the file itself: type `git lfs pull`",
    rb"\s*<(\?xml|svg)": "XML, such as a drawing or a server's error: download the file again, or convert it",
    rb"\s*<": "a web page and not the file that it offers: download that",
    rb"\s*[{\[]": "JSON, such as a server's error: download the file again",
    rb"\Z": "an empty file: copy or download it again",
    rb"\0+\Z": "of zeros, as a copy leaves it that was broken off: copy or download it again",
    rb"....ftyp(hei|hev|mif|msf)": "a HEIC photo: convert it to .jpg or .png",
    rb"....ftyp(?!avi)|\x1aE\xdf\xa3|RIFF....AVI |\0\0\x01[\xb3\xba]": "a video: save its frames as .jpg or .png",
    rb"%PDF": "a PDF: save its pages as .jpg or .png",
    rb"II\*\0|MM\0\*": "a TIFF that Pillow does not read, as of many bands or 64 bits: save 8 or 16 bits, grey or RGB",
    rb".{128}DICM": "a DICOM file: save its pixels as .png of 16 bits",
    rb"\x1f\x8b|\xfd7zXZ|7z\xbc\xaf|Rar!": "an archive: unpack it",
    rb"[\t\n\r -~\x80-\xf4]+\Z": "a text file: remove it",
}


def content_of(start: bytes) -> str:
    """What a file is that cannot be read, and what to do, by its first bytes; nothing where they do not tell."""
    return next((text for begin, text in BEGINNINGS.items() if re.match(begin, start, re.DOTALL)), "")


@contextmanager
def report_no_weights(path: Path, key: str, otherwise: str) -> Iterator[None]:
    """Turn any error of reading a file of weights into a UserError that says what the file is.

    Args:
        key: The setting that named it.
        otherwise: What may be wrong with it, and what to do, where its first bytes do not tell.
    """
    try:
        yield
    except Exception as error:  # torch and safetensors raise many kinds
        start = b""
        with suppress(OSError), path.open("rb") as file:
            start = file.read(512)
        found = content_of(start)
        raise UserError(f"{key}={path} {f'is {found}' if found else otherwise}") from error
