"""A data set, read to its end -> a table of what is wrong with it, and an exit code."""

from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from classifier.config import plain
from classifier.data import ClassificationDataModule, build_datamodule
from classifier.data.samples import SPLITS, UNASSIGNED
from classifier.errors import UserError
from classifier.tools.check.class_remarks import class_remarks
from classifier.tools.check.duplicate_remarks import duplicate_remarks, near_duplicate_remarks
from classifier.tools.check.image_remarks import Limits, image_remarks
from classifier.tools.check.reading import Reading, read_all
from classifier.tools.check.remarks import Kind, Remark
from classifier.tools.check.report import print_report, write_report

FOUND_ERRORS = 3  # exit code


def check_data(config: DictConfig) -> int:
    """Check the data that `config.data` names, print the report, and return the exit code.

    Args:
        config: As configs/check_data.yaml composes it.

    Raises:
        UserError: Wrong input.
    """
    settings = plain(config)
    report = None if settings["json"] is None else Path(settings["json"])
    if report is not None and (report.is_dir() or not report.parent.is_dir()):
        raise UserError(f"json={report} cannot be written: name a file in a folder that exists")
    datamodule = build_datamodule(settings["data"])
    limits = Limits.of(settings, datamodule.preprocessing.image_size)
    datamodule.prepare_data()
    samples, problems = datamodule.read()
    reading = read_all(samples)
    parts = parts_of(reading, datamodule)
    remarks = [Remark(Kind.ANNOTATION, (problem.path,), problem.reason) for problem in problems]
    # a margin around the boxes leaves the image on purpose
    remarks += image_remarks(reading, limits, margin=bool(getattr(datamodule.source, "margin", 0)))
    remarks += duplicate_remarks(reading, parts)
    if settings["near_duplicates"]:
        remarks += near_duplicate_remarks(reading, parts)
    remarks += class_remarks(reading, parts, limits)
    print_report(reading, parts, remarks)
    if report is not None:
        write_report(report, reading, parts, remarks)
    bad = ("error", "warning") if settings["strict"] else ("error",)
    return FOUND_ERRORS if any(remark.kind.severity in bad for remark in remarks) else 0


def parts_of(reading: Reading, datamodule: ClassificationDataModule) -> np.ndarray:
    """int8 (N,): the position in `SPLITS` that training would give each sample, or `UNASSIGNED`."""
    usable = reading.usable
    parts = np.full(len(reading.samples), UNASSIGNED, dtype=np.int8)
    if len(usable) == 0:
        return parts
    boxes = None if reading.samples.boxes is None else reading.boxes[usable].astype(np.int32)
    for name, rows in datamodule.divide(reading.samples.select(usable, boxes)).items():
        parts[usable[rows]] = SPLITS.index(name)
    return parts
