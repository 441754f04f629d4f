"""What a data check found, on the terminal and as JSON."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from classifier.data.samples import Samples
from classifier.files import whole_file
from classifier.tools.check.class_remarks import class_counts
from classifier.tools.check.reading import Reading
from classifier.tools.check.remarks import SEVERITIES, Kind, Remark

STYLES = {"error": "bold red", "warning": "yellow", "info": "cyan"}
EXAMPLES = 3  # of each kind
NAMES = 3  # of each example
CLASSES = 20  # more than these are shown by the smallest and the largest alone


def print_report(reading: Reading, parts: np.ndarray, remarks: list[Remark]) -> None:
    """Print the classes, then each kind of remark, the worst first, with its number and its first examples."""
    console = Console()
    samples, counts = reading.samples, class_counts(reading, parts)
    console.print(_class_table(samples.classes, counts))
    if remarks:
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        table.add_column("severity", no_wrap=True)
        table.add_column("number", justify="right", no_wrap=True)
        table.add_column("what, and the first of them", overflow="fold")
        for kind, found in _by_kind(remarks).items():
            head = Text.assemble((kind.title, "bold"), (f": {kind.meaning}", "dim"))
            examples = [_example(remark) for remark in found[:EXAMPLES]]
            style = STYLES[kind.severity]
            table.add_row(Text(kind.severity, style), f"{len(found):,}", Text("\n").join([head, *examples]))
        console.print(table)
    console.print(Text(f"{_printable(str(samples.root))}: {_summary(samples, remarks)}"), soft_wrap=True)


def write_report(path: Path, reading: Reading, parts: np.ndarray, remarks: list[Remark]) -> None:
    """Write everything that was found, in full.

    Raises:
        UserError: The file cannot be written.
    """
    samples, counts = reading.samples, class_counts(reading, parts)
    content = {
        "root": str(samples.root),
        "samples": len(samples),
        "usable": len(reading.usable),
        **_numbers(remarks),
        "classes": {
            name: {part: int(numbers[label]) for part, numbers in counts.items()}
            for label, name in enumerate(samples.classes)
        },
        "found": [
            {
                "kind": kind.title,
                "severity": kind.severity,
                "meaning": kind.meaning,
                "number": len(found),
                "items": [{"names": list(remark.names), "detail": remark.detail} for remark in found],
            }
            for kind, found in _by_kind(remarks).items()
        ],
    }
    with whole_file(path, key="json") as scratch:
        scratch.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _by_kind(remarks: Iterable[Remark]) -> dict[Kind, list[Remark]]:
    """In the order of `Kind`, which is by severity."""
    found: dict[Kind, list[Remark]] = {kind: [] for kind in Kind}
    for remark in remarks:
        found[remark.kind].append(remark)
    return {kind: items for kind, items in found.items() if items}


def _numbers(remarks: Iterable[Remark]) -> dict[str, int]:
    severities = [remark.kind.severity for remark in remarks]
    return {severity: severities.count(severity) for severity in SEVERITIES}


def _summary(samples: Samples, remarks: list[Remark]) -> str:
    looked_at = f"{len(samples):,} {'images' if samples.boxes is None else 'boxes'} in {len(samples.classes)} classes"
    numbers = {severity: number for severity, number in _numbers(remarks).items() if number}
    told = [f"{number:,} {severity}{'s' * (number > 1)}" for severity, number in numbers.items()]
    return f"{looked_at}, {', '.join(told) or 'nothing to remark'}"


def _example(remark: Remark) -> Text:
    names = " = ".join(_printable(name) for name in remark.names[:NAMES])
    more = f" and {len(remark.names) - NAMES} more" if len(remark.names) > NAMES else ""
    return Text(names + more + (f": {_printable(remark.detail)}" if remark.detail else ""))


def _printable(name: str) -> str:
    # a file name on Linux need not be valid UTF-8, and then cannot be printed
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _class_table(classes: tuple[str, ...], counts: dict[str, np.ndarray]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("class", overflow="fold")
    for part in counts:
        table.add_column(part, justify="right", no_wrap=True)

    def add(label: int) -> None:
        table.add_row(Text(_printable(classes[label])), *(f"{numbers[label]:,}" for numbers in counts.values()))

    if len(classes) <= CLASSES:
        for label in range(len(classes)):
            add(label)
        return table
    order = np.argsort(-counts["all"], kind="stable").tolist()
    for label in order[: CLASSES // 2]:
        add(label)
    table.add_row(f"... {len(classes) - CLASSES // 2 * 2} more", *("" for _ in counts))
    for label in order[-(CLASSES // 2) :]:
        add(label)
    return table
