"""A data set, read to its end -> a table of what is wrong with it, and an exit code."""

import json
import logging
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from textwrap import TextWrapper
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig

from classifier.data import ClassificationDataModule, build_datamodule
from classifier.data.boxes import in_pixels
from classifier.data.check import check_images, headers
from classifier.data.copies import all_facts, near_duplicates
from classifier.data.listing import is_image, list_files
from classifier.data.samples import BOX, SPLITS, boxes_of, group_ids, list_paths, readable, usable
from classifier.errors import UserError, require_flag, require_number
from classifier.files import require_outside, require_writable, whole_file
from classifier.runs import plain
from classifier.tools.data import class_counts, class_table, counted

log = logging.getLogger(__name__)

SKIP = "data.on_error=skip leaves it out"
TOGETHER = "data.group_duplicates=true keeps copies on one side, where the data has no parts of its own"
# What can be found: its severity, what it means, and what mends it or passes over it. An error stops or falsifies a
# training, a warning deserves a look, a note is handled in reading. In the order of the report.
KINDS = {
    "refused": ("error", "training does not begin", ""),
    "empty file": ("error", "it has no bytes", SKIP),
    "truncated": ("error", "the file was cut off", SKIP),
    "unreadable": ("error", "not an image, a damaged one, or a file that cannot be opened", SKIP),
    "too many pixels": ("error", "decoding is refused, as it could take all memory", SKIP),
    "unusable annotation": ("error", "training refuses it as well", SKIP),
    "box outside": ("error", "no part of the box lies in the image", SKIP),
    "same, other class": ("error", "equal images with different labels", "remove the wrong ones"),
    "same in two parts": ("error", "equal images in training and in evaluation falsify its score", TOGETHER),
    "divided group": ("error", "one group in two prescribed parts", "data.split_file=... divides otherwise"),
    "one class": ("error", "a classifier needs at least two", "data.root=... names another folder"),
    "untrained class": ("error", "the class has no training images", "add some, or remove the class"),
    "wrong extension": ("warning", "the content has another format than the name says", ""),
    "nearly black": ("warning", "its values lie far below the one that is white", ""),
    "out of range": ("warning", "values far outside of data.value_range, or nan, become black or white", ""),
    "several frames": ("warning", "only the first one is read", ""),
    "tiny": ("warning", "a side under {min_side:g} pixels (min_side)", ""),
    "huge": ("warning", "over {max_pixels:,} pixels (max_pixels), slow to decode", "data.cache=disk does it once"),
    "box cut": ("warning", "the box reaches over the edge of the image, and is cut there", ""),
    "same twice": ("warning", "equal images of one class, in one part", "remove all but one"),
    "alike, other class": ("warning", "nearly equal images with different labels", "remove the wrong ones"),
    "alike in two parts": ("warning", "nearly equal images in training and in evaluation", TOGETHER),
    "missing class": ("warning", "a part of the data has none of its images", ""),
    "few images": ("warning", "the class has fewer than {min_per_class} (min_per_class)", ""),
    "imbalance": ("warning", "over {max_imbalance} times as many as another (max_imbalance)", "data.sampler=balanced"),
    "alike": ("info", "nearly equal images of one class, in one part", ""),
    "enlarged": ("info", "smaller than data.image_size={image_size}", ""),
    "turned by EXIF": ("info", "turned upright in reading", ""),
    "16 bits": ("info", "scaled to 8 bits in reading", ""),
    "CMYK": ("info", "converted to RGB in reading", ""),
    "palette": ("info", "converted to RGB in reading", ""),
    "transparency": ("info", "laid on white in reading", ""),
}
BY_CAUSE = ("unreadable", "unusable annotation")  # of these, each cause has a line of its own
SEVERITIES = {"error": "error", "warning": "warning", "info": "note"}  # in the file -> as printed
EXAMPLES = 3  # of each kind, and names of each example

Finding = tuple[str, list[str], str]
"""A kind; the names of the images or classes concerned; what was found there, in a few words."""


