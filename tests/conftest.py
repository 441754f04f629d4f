import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests import generate
from tests.verbs.command import STARTED

# threads of several processes fighting for few cores are slower than one each, and add in another order
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """root/<class>/*.jpg, 3 classes of 20; not to be changed."""
    return generate.image_folder(tmp_path_factory.mktemp("folder") / "photos")


@pytest.fixture(scope="session")
def annotated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """root/{images,annotations}, 3 classes of 20; not to be changed."""
    return generate.annotated(tmp_path_factory.mktemp("annotated") / "photos")


@pytest.fixture(scope="session")
def dogs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The official layout of Stanford Dogs, 3 breeds of 8 + 3; not to be changed."""
    return generate.stanford_dogs(tmp_path_factory.mktemp("dogs") / "stanford_dogs")


@pytest.fixture(autouse=True)
def _nothing_goes_on_running() -> Iterator[None]:
    yield
    for process in STARTED:
        process.kill()
    STARTED.clear()
