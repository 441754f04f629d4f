"""Where a script may write, and files that appear whole or not at all."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from classifier.errors import UserError


def require_outside(output: Path, root: Path, key: str = "output") -> None:
    """Refuse to write into the data.

    Raises:
        UserError: `output` is `root`, or lies in it.
    """
    if output.resolve().is_relative_to(root.resolve()):
        raise UserError(f"{key}={output} lies in the data folder {root}, which is only read: name another place")


def require_folder_apart(output: Path, root: Path) -> None:
    """Refuse an output folder that is a file, or that has the data in it or around it.

    Raises:
        UserError: It is; or the two contain one another.
    """
    require_outside(output, root)
    if root.resolve().is_relative_to(output.resolve()):
        raise UserError(f"output={output} contains the data folder {root}: name a folder of its own")
    if output.exists() and not output.is_dir():
        raise UserError(f"output={output} is a file and not a folder: name another place")


@contextmanager
def whole_file(path: Path, key: str = "output") -> Iterator[Path]:
    """A scratch path to write to, which then takes the place of `path`, with its folder made.

    The scratch has the same name for the same file, so that one left by a kill is replaced the next time; it is
    hidden, and no image to an image folder.

    Raises:
        UserError: It cannot be written.
    """
    scratch = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.unlink(missing_ok=True)  # else a link left there would be written through
        yield scratch
        scratch.replace(path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"no space left for {path}: make room and run the same command again, or use {key}=..."
            ) from error
        raise UserError(f"cannot write {path} ({error}): name another place with {key}=...") from error
    finally:
        with suppress(OSError):  # a rename onto another link of the same file leaves both
            scratch.unlink()