def check_data(config: DictConfig) -> int:
    """Check the data that `config.data` names, print the report, and return the exit code: 3 if there are errors.

    Args:
        config: As configs/check_data.yaml composes it.

    Raises:
        UserError: Wrong input.
    """
    for key in ("min_side", "max_pixels", "min_per_class", "max_imbalance"):
        if key != "min_side" or config.min_side is not None:
            require_number(key, config[key], least=0)
    for key in ("strict", "near_duplicates"):
        require_flag(key, config[key] or False)
    datamodule = build_datamodule(plain(config.data))
    datamodule.prepare_data()
    if config.json is not None:
        require_outside(Path(config.json), datamodule.root, key="json")
        require_writable(Path(config.json), key="json")
    listed, refusals = list_all(datamodule)
    if BOX[0] in listed:
        sizes = headers(listed, datamodule.images_of(listed), cache_dir=datamodule.cache_dir)
        listed = in_pixels(listed, sizes, datamodule.margin)
    problems = listed[~usable(listed)].reindex(columns=["path", "problem"])
    table, thumbnails = read_all(listed[usable(listed)].reset_index(drop=True), datamodule, refusals)
    counts = class_counts(table[table["usable"]], datamodule.task)
    height, width = datamodule.preprocessing.image_size
    # pictures that are meant to be small, such as digits, are read small
    min_side = min(16, min(height, width) / 2) if config.min_side is None else config.min_side
    found: list[Finding] = [("refused", [readable(str(datamodule.root))], str(error)) for error in refusals]
    found += [("unusable annotation", [name], problem) for name, problem in problems.to_numpy()]
    found += image_findings(table, (height, width), min_side, config.max_pixels, datamodule.margin > 0)
    found += duplicate_findings(table)
    if config.near_duplicates is not False:
        # comparing all pairs of 200,000 samples takes two minutes on two cores
        found += near_duplicate_findings(table, thumbnails, None if config.near_duplicates else 200_000)
    if not refusals:
        found += class_findings(counts, config.min_per_class, config.max_imbalance)
    found += group_findings(table)
    values = {**plain(config), "min_side": min_side, "image_size": width if width == height else f"[{height},{width}]"}
    kinds: list[dict[str, Any]] = [
        {"kind": kind, "severity": severity, "meaning": meaning.format(**values), "advice": advice,
         "number": len(items), "items": items}
        for kind, (severity, meaning, advice) in KINDS.items()
        if (items := [{"names": names, "detail": detail} for of_kind, names, detail in found if of_kind == kind])
    ]  # fmt: skip
    report = {
        "root": readable(str(datamodule.root)),
        "samples": len(table),
        "usable": int(table["usable"].sum()),
        **{word: sum(kind["number"] for kind in kinds if kind["severity"] == word) for word in SEVERITIES},
        "classes": counts.to_dict("index"),
        "found": kinds,
    }
    what = f"{counted(len(table), 'box' if BOX[0] in table else 'image')} in {counted(len(counts), 'class')}"
    numbers = [counted(report[word], shown) for word, shown in SEVERITIES.items() if report[word]]
    summary = f"{report['root']}: {what}, {', '.join(numbers) or 'nothing found'}"
    print(class_table(counts), *findings_lines(kinds), summary, sep="\n")
    if config.json is not None:
        with whole_file(Path(config.json), key="json") as scratch:
            scratch.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if refusals:
        raise refusals[0]
    return 3 if report["error"] or (config.strict and report["warning"]) else 0


def list_all(datamodule: ClassificationDataModule) -> tuple[pd.DataFrame, list[UserError]]:
    """The samples, or where they cannot be listed all images below the root; and why they cannot be.

    Raises:
        UserError: There is no image either.
    """
    refusals: list[UserError] = []
    for listing in (datamodule.read, datamodule.list_samples):
        try:
            table = listing()
            return table.assign(label=table["label"].astype("category")), refusals
        except UserError as error:
            refusals = [*refusals, error][:1]
    paths = [path for path in list_files(datamodule.root) if is_image(path)]
    if not paths:
        raise refusals[0]
    return list_paths(paths, pd.Categorical(["not known"] * len(paths))), refusals


