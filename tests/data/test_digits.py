import multiprocessing
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from classifier.data import DigitsDataModule


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("digits") / "data" / "digits"
    DigitsDataModule(root).prepare_data()
    return root


def test_all_digits_are_written(digits: Path) -> None:
    table = DigitsDataModule(digits).read()
    assert len(table) == len(list(digits.rglob("*.png"))) == 1797
    assert list(table["label"].cat.categories) == list("0123456789")
    assert np.bincount(table["label"].cat.codes).tolist() == np.bincount(load_digits().target).tolist()

    wanted = load_digits()
    for number in (0, 1, 899, 1796):
        with Image.open(digits / str(wanted.target[number]) / f"{number:04d}.png") as image:
            assert (image.mode, image.size) == ("L", (8, 8))
            assert np.abs(np.asarray(image) / 255 * 16 - wanted.images[number]).max() < 0.04


def test_two_processes_at_once(digits: Path, tmp_path: Path) -> None:
    root = tmp_path / "data" / "digits"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=DigitsDataModule(root).prepare_data) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0]
    assert not [*root.parent.glob("*.part")]
    assert Counter(path.parent.name for path in root.rglob("*.png")) == Counter(
        path.parent.name for path in digits.rglob("*.png")
    )
