import logging
import os
from pathlib import Path

import numpy as np
import pytest

from classifier.data.datamodule import ClassificationDataModule
from classifier.data.image_folder import FolderSource
from classifier.data.samples import SPLITS, Samples
from classifier.errors import UserError
from tests import generate
from tests.generate import CLASSES


def touch(root: Path, *names: str) -> Path:
    """Listing looks at names alone."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def listed(samples: Samples) -> list[tuple[str, str, str]]:
    """(part or "", class, path) of each sample."""
    return [
        (
            "" if samples.splits[row] < 0 else SPLITS[samples.splits[row]],
            samples.classes[samples.labels[row]],
            samples.relative_path(row),
        )
        for row in range(len(samples))
    ]


def read(root: Path, classes: list[str] | None = None) -> list[tuple[str, str, str]]:
    samples, problems = FolderSource(root).read(classes)
    assert problems == []
    return listed(samples)


def test_flat(tmp_path: Path) -> None:
    touch(tmp_path, "b/1.jpg", "a/2.jpg", "a/1.jpg")
    assert read(tmp_path) == [("", "a", "a/1.jpg"), ("", "a", "a/2.jpg"), ("", "b", "b/1.jpg")]


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "val", "test"),
        ("train", "valid", "test"),
        ("Train", "Validation", "Test"),
        ("training", "validation", "testing"),
        ("TRAIN", "VAL", "TEST"),
    ],
)
def test_by_part(tmp_path: Path, train: str, val: str, test: str) -> None:
    touch(tmp_path, *(f"{part}/{name}/1.jpg" for part in (train, val, test) for name in "ab"))
    assert read(tmp_path) == [
        ("train", "a", f"{train}/a/1.jpg"),
        ("train", "b", f"{train}/b/1.jpg"),
        ("val", "a", f"{val}/a/1.jpg"),
        ("val", "b", f"{val}/b/1.jpg"),
        ("test", "a", f"{test}/a/1.jpg"),
        ("test", "b", f"{test}/b/1.jpg"),
    ]


@pytest.mark.parametrize(
    "names",
    [["train/1.jpg", "test/1.jpg"], ["Validation/a/1.jpg", "Test/a/1.jpg"], ["train/1.jpg", "val/a/1.jpg"]],
    ids=["no class folders", "no training part", "no class folders in training"],
)
def test_parts_are_not_taken_for_classes(tmp_path: Path, names: list[str]) -> None:
    touch(tmp_path, *names)
    with pytest.raises(UserError, match=r"is divided into .* no training images in class folders.*/train/"):
        FolderSource(tmp_path).read()


def test_two_folders_for_one_part_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.jpg", "val/a/1.jpg", "valid/a/1.jpg")
    with pytest.raises(UserError, match=r"val and .*valid are both for val"):
        FolderSource(tmp_path).read()


def test_what_is_not_used_is_told_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "train/a/1.jpg", "train/a/2.heic", "train/a/x/3.HEIC", "train/b/1.jpg", "train/b/notes.txt")
    touch(tmp_path, "train/4.jpg", "extra/c/1.jpg", "readme.md")
    read(tmp_path)
    (message,) = caplog.messages
    assert "3 files of kinds that are not read (.heic 2, .txt 1)" in message
    assert "folders beside those of the parts, extra" in message
    assert "1 images outside of class folders" in message


def test_validation_is_cut_from_training_where_it_is_absent(tmp_path: Path) -> None:
    generate.image_folder(tmp_path / "train", per_class=10)
    generate.image_folder(tmp_path / "test", per_class=4, seed=7)
    module = ClassificationDataModule(FolderSource(tmp_path), val_fraction=0.2)
    module.setup()
    assert {name: len(rows) for name, rows in module.split.items()} == {"train": 24, "val": 6, "test": 12}
    prefix = {
        name: {module.samples.relative_path(r).split("/")[0] for r in rows} for name, rows in module.split.items()
    }
    assert prefix == {"train": {"train"}, "val": {"train"}, "test": {"test"}}


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    touch(tmp_path, "train/1.jpg", "plane/1.jpg", "test/1.jpg")
    assert [row[:2] for row in read(tmp_path)] == [("", "plane"), ("", "test"), ("", "train")]
    assert [row[:2] for row in read(tmp_path, ["train", "test", "plane"])] == [
        ("", "train"),
        ("", "test"),
        ("", "plane"),
    ]


def test_classes_are_in_text_order(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{name}/1.jpg" for name in ("10", "9", "b", "B", "é", "a b")))
    assert FolderSource(tmp_path).read()[0].classes == ("10", "9", "B", "a b", "b", "é")


def test_a_class_that_validation_lacks_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "train/c/1.jpg", "val/a/1.jpg", "val/c/1.jpg")
    with caplog.at_level(logging.WARNING):
        found = read(tmp_path)
    assert [row for row in found if row[0] == "val"] == [("val", "a", "val/a/1.jpg"), ("val", "c", "val/c/1.jpg")]
    assert len(caplog.messages) == 1
    assert "'b'" in caplog.text
    assert "val" in caplog.text


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_class_that_training_lacks_is_refused(tmp_path: Path, part: str) -> None:
    touch(tmp_path, "train/a/1.jpg", "train/b/1.jpg", f"{part}/a/1.jpg", f"{part}/zebra/1.jpg")
    with pytest.raises(UserError, match=rf"{part} has the class folder 'zebra'.*2 classes: a, b"):
        FolderSource(tmp_path).read()


def test_a_class_that_the_model_lacks_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "b/1.jpg", "zebra/1.jpg")
    with pytest.raises(UserError, match="'zebra'"):
        FolderSource(tmp_path).read(["a", "b"])


def test_labels_are_those_of_the_given_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "a/1.jpg", "c/1.jpg")
    samples, _ = FolderSource(tmp_path).read(["c", "b", "a"])
    assert samples.classes == ("c", "b", "a")
    assert listed(samples) == [("", "c", "c/1.jpg"), ("", "a", "a/1.jpg")]
    assert samples.labels.tolist() == [0, 2]
    (message,) = caplog.messages
    assert "'b'" in message
    assert "  " not in message


def test_new_test_data_come_without_training_data(tmp_path: Path) -> None:
    touch(tmp_path, "test/a/1.jpg", "test/b/1.jpg")
    assert read(tmp_path, ["b", "a"]) == [("test", "b", "test/b/1.jpg"), ("test", "a", "test/a/1.jpg")]


def test_nested_and_hidden_files(tmp_path: Path) -> None:
    hidden = ("a/.b.jpg", "a/.cache/1.jpg", ".git/1.jpg", "a/notes.txt", "a/noextension", "readme.jpg")
    touch(tmp_path, "a/x/y/1.jpg", "a/0.jpg", "b/1.jpg", *hidden)
    assert [row[2] for row in read(tmp_path)] == ["a/0.jpg", "a/x/y/1.jpg", "b/1.jpg"]


@pytest.mark.parametrize("suffix", ["JPG", "Jpeg", "PNG", "webp", "TIFF", "bmp", "GIF", "ppm", "pgm", "tif", "avif"])
def test_extensions_in_any_case(tmp_path: Path, suffix: str) -> None:
    touch(tmp_path, f"a/1.{suffix}", "b/1.jpg")
    assert len(read(tmp_path)) == 2


def test_linked_folders_are_followed(tmp_path: Path) -> None:
    touch(tmp_path, "store/1.jpg", "photos/b/1.jpg")
    (tmp_path / "photos/a").symlink_to(tmp_path / "store")
    assert [row[2] for row in read(tmp_path / "photos")] == ["a/1.jpg", "b/1.jpg"]


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    try:
        touch(tmp_path, os.fsdecode(b"a/\xff.jpg"), os.fsdecode(b"\xfe/1.jpg"))
    except OSError:
        pytest.skip("this file system takes valid UTF-8 only")
    samples, _ = FolderSource(tmp_path).read()
    assert [samples.path(row).is_file() for row in range(len(samples))] == [True, True]


def test_a_missing_root_names_its_override(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"photos does not exist.*data\.root="):
        FolderSource(tmp_path / "photos").read()
    touch(tmp_path, "photos")
    with pytest.raises(UserError, match=r"photos is not a folder.*data\.root="):
        FolderSource(tmp_path / "photos").read()


@pytest.mark.parametrize("count", [0, 2])
def test_no_class_folders(tmp_path: Path, count: int) -> None:
    touch(tmp_path, *(f"{number}.jpg" for number in range(count)))
    with pytest.raises(UserError, match=rf"no class folders \({count} images .*/<class>/.*data\.root="):
        FolderSource(tmp_path).read()


@pytest.mark.parametrize("empty", ["b", "train/b", "val/b"])
def test_an_empty_class_folder_is_named(tmp_path: Path, empty: str) -> None:
    part, _, _ = empty.rpartition("/")
    touch(tmp_path, *(f"{part}/{name}/1.jpg" for part in ("train", "val") for name in "ab") if part else ["a/1.jpg"])
    (tmp_path / empty).mkdir(exist_ok=True)
    (tmp_path / empty / "1.jpg").unlink(missing_ok=True)
    with pytest.raises(UserError, match=f"{tmp_path / empty} holds no image"):
        FolderSource(tmp_path).read()


def test_one_class_only(tmp_path: Path) -> None:
    generate.image_folder(tmp_path, classes=["red"], per_class=3)
    with pytest.raises(UserError, match=r"one class only.*'red'"):
        ClassificationDataModule(FolderSource(tmp_path)).setup()


def test_generated_folder(folder: Path) -> None:
    samples, _ = FolderSource(folder).read()
    assert samples.classes == CLASSES
    assert np.bincount(samples.labels).tolist() == [20, 20, 20]
    assert all(samples.path(row).parent.name == samples.classes[samples.labels[row]] for row in range(60))
