"""Where a script may write a folder."""

from pathlib import Path

from classifier.errors import UserError
from classifier.files import require_outside


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
