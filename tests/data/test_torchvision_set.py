import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from classifier.data.arrays import ArrayStore
from classifier.data.modules import TorchvisionDataModule
from classifier.data.samples import SPLITS, Samples
from classifier.data.torchvision_set import NAMES, DatasetStore, TorchvisionSource
from classifier.data.transforms import Preprocessing
from classifier.errors import UserError
from tests import generate
from tests.data.torchvision_layouts import GREYS, LAYOUTS
from tests.generate import CLASSES, COLORS

OPTIONS = {"EMNIST": {"split": "digits"}}
TITLED = ("Blue", "Green", "Red")
# what torchvision calls the classes 0, 1, 2 of the layouts
FIRST = {
    "Flowers102": (),  # older versions number them
    "CLEVRClassification": ("9", "10", "11"),
    **dict.fromkeys(("FER2013", "GTSRB", "SVHN", "USPS", "EMNIST"), ("0", "1", "2")),
    "FashionMNIST": ("T-shirt/top", "Trouser", "Pullover"),
    "QMNIST": ("0 - zero", "1 - one", "2 - two"),
    "OxfordIIITPet": TITLED,
    "INaturalist": tuple(f"{number:05d}_a_b_c_d_e_f_{name}" for number, name in enumerate(CLASSES)),
    "Omniglot": tuple(f"letters/{name}" for name in CLASSES),
    "RenderedSST2": ("negative", "positive"),
}
THREE_PARTS = ("DTD", "Flowers102", "RenderedSST2")
NO_PARTS = ("Caltech101", "Caltech256", "EuroSAT", "FER2013", "INaturalist", "LFWPeople", "Omniglot")
TRAIN_AND_VAL = ("CLEVRClassification",)
IN_MEMORY = ("CIFAR10", "EMNIST", "FER2013", "FashionMNIST", "QMNIST", "STL10", "SVHN", "USPS")


