"""Files that appear whole or not at all, and never in the data; some are made by one process of several."""

import errno
import fcntl
import hashlib
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING

from filelock import FileLock

from classifier.errors import UserError

if TYPE_CHECKING:
    import pandas as pd  # takes a second, and the command line needs this file too


def require_outside(output: Path, root: Path, key: str = "output") -> None:
    """Refuse to write into the data.

    Raises:
        UserError: `output` is `root`, or lies in it.
    """
    if output.resolve().is_relative_to(root.resolve()):
        what = f"{key}={output} lies in the data folder {root}, which is only read"
        raise UserError(f"{what}: name another place with {key}=...")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A scratch path to write a file or folder to, which then takes the place of `path`, with its folder made.

    Each process has its own scratch, and removes those that a kill has left. It is hidden, and has no image's
    extension.
    """
    scratch = path.with_name(f".{path.name}.{writers()}-{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_left(path.parent.absolute())
        _remove(scratch)  # else a link left there would be written through
        yield scratch
        scratch.replace(path)
    finally:
        with suppress(OSError):  # a rename onto another link of the same file leaves both
            _remove(scratch)


@contextmanager
def whole_file(path: Path, key: str = "output") -> Iterator[Path]:
    """The same as `replacing`.

    Args:
        key: The setting that names another place.

    Raises:
        UserError: It cannot be written.
    """
    with _reported(path, key), replacing(path) as scratch:
        yield scratch


def write_csv(path: Path, frame: "pd.DataFrame", key: str = "output", float_format: str | None = None) -> None:
    """Write a table without its index, whole or not at all.

    Args:
        key: The setting that names another place.
        float_format: Such as `%.6f`; None for all digits.

    Raises:
        UserError: It cannot be written.
    """
    with whole_file(path, key) as scratch:
        # file names need not be UTF-8
        frame.to_csv(scratch, index=False, float_format=float_format, encoding="utf-8", errors="surrogateescape")


def require_writable(path: Path, key: str = "output") -> None:
    """Refuse, before the work is done, a file that could not be written after it; its folder is made.

    Raises:
        UserError: It cannot be written.
    """
    with _reported(path, key):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".part"):
            pass


def locked(path: Path, key: str = "output") -> AbstractContextManager[object]:
    """Hold the lock file `path`, with its folder made; other processes wait.

    Raises:
        UserError: It cannot be made, or the file system knows no locks.
    """
    with _reported(path, key):
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path).acquire()


@contextmanager
def alone(path: Path, doing: str) -> Iterator[None]:
    """Hold the lock file `path`, and remove it at the end. It is free at once when this process is killed.

    (A FileLock is held by forked processes too, such as those that read images, and they outlive a kill for a while.)

    Args:
        path: Its folder is made.
        doing: What another process that holds it does, and what to type instead.

    Raises:
        UserError: Another process holds it, it cannot be made, or the file system knows no locks.
    """
    with _reported(path, "log_dir"):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_nlink == 0:
                raise BlockingIOError  # its holder has removed it in this moment
        except BlockingIOError as error:
            file.seek(0)
            raise UserError(f"{file.read() or 'another process'} {doing}") from error
        file.truncate(0)
        print(f"process {os.getpid()} on {platform.node()}", end="", file=file, flush=True)
    with file:  # the lock ends where the file is closed
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def made_once(
    path: Path, make: Callable[[Path], object], key: str = "output", is_whole: Callable[[Path], bool] = Path.exists
) -> None:
    """Where `path` does not exist, `make` it at the scratch path given; a second process waits for the first.

    Args:
        is_whole: Whether an existing file can be used; else it is rebuilt.

    Raises:
        UserError: It cannot be written.
    """
    with _reported(path, key):
        if path.exists() and is_whole(path):  # without the lock, which needs a place that can be written
            return
    with locked(path.with_name(f"{path.name}.lock"), key):
        if path.exists() and is_whole(path):
            return
        with whole_file(path, key) as scratch:
            make(scratch)
            if path.is_dir():  # what replaces a folder needs an empty one
                _remove(path)


@contextmanager
def report_full_disk(advice: str) -> Iterator[None]:
    """Turn any "disk full" error into a UserError.

    Args:
        advice: What to do when there is room again.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"no space left on the disk ({error}): make room, then {advice}") from error


@contextmanager
def _reported(path: Path, key: str) -> Iterator[None]:
    """Turn errors of the system, and a file system's lack of locks, into a UserError."""
    try:
        yield
    except (OSError, NotImplementedError) as error:
        raise UserError(f"cannot write {path} ({error}): mend that, or name another place with {key}=...") from error


@cache
def writers() -> str:
    """Stands for all processes that know each other by number: those of this host, or of this container on it."""
    numbers = Path("/proc/self/ns/pid")
    place = f"{platform.node()} {numbers.stat().st_ino if numbers.exists() else 0}"
    return hashlib.sha256(place.encode()).hexdigest()[:8]


@cache
def _remove_left(folder: Path) -> None:
    """Remove the scratch of processes that are gone; once for each folder, as it may hold a million files."""
    for scratch in folder.glob(f".*.{writers()}-*.part"):
        with suppress(OSError, ValueError):  # another user's, gone by now, or no scratch
            try:
                os.kill(int(scratch.stem.rpartition("-")[2]), 0)
            except ProcessLookupError:
                _remove(scratch)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
