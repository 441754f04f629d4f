"""A data set, read to its end -> a table of what is wrong with it, and an exit code."""

from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from classifier.config import plain
from classifier.data import ClassificationDataModule, build_datamodule
from classifier.data.samples import SPLITS, UNASSIGNED
from classifier.errors import UserError
from classifier.files import require_outside
from classifier.tools.check.class_remarks import class_remarks
from classifier.tools.check.duplicate_remarks import duplicate_remarks, near_duplicate_remarks
from classifier.tools.check.image_remarks import Limits, image_remarks
from classifier.tools.check.reading import Reading, read_all
from classifier.tools.check.remarks import Kind, Remark
from classifier.tools.check.report import print_report, write_report
from classifier.tools.keys import flag

FOUND_ERRORS = 3  # exit code
MOST_COMPARED = 200_000  # samples, all pairs of which take two minutes on two cores


def check_data(config: DictConfig) -> int:
    """Check the data that `config.data` names, print the report, and return the exit code.

    Args:
        config: As configs/check_data.yaml composes it.

    Raises:
        UserError: Wrong input.
    """
    report = None if config.json is None else Path(config.json)
    near_duplicates = None if config.near_duplicates is None else flag(config, "near_duplicates")
    datamodule = build_datamodule(plain(config.data))
    limits = Limits.of(config, datamodule.preprocessing.image_size)
    datamodule.prepare_data()
    if report is not None:
        require_outside(report, datamodule.source.root, key="json")
        if report.is_dir():
            raise UserError(f"json={report} is a folder: name a file")
    samples, problems = datamodule.read()
    reading = read_all(samples)
    parts = parts_of(reading, datamodule)
    remarks = [Remark(Kind.ANNOTATION, (problem.path,), problem.reason) for problem in problems]
    # a margin around the boxes leaves the image on purpose
    remarks += image_remarks(reading, limits, margin=bool(getattr(datamodule.source, "margin", 0)))
    remarks += duplicate_remarks(reading, parts)
    if near_duplicates is not False:
        remarks += near_duplicate_remarks(reading, parts, most=MOST_COMPARED if near_duplicates is None else None)
    remarks += class_remarks(reading, parts, limits)
    print_report(reading, parts, remarks)
    if report is not None:
        write_report(report, reading, parts, remarks)
    bad = ("error", "warning") if flag(config, "strict") else ("error",)
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
