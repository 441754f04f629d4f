"""What the check found, kept between runs: only files whose length or time has changed are read again."""

import hashlib
import logging
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
from filelock import FileLock

from classifier.files import replacing

log = logging.getLogger(__name__)

FORMAT = 1  # of the file; one of another format is ignored


class Stamp(NamedTuple):
    """A file's length in bytes and time of change: while they stay, so does what was found."""

    length: int
    mtime_ns: int


class Outcome(NamedTuple):
    """Width and height in pixels, or the reason why the file cannot be used."""

    width: int
    height: int
    reason: str = ""


Known = dict[str, tuple[Stamp, Outcome]]
"""What was found, by the path below the data's root."""


@contextmanager
def shared_cache(cache_dir: Path | None, root: Path, check: str) -> Iterator[Known]:
    """What earlier checks of `root` found; what is added to it inside the block is kept.

    One process of a machine is inside at a time, so that the others find what the first one did. Where nothing can
    be kept, it begins empty and ends so: without a folder, with one that cannot be written, or with one inside the
    data, which is read-only to us.
    """
    root = root.resolve()
    if cache_dir is None or cache_dir.resolve().is_relative_to(root):
        yield {}
        return
    # what one version of Pillow cannot read, another may
    origin = f"{FORMAT} {PIL.__version__} {check} {root}"
    digest = hashlib.sha256(f"{check} {root}".encode("utf-8", "surrogateescape")).hexdigest()
    path = cache_dir / "check" / f"{digest[:16]}.npz"
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(path.with_suffix(".lock")))
        except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
            _warn(path, error)
            yield {}
            return
        known = _load(path, origin)
        before = dict(known)
        try:
            yield known
        finally:  # what was found before Ctrl-C, too
            if known != before:
                _save(path, origin, known)


def _warn(path: Path, error: Exception) -> None:
    log.warning("cannot write %s (%s): the next run will read every header again (data.cache_dir=...)", path, error)


def _load(path: Path, origin: str) -> Known:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if _texts(arrays["origin"]) != [origin]:
                return {}
            paths, reasons = _texts(arrays["paths"]), _texts(arrays["reasons"])
            rows = zip(paths, reasons, arrays["numbers"].tolist(), strict=True)
            return {name: (Stamp(*row[:2]), Outcome(row[2], row[3], reason)) for name, reason, row in rows}
    except FileNotFoundError:
        return {}
    except Exception as error:  # a damaged archive raises many kinds, and is written anew
        log.debug("%s is ignored (%s)", path, error)
        return {}


def _save(path: Path, origin: str, known: Known) -> None:
    """Write the file, whole or not at all."""
    numbers = [(*stamp, outcome.width, outcome.height) for stamp, outcome in known.values()]
    arrays = {
        "origin": _bytes([origin]),
        "paths": _bytes(known),
        "reasons": _bytes(outcome.reason.replace("\0", " ") for _, outcome in known.values()),
        "numbers": np.array(numbers, dtype=np.int64).reshape(-1, 4),
    }
    try:
        with replacing(path) as scratch, scratch.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        _warn(path, error)


def _bytes(texts: Iterable[str]) -> np.ndarray:
    # surrogateescape: a file name on Linux need not be valid UTF-8
    return np.frombuffer("\0".join([*texts, ""]).encode("utf-8", "surrogateescape"), dtype=np.uint8)


def _texts(array: np.ndarray) -> list[str]:
    return array.tobytes().decode("utf-8", "surrogateescape").split("\0")[:-1]
