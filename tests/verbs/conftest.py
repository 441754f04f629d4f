from pathlib import Path

import pytest

from tests import generate
from tests.verbs.command import QUICK, runs, succeed

TRAINED = ("experiment=folder_cnn", "model=simple_cnn", *QUICK, "data.root=photos", "data.test_fraction=0.23",
           "trainer.max_epochs=4")  # fmt: skip


@pytest.fixture(scope="session")
def workplace(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos/ (40 to train, 6 to validate, 15 to test) and logs/ of the run that TRAINED makes of it.

    Neither is to be changed; what a test adds has a name of its own.
    """
    cwd = tmp_path_factory.mktemp("workplace")
    generate.copy(folder, cwd / "photos")
    generate.save(generate.picture("red", seed=7), cwd / "photos" / "red" / "extra.jpg")
    succeed("train", *TRAINED, cwd=cwd)
    return cwd


@pytest.fixture(scope="session")
def trained(workplace: Path) -> Path:
    """The run directory of `workplace`."""
    (run_dir,) = runs(workplace / "logs")
    return run_dir
