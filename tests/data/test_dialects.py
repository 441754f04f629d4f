"""Each row of the tables of dialects in docs/data.md reads what it says."""

import shlex
from pathlib import Path

import numpy as np
import pytest

from classifier.data import build_datamodule
from classifier.runs import plain
from tests import generate
from tests.data.dialects import MAKERS
from tests.test_configs import compose
from tests.tools.parts import files
from tests.verbs.command import REPOSITORY

SECTION = (REPOSITORY / "docs" / "data.md").read_text().partition("\n## Dialects\n")[2].partition("\n## ")[0]
# a row's name is its first cell, its overrides are the last
CELLS = [line.strip("| ").split(" | ") for line in SECTION.splitlines() if "`data=" in line]
ROWS = {cells[0].strip(): cells[-1].strip("` ") for cells in CELLS}


def test_each_row_has_a_maker() -> None:
    assert len(ROWS) > 0
    assert ROWS.keys() == MAKERS.keys()


@pytest.mark.parametrize("name", ROWS)
def test_dialect(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = MAKERS[name](tmp_path / "my_data")
    before = files(tmp_path / "my_data")
    monkeypatch.chdir(tmp_path)
    config = compose("experiment=folder_cnn", *shlex.split(ROWS[name]), "data.num_workers=0")
    datamodule = build_datamodule(plain(config.data))
    datamodule.setup()
    labels = datamodule.samples["label"].astype("str").tolist()
    assert sorted(labels) == sorted(expected)
    for row, label in enumerate(labels):
        if label in generate.COLORS:  # boxes lie where they should
            pixels = datamodule.preprocessing(datamodule.image(row), datamodule.box(row)).float().mean((1, 2)).numpy()
            distances = {color: np.abs(pixels - value).sum() for color, value in generate.COLORS.items()}
            assert min(distances, key=lambda color: distances[color]) == label, pixels
    assert files(tmp_path / "my_data") == before
