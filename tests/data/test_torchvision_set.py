import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torchvision import datasets

from classifier.data import TorchvisionDataModule
from classifier.data.transforms import Preprocessing
from classifier.errors import UserError
from tests import generate
from tests.data.torchvision_layouts import GREYS, LAYOUTS
from tests.generate import CLASSES, COLORS

OPTIONS = {"EMNIST": {"split": "digits"}}
NUMBERED = ("SVHN", "EMNIST", "FashionMNIST")  # the last has no names, the others more than the layouts have classes
PARTS = {"DTD": {"train", "val", "test"}, "EuroSAT": {""}}
MAPPED = ("CIFAR10", "EMNIST", "FashionMNIST", "SVHN")
ASKED = ("OxfordIIITPet",)  # torchvision 0.29 tells neither its files nor its pixels


@pytest.fixture(autouse=True)
def any_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checksums in torchvision are those of the real files."""
    monkeypatch.setattr(datasets.utils, "check_md5", lambda *_, **__: True)


def read(root: Path, name: str, **options: Any) -> tuple[TorchvisionDataModule, pd.DataFrame]:
    options = {"options": OPTIONS.get(name), "cache_dir": str(root / "cache"), **options}
    module = TorchvisionDataModule(root, name=name, **options)
    return module, module.read()


def shown(module: TorchvisionDataModule, table: pd.DataFrame) -> list[int]:
    """Which of the three classes is to be seen in each image."""
    if "item" in table:
        pictures = list(module.read_images(table["item"].to_numpy()))
    else:
        pictures = [module.root / path for path in table["path"]]
    found = []
    for picture in pictures:
        image = Preprocessing((8, 8))(picture).float().mean((1, 2))
        is_grey = float(image.std()) < 3
        shades = torch.tensor([[value] * 3 for value in GREYS] if is_grey else [COLORS[name] for name in CLASSES])
        found.append(int((shades - image).abs().sum(1).argmin()))
    return found


@pytest.mark.parametrize("name", LAYOUTS)
def test_data_sets(tmp_path: Path, name: str) -> None:
    LAYOUTS[name](tmp_path)
    module, table = read(tmp_path, name)
    names = [name.lower() for name in table["label"].cat.categories]
    assert names == (["0", "1", "2"] if name in NUMBERED else [*CLASSES])
    assert table["label"].cat.codes.tolist() == shown(module, table)
    assert (set(table["split"]) if "split" in table else {""}) == PARTS.get(name, {"train", "test"})
    if name in MAPPED:
        assert table["path"][1] == "train/00001"
        assert len(pickle.dumps(module)) < 5000
    assert ("item" in table) == (name in MAPPED + ASKED)


@pytest.mark.parametrize(("name", "options"), [("FashionMNIST", {"train": False}), ("DTD", {"split": "val"})])
def test_a_part_that_is_chosen_is_divided_anew(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    LAYOUTS[name](tmp_path)
    _, table = read(tmp_path, name, options=options)
    assert len(table) == 6
    assert "split" not in table


def test_names_of_other_classes_are_not_taken(tmp_path: Path) -> None:
    LAYOUTS["OxfordIIITPet"](tmp_path)
    _, table = read(tmp_path, "OxfordIIITPet", options={"target_types": "binary-category"})
    assert list(table["label"].cat.categories) == ["0", "1"]


def test_a_data_set_that_has_to_be_asked(tmp_path: Path) -> None:
    module, table = read(tmp_path, "FakeData", options={"size": 9, "image_size": [3, 8, 6], "num_classes": 4})
    dataset = datasets.FakeData(9, (3, 8, 6), 4)
    assert table["label"].tolist() == [str(dataset[row][1]) for row in range(9)]
    for reader in (module, pickle.loads(pickle.dumps(module))):
        (picture,) = reader.read_images(np.array([5]))
        assert np.array_equal(np.asarray(picture), np.asarray(dataset[5][0]))


class Parts(datasets.VisionDataset):  # type: ignore[misc]
    """A data set whose array says something else than its items."""

    def __init__(self, root: str, split: str = "train") -> None:
        if split not in ("train", "valid"):
            raise ValueError(f"Unknown value '{split}' for argument split. Valid values are ...")
        self.split = split
        self.data = np.zeros((len(self), 4, 4), np.uint8)

    def __len__(self) -> int:
        return {"train": 6, "valid": 4}[self.split]

    def __getitem__(self, row: int) -> tuple[Image.Image, int]:
        return Image.new("L", (4, 4), 10 * row + len(self)), row % 2


def test_an_array_that_disagrees_with_the_items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "Parts", Parts, raising=False)
    module, table = read(tmp_path, "Parts")
    assert table["label"].tolist() == ["0", "1"] * 5
    assert table["split"].tolist() == ["train"] * 6 + ["val"] * 4
    assert [np.asarray(picture)[0, 0] for picture in module.read_images(np.array([5, 6, 9]))] == [56, 4, 34]


class Elsewhere(datasets.ImageFolder):  # type: ignore[misc]
    """Files that are not below the root, listed against the order of their names."""

    def __init__(self, root: str) -> None:
        super().__init__(str(Path(root).parent / "elsewhere"))
        self.samples.reverse()
        self.targets.reverse()


def test_files_outside_of_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate.image_folder(tmp_path / "elsewhere", per_class=2)
    monkeypatch.setattr(datasets, "Elsewhere", Elsewhere, raising=False)
    module, table = read(tmp_path / "root", "Elsewhere")
    assert table["label"].cat.codes.tolist() == [2, 2, 1, 1, 0, 0] == shown(module, table)


@pytest.mark.parametrize(
    ("name", "file"), [("EuroSAT", "eurosat/2750/red/2.jpg"), ("OxfordIIITPet", "oxford-iiit-pet/images/green_1.jpg")]
)
def test_a_damaged_picture_is_a_problem(tmp_path: Path, name: str, file: str) -> None:
    LAYOUTS[name](tmp_path)
    (tmp_path / file).write_bytes(b"")
    module, _ = read(tmp_path, name, on_error="skip")
    module.setup()
    assert module.skipped["path"].tolist() == [file if name == "EuroSAT" else "train/00001"]
    assert len(module.samples) == 23


def test_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = TorchvisionDataModule(tmp_path, name="EuroSAT")
    module.prepare_data()
    with pytest.raises(UserError, match=rf"EuroSAT .*data\.root={tmp_path} .*data\.download=true"):
        module.read()
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(datasets.EuroSAT, "download", lambda self: LAYOUTS["EuroSAT"](tmp_path))
    TorchvisionDataModule(tmp_path, name="EuroSAT", download=True).prepare_data()
    assert len(read(tmp_path, "EuroSAT")[1]) == 24


@pytest.mark.parametrize("writable", [True, False])
def test_what_is_there_is_not_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writable: bool) -> None:
    monkeypatch.setattr("os.access", lambda *_: writable)
    monkeypatch.setattr(datasets.EuroSAT, "download", lambda self: pytest.fail("a download"))
    LAYOUTS["EuroSAT"](tmp_path)
    before = {*tmp_path.rglob("*")}
    module = TorchvisionDataModule(tmp_path, name="EuroSAT", download=True)
    module.prepare_data()
    assert len(module.read()) == 24
    assert {*tmp_path.rglob("*")} - before == ({tmp_path / ".lock"} if writable else set())


def test_a_download_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(datasets.EuroSAT, "download", fail)
    (tmp_path / "file").touch()
    for root, message in ((tmp_path, "EuroSAT .*no route to host"), (tmp_path / "file" / "root", r"data\.root=\.\.\.")):
        with pytest.raises(UserError, match=message):
            TorchvisionDataModule(root, name="EuroSAT", download=True).prepare_data()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("CIFAR1O", {}, r"data\.name=CIFAR1O .*CIFAR10"),
        ("fashionmnist", {}, "FashionMNIST"),
        ("utils", {}, r"data\.name=utils"),
        ("EMNIST", {}, r"'split'.*data\.options="),
        ("DTD", {"partion": 2}, r"'partion'.*data\.options="),
        ("DTD", {"split": "dev"}, r"'dev'.*data\.options="),
        ("Kinetics", {}, r"data\.options="),
    ],
)
def test_names_and_options_that_are_refused(tmp_path: Path, name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, name, options=options)


def test_items_that_are_no_pictures_with_a_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for item in ((Image.new("L", (4, 4)), "cat"), (Image.new("L", (4, 4)), None), (np.zeros(4), 1), (1, 2, 3), 1):
        monkeypatch.setattr(datasets.FakeData, "__getitem__", lambda self, row, item=item: item)
        with pytest.raises(UserError, match=r"data\.name=FakeData .*data\.options="):
            read(tmp_path, "FakeData", options={"size": 2})
