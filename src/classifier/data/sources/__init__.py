"""Where samples come from: each source lists what is on disk as one Samples table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from classifier.data.samples import Problem, Samples


class Source(Protocol):
    """Where samples come from. To add one, write these two methods and a data module that passes it on."""

    root: Path

    def prepare(self) -> None:
        """Make or fetch what is missing; called once a machine, before `read`."""

    def read(self, classes: Sequence[str] | None = None) -> tuple[Samples, list[Problem]]:
        """All samples, with labels for the given class names or, without them, for the data's own."""