def read_all(
    samples: pd.DataFrame, datamodule: ClassificationDataModule, refusals: list[UserError]
) -> tuple[pd.DataFrame, np.ndarray]:
    """Read every image, on all cores.

    Args:
        refusals: Why training refuses the samples. If it is empty, they are divided; why they cannot be is added.

    Returns:
        `samples` with the part of each sample that training would use as `split`, and more columns: `name` (the path,
        and the box), `usable`; `side_x`, `side_y` in pixels, of what lies in the image; of the image its number
        `image`, and `width`, `height`, `notes` and `digest` as in `Facts`. And thumbnails, uint8 (N, 16, 16).
    """
    boxes, images = boxes_of(samples), datamodule.images_of(samples)
    # what only the quick check of a training knows
    checked = check_images(samples, images, "quick", datamodule.cache_dir, datamodule.margin).get("problem")
    known, inside, thumbnails = all_facts(samples, images)
    rows = (known[["side_x", "side_y"]] > 0).all(axis=1).to_numpy()
    shown = "" if boxes is None else [f" {tuple(box)}" for box in boxes.tolist()]
    table = samples.join(known).assign(name=samples["path"] + shown, usable=rows, problem=checked)
    table = table if refusals and "split" in table else table.assign(split=np.nan)
    if rows.any() and not refusals:
        cut = {} if boxes is None else dict(zip(BOX, inside[rows].astype(np.int32).T, strict=True))
        taken = samples[rows].assign(**cut).reset_index(drop=True)
        try:
            parts = datamodule.divide(taken, facts=(known[rows].reset_index(drop=True), thumbnails[rows]))["split"]
            table["split"] = parts.set_axis(table.index[rows]).reindex(table.index)
        except UserError as error:
            refusals.append(error)
    return table, thumbnails


def image_findings(
    table: pd.DataFrame, image_size: tuple[int, int], min_side: float, max_pixels: float, margin: bool
) -> list[Finding]:
    """Findings on files, on sizes and on boxes.

    Args:
        image_size: Height and width, in pixels, that training reads.
        margin: The boxes have one, and so may leave the image.
    """
    images = table.drop_duplicates("image")
    notes = zip(images["path"], images["notes"], strict=True)
    found = [(kind, [path], detail) for path, of_image in notes for kind, detail in of_image.items()]
    table = table[table["width"] > 0]
    size = table["width"].astype("str") + "x" + table["height"].astype("str")
    sides = table["side_x"].astype("str") + "x" + table["side_y"].astype("str")

    def add(kind: str, rows: pd.Series, details: pd.Series, names: str = "name") -> None:
        found.extend((kind, [name], detail) for name, detail in zip(table.loc[rows, names], details[rows], strict=True))

    add("unusable annotation", table["usable"] & table["problem"].notna(), table["problem"])
    add("huge", ~table["image"].duplicated() & (table["width"] * table["height"] > max_pixels), size, "path")
    if BOX[0] in table:
        add("box outside", ~table["usable"], "image of " + size)
        leaves = (table["x2"] - table["x1"] != table["side_x"]) | (table["y2"] - table["y1"] != table["side_y"])
        add("box cut", table["usable"] & leaves & (not margin), "image of " + size)
    tiny = table["usable"] & (table[["side_x", "side_y"]].min(axis=1) < min_side)
    small = (table["side_x"] < image_size[1]) | (table["side_y"] < image_size[0])
    add("tiny", tiny, sides)
    add("enlarged", table["usable"] & small & ~tiny, sides)
    return found


def duplicate_findings(table: pd.DataFrame) -> list[Finding]:
    """Images of the same bytes, or of the same pixels where they are not files."""
    table = table[table["width"] > 0]
    digests = table.drop_duplicates("image")["digest"]
    found = []
    for _, copies in table[table["digest"].isin(digests[digests.duplicated()])].groupby("digest", sort=False):
        labels = [" + ".join(sorted(set(rows["label"]))) for _, rows in copies.groupby("image", sort=False)]
        found += _copies("same", "same twice", copies["path"].unique().tolist(), labels, copies["split"])
    return found


