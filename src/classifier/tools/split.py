"""The split as folders, for tools that need them: output/{train,val,test}/<class>/<name>."""

import filecmp
import logging
import os
import shutil
from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from classifier.data.samples import Samples
from classifier.data.sources.folder import EXTENSIONS
from classifier.errors import UserError
from classifier.files import whole_file
from classifier.parallel import tracked
from classifier.tools.data import open_data
from classifier.tools.folders import Entry, how_to_read, plan, require_only, source_name, write_list
from classifier.tools.keys import choice, flag
from classifier.tools.output import require_folder_apart

log = logging.getLogger(__name__)

MODES = ("symlink", "hardlink", "copy")


def split(config: DictConfig) -> Path:
    """Write every image of every part, and split.csv; the output folder.

    What is there already, and has the same content, is kept. So a second call completes the first.

    Args:
        config: As configs/split.yaml composes it.

    Raises:
        UserError: Wrong input; boxes, or images that are no files; a file with other content that would be replaced.
    """
    output, mode, overwrite = Path(config.output), choice(config, "mode", MODES), flag(config, "overwrite")
    datamodule = open_data(config)
    samples = datamodule.samples
    require_folder_apart(output, datamodule.source.root)
    _require_files(samples)
    entries = plan(samples, datamodule.split, partial(_name, samples))
    if output.exists():
        require_only(output, entries)
    todo = [entry for entry in entries if not _is_done(output / entry.path, samples.path(entry.row), mode, overwrite)]
    for entry in tracked(todo, "writing", len(todo)):
        _write(output / entry.path, samples, entry, mode)
    write_list(output, samples, entries)
    log.info("%s: %d written, %d were there", output, len(todo), len(entries) - len(todo))
    log.info("read it with %s", how_to_read(output, samples, datamodule.split))
    return output


def _require_files(samples: Samples) -> None:
    if samples.boxes is not None or samples.store is not None:
        what = "boxes in images" if samples.boxes is not None else "images that are no files of their own"
        raise UserError(
            f"the samples of {samples.root} are {what}, and split.py writes whole files: "
            "use scripts/crop.py with the same arguments"
        )


def _name(samples: Samples, row: int) -> tuple[str, str]:
    name = source_name(samples, row)
    if name.suffix.lower() not in EXTENSIONS:
        raise UserError(
            f"{samples.path(row)} has none of the endings that data=folder reads ({', '.join(EXTENSIONS)}): "
            "use scripts/crop.py with the same arguments"
        )
    return name.stem, name.suffix


def _is_done(target: Path, source: Path, mode: str, overwrite: bool) -> bool:
    """Whether `target` has the content of `source`, and is no link where it is to be a copy.

    A link whose file is gone has no content.
    """
    if overwrite or not target.exists():
        return False
    if not target.is_file():
        raise UserError(f"{target} is not a file: remove it, or name another place with output=...")
    same = target.samefile(source)
    # equal sizes and times are taken for equal content, as copies keep them
    if same or filecmp.cmp(source, target):
        return not (mode == "copy" and (same or target.is_symlink()))
    raise UserError(f"{target} exists with other content than {source}: use overwrite=true, or another output=...")


def _write(target: Path, samples: Samples, entry: Entry, mode: str) -> None:
    source = samples.path(entry.row).resolve()
    with whole_file(target) as scratch:
        if mode == "copy":
            shutil.copy2(source, scratch)
            return
        try:
            if mode == "hardlink":
                scratch.hardlink_to(source)
            else:
                # Relative: it holds where data and output move together, or are mounted elsewhere in a container.
                # From the true folder, as `..` leads out of that one.
                scratch.symlink_to(os.path.relpath(source, target.parent.resolve()))
        except (OSError, ValueError) as error:  # another file system or drive, or links are not allowed
            raise UserError(f"cannot make the {mode} {target} to {source} ({error}): use mode=copy") from error
