"""Boxes, or whole images, as class folders: output/{train,val,test}/<class>/<name>, to train on with data=folder.

Of images with several labels: output/{train,val,test}/<name>, with the labels in split.csv.
"""

import logging
import re
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd
from omegaconf import DictConfig
from PIL import Image

from classifier.data import ClassificationDataModule
from classifier.data.image import upright_size
from classifier.data.labels import JOIN, MULTI, SINGLE
from classifier.data.listing import EXTENSIONS
from classifier.data.samples import BOX, SPLITS
from classifier.errors import UserError, require_choice, require_flag, require_whole
from classifier.files import require_outside, whole_file, write_csv
from classifier.parallel import parallel_map, tracked, worker_count
from classifier.tools.data import open_data

log = logging.getLogger(__name__)

LIST = "split.csv"
FORMATS = {"jpg": "JPEG", "png": "PNG"}
LONGEST = 200  # bytes, of the 255 that most file systems take: numbers and suffixes are added


def crop(config: DictConfig) -> Path:
    """Write every sample of every part, and split.csv, which `data.split_file` takes; return the output folder.

    A file is there whole or not at all, and split.csv holds what it was made from and how. So a second call after a
    kill writes only the missing ones, and one with other settings is refused.

    Args:
        config: As configs/crop.yaml composes it.

    Raises:
        UserError: Wrong input; files that were made in another way, where `overwrite` is false.
    """
    output = Path(config.output)
    require_choice("format", config.format, FORMATS)
    if config.size is not None:
        require_whole("size", config.size, 1)
    require_whole("quality", config.quality, 1, 100)
    require_flag("by_split", config.by_split)
    require_flag("overwrite", config.overwrite)
    datamodule = open_data(config)
    require_outside(output, datamodule.root)
    if datamodule.root.resolve().is_relative_to(output.resolve()):
        raise UserError(f"output={output} contains the data folder {datamodule.root}: name a folder of its own")
    files = plan(datamodule, config)
    _require_same(output, files, config.overwrite)
    write_csv(output / LIST, files)  # before the files, so that none is ever there unlisted
    todo = [file for file in files.itertuples() if not (output / str(file.path)).is_file()]
    reading = datamodule.preprocessing

    def write(file: Any) -> None:
        """Write a sample as an upright image of its own, which is never enlarged."""
        picture, box = datamodule.image(file.Index), datamodule.box(file.Index)
        width, height = upright_size(picture, box)
        scale = 1.0 if config.size is None else min(1.0, config.size / min(width, height))
        sides = (max(1, round(height * scale)), max(1, round(width * scale)))
        pixels = reading.whole(picture, box, sides)
        with whole_file(output / file.path) as scratch:
            image = Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).numpy())
            image.save(scratch, FORMATS[config.format], quality=config.quality)  # PNG ignores it

    workers = max(1, worker_count(datamodule.num_workers))
    list(tracked(parallel_map(write, todo, workers), "writing", len(todo)))
    log.info("%s: %d written, %d were there", output, len(todo), len(files) - len(todo))
    without_val = "" if "val" in datamodule.parts else " data.val_fraction=0"  # else one would be cut from training
    how = f"data=folder data.root={output}" + (without_val if config.by_split else f" data.split_file={output / LIST}")
    if datamodule.task == MULTI:
        how = (
            f"task={MULTI} data=table data.table={output / LIST} data.split_column=split data.label_separator='{JOIN}'"
        )
        how += without_val
    log.info("read it with %s", how)
    return output


def plan(datamodule: ClassificationDataModule, config: DictConfig) -> pd.DataFrame:
    """The files to write, by their row in `samples`, as the columns of split.csv.

    Of two equal names in a folder the second gets a number. The names depend only on the samples of the part and
    on their order.
    """
    table, reading = datamodule.samples[datamodule.samples["split"].notna()], datamodule.preprocessing
    table = table.iloc[table["split"].map(SPLITS.index).argsort(kind="stable")]
    stems = table["path"].map(lambda path: safe_name(PurePosixPath(path).stem))
    how = f"size {config.size}, quality {config.quality}, {reading.interpolation}, {reading.channels} channels"
    how += "" if reading.value_range is None else f", values {reading.value_range}"
    files = table[["label", "split"]].astype("str").assign(source=table["path"], source_box="", how=how)
    if BOX[0] in table:
        files["source_box"] = table[BOX].astype("str").agg(" ".join, axis=1)
        stems += "_" + (table.groupby("path").cumcount() + 1).astype("str")
    place = stems
    if datamodule.task == SINGLE:
        folders = distinct(pd.Series(datamodule.classes, datamodule.classes).map(safe_name))
        if changed := [f"{name!r} as {folder}" for name, folder in folders.items() if name != folder]:
            log.warning("some classes get another folder name: %s", ", ".join(changed))
        place = files["label"].map(folders) + "/" + stems
    place = files["split"] + "/" + place if config.by_split else place
    files.insert(0, "path", distinct(place) + f".{config.format}")
    return files


def safe_name(name: str) -> str:
    """`name` with what some file system refuses replaced by `_`, never hidden, never empty."""
    name = re.sub(r"\.$|^\.", "_", re.sub(r'[<>:"/\\|?*\x00-\x1f\x7f]', "_", name).strip())
    return name.encode()[:LONGEST].decode("utf-8", "ignore").strip() or "_"  # not through the middle of a character


def distinct(names: pd.Series) -> pd.Series:
    """`names`, with numbers added where one has come before.

    Names that differ in capitals or in the way of writing an accent are the same to some file systems, and so here.
    """
    names = names.astype("str")
    while True:
        keys = names.str.normalize("NFC").str.casefold()
        turns = keys.groupby(keys).cumcount()
        if not turns.any():
            return names
        names = names.mask(turns > 0, names + "_" + (turns + 1).astype("str"))


def _require_same(output: Path, files: pd.DataFrame, overwrite: bool) -> None:
    """Refuse an output folder with images that are not among `files`, or that were made in another way.

    With `overwrite`, those of `files` are removed first of all, so that a call after a kill can complete them.
    """
    listed = files[:0]
    if (output / LIST).is_file():
        listed = pd.read_csv(output / LIST, dtype="str", keep_default_na=False)
    kept = set(files["path"] if overwrite else files.merge(listed)["path"])
    found = [path for path in output.rglob("*") if path.suffix.lower() in EXTENSIONS and not path.is_dir()]
    if others := sorted({path.relative_to(output).as_posix() for path in found} - kept):
        remedy = "remove them" if overwrite else "use overwrite=true for those of this split, remove others"
        # images of another split would be in two parts at once
        what = f"{len(others)} images of another split or other settings, {others[0]} first"
        raise UserError(f"output={output} holds {what}: {remedy}, or name another folder with output=...")
    for path in found if overwrite else []:
        path.unlink()