def near_duplicate_findings(table: pd.DataFrame, thumbnails: np.ndarray, most: int | None = None) -> list[Finding]:
    """Images, or the insides of boxes, that are nearly equal without being of equal files.

    Args:
        most: Of more samples than these, none are compared.
    """
    if most is not None and len(table) > most:
        log.info("no near duplicates are looked for among %d samples: near_duplicates=true takes minutes", len(table))
        return []
    found = []
    for rows in near_duplicates(table, thumbnails):
        copies = table.iloc[rows]
        found += _copies("alike", "alike", copies["name"].tolist(), copies["label"], copies["split"])
    return found


def _copies(word: str, inside: str, names: list[str], labels: Iterable[str], parts: pd.Series) -> list[Finding]:
    """Findings on one group of copies; `inside` is their kind if they are of one class and in one part."""
    distinct, taken = sorted(set(labels)), _parts(parts)
    found = [(f"{word}, other class", names, " or ".join(distinct))] if len(distinct) > 1 else []
    found += [(f"{word} in two parts", names, " and ".join(taken))] if len(taken) > 1 else []
    return found or [(inside, names, "")]


def _parts(parts: pd.Series) -> list[str]:
    return [part for part in SPLITS if (parts == part).any()]


def class_findings(counts: pd.DataFrame, min_per_class: float, max_imbalance: float) -> list[Finding]:
    """Classes that are rare, or missing in a part."""
    found: list[Finding] = []
    for part in counts.columns.drop("all"):
        kind = "untrained class" if part == "train" else "missing class"
        found += [(kind, [name], f"none in {part}") for name in counts.index[counts[part] == 0]]
    every = counts["all"][counts["all"] > 0]
    found += [("few images", [name], f"{every[name]} in all") for name in every.index[every < min_per_class]]
    if len(every) < 2:
        found.append(("one class", every.index.tolist(), ""))
    elif every.max() > max_imbalance * every.min():
        names = [str(every.idxmax()), str(every.idxmin())]
        found.append(("imbalance", names, f"{every.max()} and {every.min()}"))
    return found


def group_findings(table: pd.DataFrame) -> list[Finding]:
    """Groups, or boxes of an image, that a prescribed split divides."""
    table = table[table["split"].notna()]
    divided = table[table["split"].groupby(group_ids(table)).transform("nunique") > 1]
    groups = [rows for _, rows in divided.groupby(group_ids(divided))]
    return [("divided group", rows["name"].tolist(), " and ".join(_parts(rows["split"]))) for rows in groups]


def cause_of(problem: str) -> str:
    """A problem without its place, and without the names and numbers that another of its kind would not have."""
    text = re.sub(r"^(?:line \d+|\w+\[\d+\]) of .*?: ", "", problem)
    text = re.sub(r"'[^']*'|\"[^\"]*\"|\([^()]*\)|\[[^\[\]]*\]|\S*[\d/\\]\S*", "...", text)
    return re.sub(r"\.\.\.(?:[ ,]*\.\.\.)+", "...", text)


def findings_lines(found: list[dict[str, Any]]) -> list[str]:
    """A table of each kind of finding, the worst first, with its number, what helps, and its first examples."""
    lines = [f"{'severity':8} {'number':>8}  finding"] if found else []
    wrapper = TextWrapper(subsequent_indent=" " * 21, break_long_words=False, break_on_hyphens=False)  # no name is cut
    wrapper.width = max(60, shutil.get_terminal_size().columns)
    for kind in found:
        causes: dict[str, list[dict[str, Any]]] = {}
        for item in kind["items"]:
            causes.setdefault(cause_of(item["detail"]) if kind["kind"] in BY_CAUSE else kind["meaning"], []).append(
                item
            )
        for cause, items in sorted(causes.items(), key=lambda pair: -len(pair[1])):
            advice = f"; {kind['advice']}" if kind["advice"] else ""
            head = f"{SEVERITIES[kind['severity']]:8} {len(items):8,}  {kind['kind']}: {cause}{advice}"
            lines.append(wrapper.fill(head))
            for item in items[:EXAMPLES]:
                more = len(item["names"]) - EXAMPLES
                names = " = ".join(item["names"][:EXAMPLES]) + (f" and {more} more" if more > 0 else "")
                detail = item["detail"].removesuffix(cause).rstrip(": ")  # which says it already
                lines.append(wrapper.fill(f"{'':19}{names}{': ' * bool(detail)}{detail}"))
    return lines
