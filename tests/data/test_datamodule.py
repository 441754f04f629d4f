import gc
import pickle
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from classifier.data import (
    AnnotationCropDataModule,
    ClassificationDataModule,
    DigitsDataModule,
    ImageFolderDataModule,
    build_datamodule,
)
from classifier.data.image import Picture
from classifier.data.samples import labels_of
from classifier.data.split import write_split
from classifier.data.transforms import Preprocessing
from classifier.errors import UserError
from tests import generate
from tests.generate import CLASSES


def ready(root: Path, **settings: Any) -> ImageFolderDataModule:
    defaults = {"image_size": 16, "batch_size": 8, "num_workers": 0}
    module = ImageFolderDataModule(root, **{**defaults, **settings})
    module.prepare_data()
    module.setup()
    return module


def split_of(module: ClassificationDataModule) -> dict[str, list[int]]:
    return {part: module.rows(part).tolist() for part in module.parts}


def folder_of(module: ClassificationDataModule, row: int) -> str:
    path = module.image(row)
    assert isinstance(path, Path)
    return path.parent.name


def batches(module: ClassificationDataModule, part: str) -> list[dict[str, torch.Tensor]]:
    return list(module.train_dataloader() if part == "train" else module.eval_dataloader(part))


@pytest.mark.parametrize("part", ["train", "val", "test", "all"])
@pytest.mark.parametrize(("image_size", "channels"), [(16, 3), ([24, 16], 1)])
def test_batches(folder: Path, part: str, image_size: int | list[int], channels: int) -> None:
    module = ready(folder, image_size=image_size, channels=channels)
    height, width = (16, 16) if image_size == 16 else (24, 16)
    found = batches(module, part)
    for batch in found:
        count = len(batch["image"])
        assert set(batch) == {"image", "label", "index"}
        assert batch["image"].shape == (count, channels, height, width)
        assert batch["label"].shape == batch["index"].shape == (count,)
        assert [batch[key].dtype for key in ("image", "label", "index")] == [torch.uint8, torch.int64, torch.int64]
        for label, index in zip(batch["label"].tolist(), batch["index"].tolist(), strict=True):
            assert folder_of(module, index) == CLASSES[label]
    index = torch.cat([batch["index"] for batch in found])
    assert sorted(index.tolist()) == module.rows(part).tolist()
    assert (index.tolist() == module.rows(part).tolist()) == (part != "train")


def test_a_root_in_the_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    module = build_datamodule({"_target_": "classifier.data.ImageFolderDataModule", "root": f"~/{folder.name}"})
    assert module.root == folder
    with pytest.raises(UserError, match=r"data\._target_=builtins\.dict"):
        build_datamodule({"_target_": "builtins.dict"})


def test_labels_fit_the_pictures(folder: Path) -> None:
    for batch in batches(ready(folder), "all"):
        color = batch["image"].float().mean((2, 3))
        wanted = torch.tensor([generate.COLORS[CLASSES[label]] for label in batch["label"]])
        assert (color - wanted).abs().max() < 25


def test_overrides_reach_their_place(folder: Path) -> None:
    module = ready(folder, val_fraction=0.25, test_fraction=0.5, resize="squash", crop_pct=0.9, interpolation="bicubic")
    assert {name: len(rows) for name, rows in split_of(module).items()} == {"train": 24, "val": 6, "test": 30}
    assert module.preprocessing == Preprocessing((16, 16), "squash", 0.9, "bicubic", 3)
    assert len(batches(ready(folder, batch_size=10, drop_last=True), "train")) == 4
    invert = {"transforms": {"invert": {"_target_": "torchvision.transforms.v2.RandomInvert", "p": 1.0}}}
    plain, inverted = ready(folder), ready(folder, augment=invert)
    assert torch.equal(batches(inverted, "train")[0]["image"], 255 - batches(plain, "train")[0]["image"])
    assert torch.equal(batches(inverted, "val")[0]["image"], batches(plain, "val")[0]["image"])


