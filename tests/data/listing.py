"""What a data module lists, as plain values."""

from pathlib import Path

import numpy as np

from classifier.data import ClassificationDataModule
from classifier.data.samples import BOX, usable


def touch(root: Path, *names: str) -> Path:
    """Empty files: listing looks at names alone."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def listed(module: ClassificationDataModule, *columns: str) -> list[tuple[object, ...]]:
    """Path, label, box of whole pixels where there are boxes, and further columns of the usable rows."""
    table = module.read()
    boxes = BOX if BOX[0] in table else []
    if boxes:
        table = table.assign(**{side: (np.floor if side in "x1 y1" else np.ceil)(table[side]) for side in BOX})
    chosen = table[usable(table)][["path", "label", *boxes, *columns]].astype(object)
    rows = chosen.where(chosen.notna(), None).itertuples(index=False)
    return [(row[0], row[1], tuple(row[2:6]), *row[6:]) if boxes else tuple(row) for row in rows]


def problems(module: ClassificationDataModule) -> dict[str, str]:
    """Path -> why a row cannot be used."""
    table = module.read()
    bad = table[~usable(table)]
    return dict(zip(bad["path"], bad.get("problem", []), strict=True))