@pytest.fixture(autouse=True)
def any_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checksums in torchvision are those of the real files."""
    monkeypatch.setattr(datasets.utils, "check_md5", lambda *_, **__: True)


def read(root: Path, name: str, **options: Any) -> Samples:
    source = TorchvisionSource(root, name=name, cache_dir=root / "cache", **{"options": OPTIONS.get(name), **options})
    samples, problems = source.read()
    assert problems == []
    return samples


def shown(samples: Samples, row: int) -> int:
    """Which of the three classes is to be seen."""
    image = Preprocessing((8, 8))(samples.image(row)).float().mean((1, 2))
    is_grey = float(image.std()) < 3
    shades = torch.tensor([[value] * 3 for value in GREYS] if is_grey else [COLORS[name] for name in CLASSES])
    return int((shades - image).abs().sum(1).argmin())


@pytest.mark.parametrize("name", LAYOUTS)
def test_data_sets(tmp_path: Path, name: str) -> None:
    LAYOUTS[name](tmp_path)
    samples = read(tmp_path, name)
    first = FIRST.get(name, CLASSES)
    assert samples.classes[: len(first)] == first
    assert samples.labels.tolist() == [shown(samples, row) for row in range(len(samples))]
    parts = {SPLITS[split] if split >= 0 else "" for split in samples.splits}
    wanted = {"train", "val", "test"} if name in THREE_PARTS else {""} if name in NO_PARTS else {"train", "test"}
    assert parts == ({"train", "val"} if name in TRAIN_AND_VAL else wanted)
    if name in IN_MEMORY:
        assert isinstance(samples.store, ArrayStore)
        assert samples.relative_path(1) == "train/00001"
        assert len(pickle.dumps(samples.store)) < 1000
    else:
        assert samples.store is None
        assert all(samples.path(row).is_file() for row in range(len(samples)))


def test_other_options(tmp_path: Path) -> None:
    """The classes are those that the data set then gives, although its tables say more."""
    LAYOUTS["OxfordIIITPet"](tmp_path)
    samples = read(tmp_path, "OxfordIIITPet", options={"target_types": "binary-category"})
    assert samples.classes == ("Cat", "Dog")
    assert samples.labels.tolist() == [shown(samples, row) // 2 for row in range(len(samples))]


@pytest.mark.parametrize(("name", "options"), [("FashionMNIST", {"train": False}), ("DTD", {"split": "val"})])
def test_a_part_that_is_chosen_is_divided_anew(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    LAYOUTS[name](tmp_path)
    samples = read(tmp_path, name, options=options)
    assert len(samples) == 6
    assert set(samples.splits) == {-1}


def test_a_data_set_that_has_to_be_asked(tmp_path: Path) -> None:
    samples = read(tmp_path, "FakeData", options={"size": 9, "image_size": [3, 8, 6], "num_classes": 4})
    dataset = datasets.FakeData(9, (3, 8, 6), 4)
    assert [samples.classes[label] for label in samples.labels] == [str(dataset[row][1]) for row in range(9)]
    assert isinstance(samples.store, DatasetStore)
    sent = pickle.loads(pickle.dumps(samples.store))
    for store in (samples.store, sent):
        assert np.array_equal(np.asarray(store.read(5)), np.asarray(dataset[5][0]))


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
    samples = read(tmp_path, "Parts")
    assert samples.labels.tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0, 1]
    assert samples.splits.tolist() == [0] * 6 + [1] * 4
    pictures = [samples.image(row) for row in (5, 6, 9)]
    assert [np.asarray(picture)[0, 0] for picture in pictures if isinstance(picture, Image.Image)] == [56, 4, 34]
    assert "no labels for its test part" in caplog.text


class Elsewhere(datasets.ImageFolder):  # type: ignore[misc]
    """Files that are not below the root, listed against the order of their names."""

    def __init__(self, root: str) -> None:
        super().__init__(str(Path(root).parent / "elsewhere"))
        self.samples.reverse()
        self.targets.reverse()


def test_files_outside_of_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate.image_folder(tmp_path / "elsewhere", per_class=2)
    monkeypatch.setattr(datasets, "Elsewhere", Elsewhere, raising=False)
    samples = read(tmp_path / "root", "Elsewhere")
    assert isinstance(samples.store, DatasetStore)
    assert samples.labels.tolist() == [2, 2, 1, 1, 0, 0]
    assert samples.labels.tolist() == [shown(samples, row) for row in range(6)]


def test_given_classes(tmp_path: Path) -> None:
    LAYOUTS["EuroSAT"](tmp_path)
    samples, _ = TorchvisionSource(tmp_path, name="EuroSAT").read(["red", "green", "blue", "white"])
    assert samples.labels[:9:8].tolist() == [2, 1]
    with pytest.raises(UserError, match="EuroSAT has the class 'green' and 1 more that training does not know"):
        TorchvisionSource(tmp_path, name="EuroSAT").read(["blue"])


def test_a_damaged_picture_is_left_to_the_check(tmp_path: Path) -> None:
    LAYOUTS["EuroSAT"](tmp_path)
    (tmp_path / "eurosat/2750/red/2.jpg").write_bytes(b"")
    module = TorchvisionDataModule(tmp_path, name="EuroSAT", on_error="skip")
    module.setup()
    assert [problem.path for problem in module.skipped] == ["eurosat/2750/red/2.jpg"]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "EMNIST"])
def test_a_missing_data_set(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        UserError, match=rf"cannot open .*{name} in {tmp_path} .* put its files below data\.root="
    ) as error:
        read(tmp_path, name)
    cannot = ("FER2013", "ImageNet")
    assert ("use data.download=true" in str(error.value)) == (name not in cannot)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.EuroSAT, "download", lambda self: LAYOUTS["EuroSAT"](tmp_path))
    TorchvisionSource(tmp_path, name="EuroSAT").prepare()
    assert list(tmp_path.iterdir()) == []
    TorchvisionSource(tmp_path, name="EuroSAT", download=True).prepare()
    assert len(read(tmp_path, "EuroSAT")) == 24


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
    source = TorchvisionSource(tmp_path, name="EuroSAT", download=True)
    source.prepare()
    assert len(source.read()[0]) == 24
    source.prepare()
    assert opened == [False]
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / ".lock"] if writable else before)
    assert len(source.read()[0]) == 24


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*: name another place with data\.root="):
        TorchvisionSource(tmp_path / "file" / "root", name="EuroSAT", download=True).prepare()


def test_a_download_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(datasets.EuroSAT, "download", fail)
    with pytest.raises(UserError, match=r"cannot download EuroSAT \(no route to host\): try again, or put its files"):
        TorchvisionSource(tmp_path, name="EuroSAT", download=True).prepare()
    with pytest.raises(UserError, match=r"torchvision does not download FER2013: use data\.download=false"):
        TorchvisionSource(tmp_path, name="FER2013", download=True).prepare()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("CIFAR1O", {}, r"data\.name=CIFAR1O is no data set of torchvision: did you mean CIFAR10"),
        ("fashionmnist", {}, "did you mean FashionMNIST"),
        ("utils", {}, "data.name=utils is no data set"),
        ("EMNIST", {}, r"data\.name=EMNIST needs data\.options=\{split:\.\.\.\}"),
        ("DTD", {"partion": 2}, r"data\.options=\{partion:\.\.\.\} is no option of DTD: did you mean partition"),
        ("DTD", {"download": True}, r"data\.options=\{download:\.\.\.\} is no option"),
        ("DTD", {"split": "dev"}, "Unknown value 'dev' for argument split"),
        ("OxfordIIITPet", {"target_types": "breed"}, "Unknown value 'breed' for argument target_types"),
        ("OxfordIIITPet", {"target_types": "segmentation"}, "gives .Image, .* instead of a picture and its class"),
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