def test_the_seeds_of_order_and_split_are_apart(folder: Path) -> None:
    one, order, split = ready(folder), ready(folder, seed=1), ready(folder, split_seed=1)
    assert split_of(one)["test"] == split_of(order)["test"] != split_of(split)["test"]
    assert batches(one, "train")[0]["index"].tolist() != batches(order, "train")[0]["index"].tolist()
    assert batches(one, "train")[0]["index"].tolist() == batches(ready(folder), "train")[0]["index"].tolist()


def test_no_validation_part(folder: Path) -> None:
    module = ready(folder, val_fraction=0.0)
    assert module.parts == ["train", "test"]
    assert module.val_dataloader() == []
    with pytest.raises(UserError, match=r"val.*split="):
        module.eval_dataloader("val")


def test_a_split_file_is_used_instead_and_limited_too(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    first = ready(folder, split_seed=5)
    write_split(path, first.samples)
    assert split_of(ready(folder, split_seed=6, split_file=str(path))) == split_of(first)
    limited = ready(folder, split_file=str(path), limit_per_class=2, batch_size=2)
    for part, rows in split_of(first).items():
        counts = np.bincount(labels_of(first.samples)[rows], minlength=3)
        kept = np.bincount(labels_of(limited.samples)[limited.rows(part)], minlength=3)
        assert kept.tolist() == np.minimum(counts, 2).tolist()
    write_split(path, limited.samples)
    assert split_of(ready(folder, split_file=str(path), limit_per_class=2, batch_size=2)) == split_of(limited)


def test_a_class_without_training_images_is_named(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    samples = ready(folder).samples
    blue = (samples["label"] == "blue") & (samples["split"] == "train")
    write_split(tmp_path / "split.csv", samples.assign(split=samples["split"].mask(blue)))
    with caplog.at_level("WARNING"):  # another test may have asked for more
        ready(folder, split_file=str(tmp_path / "split.csv"))
        (message,) = caplog.messages
        assert "blue" in message
        # of a model that is trained already
        ready(folder, split_file=str(tmp_path / "split.csv"), classes=list(CLASSES))
    assert len(caplog.messages) == 1


BAD: dict[str, tuple[Any, ...]] = {
    "on_error": ("ignore",),
    "check": ("fast",),
    "resize": ("stretch",),
    "interpolation": ("cubic",),
    "channels": (2,),
    "crop_pct": (2.0, "all", float("nan")),
    "image_size": (0, [8, 8, 8], "big"),
    "cache": ("disc",),
    "cache_size": (0,),
    "batch_size": ("all",),
    "num_workers": ("many",),
    "val_fraction": (-0.1,),
    "test_fraction": (0.9,),
    "split_file": ("nowhere.csv",),
    "sampler": ("balance",),
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in BAD.items() for value in values])
def test_a_bad_value_names_its_key(folder: Path, key: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"data\.{key}=|nowhere\.csv"):
        ready(folder, **{key: value}).train_dataloader()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"split_file": "mine.csv", "fold": 0}, r"data\.fold=0 .*data\.split_file=mine\.csv .*data\.fold=null"),
        ({"batch_size": 64}, r"64 .* 42 .*data\.batch_size=32$"),
    ],
)
def test_settings_that_do_not_fit(folder: Path, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        ready(folder, **settings).train_dataloader()


@pytest.mark.parametrize("kind", [ImageFolderDataModule, AnnotationCropDataModule, DigitsDataModule])
def test_an_unknown_keyword_is_an_error(tmp_path: Path, kind: Any) -> None:
    with pytest.raises(TypeError, match="bach_size"):
        kind(tmp_path, bach_size=3)


@pytest.mark.parametrize("check", ["quick", "full"])
def test_bad_files_are_listed_or_left_out(folder: Path, tmp_path: Path, check: str) -> None:
    root = generate.copy(folder, tmp_path / "photos")
    (root / "red/000.jpg").write_bytes(b"")
    (root / "blue/003.jpg").write_text("not an image")
    with pytest.raises(UserError, match=r"2 of 60(.|\n)*data\.on_error=skip") as error:
        ready(root, check=check)
    assert "red/000.jpg" in str(error.value)
    assert "blue/003.jpg" in str(error.value)
    module = ready(root, check=check, on_error="skip")
    assert module.skipped["path"].tolist() == ["blue/003.jpg", "red/000.jpg"]
    assert np.bincount(labels_of(module.samples)).tolist() == [19, 20, 19]
    assert sum(len(batch["index"]) for batch in batches(module, "all")) == 58


def test_no_usable_sample(tmp_path: Path) -> None:
    for name in "ab":
        generate.save(Image.new("RGB", (4, 4)), tmp_path / name / "1.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"data\.root="):
        ready(tmp_path, on_error="skip")


def test_given_classes_in_another_order_and_a_subset_of_folders(folder: Path, tmp_path: Path) -> None:
    generate.copy(folder / "red", tmp_path / "photos" / "red")
    module = ready(tmp_path / "photos", classes=["red", "violet", "blue"])
    assert module.classes == ("red", "violet", "blue")
    assert {label for batch in batches(module, "all") for label in batch["label"].tolist()} == {0}
    whole = ready(folder, classes=["red", "green", "blue"])
    for batch in batches(whole, "all"):
        for label, index in zip(batch["label"].tolist(), batch["index"].tolist(), strict=True):
            assert folder_of(whole, index) == whole.classes[label]


def test_the_place_in_the_epoch_is_saved_and_loaded(folder: Path) -> None:
    first = ready(folder)
    assert first.state_dict() == {}
    loader = iter(first.train_dataloader())
    next(loader)
    next(loader)
    second = ready(folder)
    second.load_state_dict(first.state_dict())
    rest = [batch["index"].tolist() for batch in second.train_dataloader()]
    assert rest == [batch["index"].tolist() for batch in loader]
    assert len(rest) > 0
    second.train_dataloader()
    assert len(batches(second, "train")) == len(rest) + 2, "a later fit begins at the start"


class Squares(ClassificationDataModule):
    """A data set of one's own, whose images are not files: grey squares, some of them with a problem."""

    def __init__(self, root: Path, *, count: int, **settings: Any) -> None:
        super().__init__(root, **settings)
        self.count = count

    def list_samples(self) -> pd.DataFrame:
        numbers = pd.Series(range(self.count))
        table = pd.DataFrame({"path": "square " + numbers.astype("str"), "label": "even", "item": numbers * 2})
        table["label"] = table["label"].mask(numbers % 2 == 1, "odd")
        return table.assign(problem=pd.Series(pd.NA, table.index, dtype="str").mask(numbers == 3, "too dark"))

    def read_images(self, items: np.ndarray) -> list[Picture]:
        return [np.full((8, 8), item, np.uint8) for item in items.tolist()]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_data_set_of_ones_own(tmp_path: Path, num_workers: int) -> None:
    with pytest.raises(UserError, match=r"square 3: too dark"):
        Squares(tmp_path, count=40).setup()
    settings: dict[str, Any] = {"image_size": 8, "channels": 1, "batch_size": 4, "on_error": "skip", "cache": "disk"}
    module = Squares(tmp_path, count=40, num_workers=num_workers, **settings)
    module.setup()
    assert module.classes == ("even", "odd")
    assert module.skipped.to_numpy().tolist() == [["square 3", "too dark"]]
    assert "problem" not in module.samples
    assert len(module.samples) == 39
    for batch in module.train_dataloader():
        wanted = torch.from_numpy(module.samples["item"].to_numpy()[batch["index"]])
        assert torch.equal(batch["image"].long(), wanted.view(-1, 1, 1, 1).expand(-1, 1, 8, 8))
        assert torch.equal(batch["label"], wanted // 2 % 2)
    copy = pickle.loads(pickle.dumps(module))  # as a spawned process gets it
    assert copy.read_images(np.array([6]))[0].tolist() == [[6] * 8] * 8
    assert not hasattr(copy, "samples")


def test_a_loader_is_freed_at_once(folder: Path) -> None:
    """Else the garbage collector meets it late, its queues already gone, and waits for each reading process."""
    module = ImageFolderDataModule(folder, image_size=8, batch_size=8, num_workers=2)
    module.setup()
    gc.collect()
    gc.disable()
    try:
        loader = module.train_dataloader()
        next(iter(loader))
        freed = weakref.ref(loader)
        del module, loader
        assert freed() is None
    finally:
        gc.enable()
