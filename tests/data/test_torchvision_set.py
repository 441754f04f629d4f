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
# what torchvision calls the classes 0, 1, 2 of the layouts
FIRST = {
    "CLEVRClassification": ("9", "10", "11"),
    **dict.fromkeys(("SVHN", "EMNIST"), ("0", "1", "2")),
    "FashionMNIST": ("T-shirt/top", "Trouser", "Pullover"),
    "OxfordIIITPet": ("Blue", "Green", "Red"),
    "INaturalist": tuple(f"{number:05d}_a_b_c_d_e_f_{name}" for number, name in enumerate(CLASSES)),
    "Flowers102": (),  # older versions number them
}
PARTS = {
    **dict.fromkeys(("DTD", "Flowers102"), frozenset({"train", "val", "test"})),
    **dict.fromkeys(("Caltech101", "EuroSAT", "INaturalist", "LFWPeople"), frozenset({""})),
    "CLEVRClassification": {"train", "val"},  # the test part has no labels
}
MAPPED = ("CIFAR10", "EMNIST", "FashionMNIST", "STL10", "SVHN")
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
    first = FIRST.get(name, CLASSES)
    assert tuple(table["label"].cat.categories)[: len(first)] == first
    assert table["label"].cat.codes.tolist() == shown(module, table)
    assert (set(table["split"]) if "split" in table else {""}) == PARTS.get(name, {"train", "test"})
    if name in MAPPED:
        assert table["path"][1] == "train/00001"
        assert len(pickle.dumps(module)) < 5000
    assert ("item" in table) == (name in MAPPED + ASKED)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("FashionMNIST", {"train": False}),
        ("DTD", {"split": "val"}),
        ("OxfordIIITPet", {"target_types": "binary-category"}),
    ],
)
def test_options(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    LAYOUTS[name](tmp_path)
    module, table = read(tmp_path, name, options=options)
    if name == "OxfordIIITPet":  # the classes are those of the option
        assert list(table["label"].cat.categories) == ["Cat", "Dog"]
        assert table["label"].cat.codes.tolist() == [label // 2 for label in shown(module, table)]
    else:  # a part that is chosen is divided anew
        assert len(table) == 6
        assert "split" not in table


def test_a_data_set_that_has_to_be_asked(tmp_path: Path) -> None:
    module, table = read(tmp_path, "FakeData", options={"size": 9, "image_size": [3, 8, 6], "num_classes": 4})
    dataset = datasets.FakeData(9, (3, 8, 6), 4)
    assert table["label"].tolist() == [str(dataset[row][1]) for row in range(9)]
    for reader in (module, pickle.loads(pickle.dumps(module))):
        (picture,) = reader.read_images(np.array([5]))
        assert np.array_equal(np.asarray(picture), np.asarray(dataset[5][0]))


class Parts(datasets.VisionDataset):  # type: ignore[misc]
    """A data set whose tables say something else than its items, and whose test part has no labels."""

    def __init__(self, root: str, split: str = "train") -> None:
        if split not in ("train", "valid", "test"):
            raise ValueError(f"Unknown value '{split}' for argument split. Valid values are ...")
        self.split = split
        self.targets = [0] * len(self)
        self.data = np.zeros((len(self), 4, 4), np.uint8)

    def __len__(self) -> int:
        return {"train": 6, "valid": 4, "test": 2}[self.split]

    def __getitem__(self, row: int) -> tuple[Image.Image, int | None]:
        return Image.new("L", (4, 4), 10 * row + len(self)), None if self.split == "test" else row % 2


def test_tables_that_disagree_with_the_items(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(datasets, "Parts", Parts, raising=False)
    module, table = read(tmp_path, "Parts")
    assert table["label"].tolist() == ["0", "1"] * 5
    assert table["split"].tolist() == ["train"] * 6 + ["val"] * 4
    assert [np.asarray(picture)[0, 0] for picture in module.read_images(np.array([5, 6, 9]))] == [56, 4, 34]
    assert "no labels for test" in caplog.text


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


def test_given_classes(tmp_path: Path) -> None:
    LAYOUTS["EuroSAT"](tmp_path)
    _, table = read(tmp_path, "EuroSAT", classes=["red", "green", "blue", "white"])
    assert table["label"].cat.codes[:9:8].tolist() == [2, 1]
    with pytest.raises(UserError, match="'green'"):
        read(tmp_path, "EuroSAT", classes=["blue"])


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


@pytest.mark.parametrize("name", sorted({*LAYOUTS} - {"EMNIST"}))
def test_a_missing_data_set(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=rf"cannot open {name}.* {tmp_path} .*data\.root") as error:
        read(tmp_path, name)
    assert "data.download=true" in str(error.value)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.EuroSAT, "download", lambda self: LAYOUTS["EuroSAT"](tmp_path))
    TorchvisionDataModule(tmp_path, name="EuroSAT").prepare_data()
    assert list(tmp_path.iterdir()) == []
    TorchvisionDataModule(tmp_path, name="EuroSAT", download=True).prepare_data()
    assert len(read(tmp_path, "EuroSAT")[1]) == 24


@pytest.mark.parametrize("writable", [True, False])
def test_what_is_there_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writable: bool) -> None:
    monkeypatch.setattr("os.access", lambda *_: writable)
    LAYOUTS["EuroSAT"](tmp_path)
    before = sorted(tmp_path.rglob("*"))
    opened: list[bool] = []
    init = datasets.EuroSAT.__init__

    def counted(self: Any, *args: Any, download: bool = False, **options: Any) -> None:
        opened.append(download)
        init(self, *args, download=download, **options)

    monkeypatch.setattr(datasets.EuroSAT, "__init__", counted)
    module = TorchvisionDataModule(tmp_path, name="EuroSAT", download=True)
    module.prepare_data()
    assert len(module.read()) == 24
    module.prepare_data()
    assert opened == [False]
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / ".lock"] if writable else before)
    assert len(module.read()) == 24


def test_a_download_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(datasets.EuroSAT, "download", fail)
    (tmp_path / "file").touch()
    for root, name, message in (
        (tmp_path, "EuroSAT", r"cannot download EuroSAT.*no route to host.*data\.root"),
        (tmp_path / "file" / "root", "EuroSAT", r"data\.root=\.\.\."),
        (tmp_path, "FER2013", r"data\.download=false"),
    ):
        with pytest.raises(UserError, match=message):
            TorchvisionDataModule(root, name=name, download=True).prepare_data()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("CIFAR1O", {}, r"data\.name=CIFAR1O .*CIFAR10"),
        ("fashionmnist", {}, "FashionMNIST"),
        ("utils", {}, r"data\.name=utils"),
        ("EMNIST", {}, r"'split'.*data\.options="),
        ("DTD", {"partion": 2}, r"'partion'.*data\.options="),
        ("DTD", {"split": "dev"}, r"'dev'.*data\.options="),
        ("OxfordIIITPet", {"target_types": "breed"}, r"'breed'.*data\.options="),
        ("OxfordIIITPet", {"target_types": "segmentation"}, r"Image .*data\.options="),
    ],
)
def test_names_and_options_that_are_refused(tmp_path: Path, name: str, options: dict[str, Any], message: str) -> None:
    if name == "OxfordIIITPet":
        LAYOUTS[name](tmp_path)
        for path in (tmp_path / "oxford-iiit-pet/images").iterdir():
            target = tmp_path / "oxford-iiit-pet/annotations/trimaps" / f"{path.stem}.png"
            target.parent.mkdir(exist_ok=True)
            Image.new("L", (4, 4)).save(target)
    with pytest.raises(UserError, match=message):
        read(tmp_path, name, options=options)
