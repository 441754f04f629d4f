import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from classifier.data import ImageFolderDataModule
from classifier.errors import UserError
from tests.data.listing import listed, problems, touch


def read(root: Path, classes: list[str] | None = None) -> list[tuple[object, ...]]:
    module = ImageFolderDataModule(root, classes=classes)
    assert problems(module) == {}
    return listed(module, "split")


def test_flat(tmp_path: Path) -> None:
    hidden = ("a/.b.jpg", "a/.cache/1.jpg", ".git/1.jpg", "a/notes.txt", "a/noextension", "readme.jpg")
    touch(
        tmp_path, "b/1.jpg", "a/x/y/1.JPG", "a/2.Jpeg", "a/1.avif", *hidden, "10/1.jpg", "9/1.jpg", "B/1.jpg", "é/1.jpg"
    )
    assert read(tmp_path) == [
        ("10/1.jpg", "10", None), ("9/1.jpg", "9", None), ("B/1.jpg", "B", None),
        ("a/1.avif", "a", None), ("a/2.Jpeg", "a", None), ("a/x/y/1.JPG", "a", None), ("b/1.jpg", "b", None),
        ("é/1.jpg", "é", None)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("train", "valid", "test"), ("Train", "Validation", "Testing"), ("TRAINING", "VAL", "TEST")],
)
def test_by_part(tmp_path: Path, train: str, val: str, test: str) -> None:
    touch(tmp_path, *(f"{part}/{name}/1.jpg" for part in (train, val, test) for name in "ab"))
    parts = {train: "train", val: "val", test: "test"}
    assert read(tmp_path) == [(f"{folder}/{name}/1.jpg", name, part) for folder, part in parts.items() for name in "ab"]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    touch(tmp_path, "train/1.jpg", "plane/1.jpg", "test/1.jpg")
    assert [row[1:] for row in read(tmp_path)] == [("plane", None), ("test", None), ("train", None)]
    assert [row[1] for row in read(tmp_path, ["train", "test", "plane"])] == ["train", "test", "plane"]


def test_labels_are_those_of_the_given_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "a/1.jpg", "c/1.jpg")
    table = ImageFolderDataModule(tmp_path, classes=["c", "b", "a"]).read()
    assert table["label"].cat.codes.tolist() == [0, 2]
    (message,) = caplog.messages
    assert "'b'" in message
    with pytest.raises(UserError, match="'c'"):
        read(tmp_path, ["a", "b"])


def test_new_test_data_come_without_training_data(tmp_path: Path) -> None:
    touch(tmp_path, "test/a/1.jpg", "test/b/1.jpg")
    assert read(tmp_path, ["b", "a"]) == [("test/b/1.jpg", "b", "test"), ("test/a/1.jpg", "a", "test")]


def test_a_class_that_validation_lacks_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "train/c/1.jpg", "val/a/1.jpg", "val/c/1.jpg")
    with caplog.at_level(logging.WARNING):
        found = listed(ImageFolderDataModule(tmp_path), "split")
    assert [row[1] for row in found if row[2] == "val"] == ["a", "c"]
    (message,) = caplog.messages
    assert "'b'" in message


def test_what_is_not_used_is_told_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "train/a/1.jpg", "train/a/2.heic", "train/a/x/3.HEIC", "train/b/1.jpg", "train/b/notes.txt")
    touch(tmp_path, "train/4.jpg", "extra/c/1.jpg", "readme.md", "lost+found/1.jpg")
    touch(tmp_path, *(f"train/{name}/{kept}" for name in "ab" for kept in ("@eaDir/1.jpg", "._1.jpg", "x/._2.jpg")))
    ImageFolderDataModule(tmp_path).list_samples()
    (message,) = caplog.messages
    for told in (".heic 2", ".txt 1", "extra", "4.jpg", "@eaDir 2", "._* 4", "lost+found 1"):
        assert told in message


@pytest.mark.parametrize(
    ("files", "named"),
    [
        (["train/1.jpg", "test/1.jpg"], "train/<class>/"),
        (["Validation/a/1.jpg", "Test/a/1.jpg"], "train/<class>/"),
        (["train/1.jpg", "val/a/1.jpg"], "train/<class>/"),
        (["train/a/1.jpg", "val/a/1.jpg", "valid/a/1.jpg"], "valid"),
        (["train/a/1.jpg", "train/b/1.jpg", "test/a/1.jpg", "test/zebra/1.jpg"], "test has the class folder 'zebra'"),
        (["1.jpg", "2.jpg"], "<class>/"),
        (["train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "val/b/1.txt"], "val/b"),
        (["a/1.jpg", "b/1.txt"], "/b"),
        ([], "data.root="),
        (["A/a/1.jpg", "A/b/1.jpg", "B/a/1.jpg", "B/b/1.jpg"], r"\+data\.classes=\[A,B\]"),
        (["train/a/1.jpg", "train/b/1.jpg", "extra/a/1.jpg", "extra/b/1.jpg"], r"\+data\.classes=\[extra,train\]"),
        (["train_images/1.jpg", "test_images/1.jpg", "x.csv"], r"data=table .*data\.table=x\.csv"),
        (["x/y/a/1.jpg", "x/y/b/1.jpg", "__MACOSX/x/._1.jpg"], r"data\.root=.*/x/y$"),
        (["images/1.jpg", "x.csv"], r"data=table .*data\.table=x\.csv"),
        (["1.jpg", "1.xml"], "data=annotation_crop"),
        (["images/train/1.jpg", "labels/train/1.txt"], "data=coco or data=annotation_crop"),
        (["train/images/1.jpg", "train/labels/1.txt"], "data=coco or data=annotation_crop"),
        (["train2017/1.jpg", "annotations/x.json"], r"data=coco .*data\.annotations=annotations/x\.json"),
    ],
)
def test_layouts_that_are_refused(tmp_path: Path, files: list[str], named: str) -> None:
    with pytest.raises(UserError, match=named):
        ImageFolderDataModule(touch(tmp_path, *files)).read()


def test_a_missing_root_names_its_override(tmp_path: Path) -> None:
    touch(tmp_path, "file")
    for name in ("file", "photos"):
        with pytest.raises(UserError, match=rf"{name} .*data\.root="):
            ImageFolderDataModule(tmp_path / name).read()


@contextmanager
def nobody() -> Iterator[None]:
    """As a user to whom rights matter: for root they do not."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize("closed", [".", "a", "a/x", "b"])
def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, closed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "photos", "a/1.jpg", "a/x/2.jpg", "b/1.jpg")
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)  # what lies above is root's
    module, place = ImageFolderDataModule("photos"), Path("photos", closed)
    with nobody():
        assert len(module.read()) == 3
    place.chmod(0o300)
    with nobody(), pytest.raises(UserError, match=rf"{place} .*data\.root="):
        module.read()
    place.chmod(0o755)


def test_folders_that_agree_are_classes_where_these_are_named(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{top}/{name}/1.jpg" for top in ("bus", "train") for name in "ab"))
    assert [row[1:] for row in read(tmp_path, ["bus", "train"])] == [("bus", None)] * 2 + [("train", None)] * 2
    # and without that, beside several that are no parts
    touch(tmp_path, "plane/a/1.jpg", "plane/b/1.jpg")
    assert {row[1] for row in read(tmp_path)} == {"bus", "plane", "train"}


def test_linked_folders_are_followed_to_each_file_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = touch(tmp_path, "store/1.jpg", "photos/b/1.jpg") / "photos"
    (root / "a").symlink_to(tmp_path / "store")
    assert [row[0] for row in read(root)] == ["a/1.jpg", "b/1.jpg"]
    assert caplog.messages == []
    links = {"b/up": "..", "all": ".", "b/2.jpg": "1.jpg", "b/store": "../../back", "b/self": "self", "a/no.jpg": "no"}
    (tmp_path / "back").mkdir()
    (tmp_path / "back" / "b").symlink_to(root / "b")  # a loop through another place
    for name, target in links.items():
        (root / name).symlink_to(target)
    assert [row[0] for row in read(root)] == ["a/1.jpg", "a/no.jpg", "b/1.jpg"]
    assert all(told in caplog.messages[0] for told in ("link b/up 1", "link all 1", "again"))


@pytest.mark.parametrize(("link", "target"), [("a/x", "../b"), ("c", "b"), ("a/2.jpg", "../b/1.jpg")])
def test_a_file_that_links_give_two_labels_is_a_problem(tmp_path: Path, link: str, target: str) -> None:
    touch(tmp_path, "a/1.jpg", "b/1.jpg")
    (tmp_path / link).symlink_to(target)
    reached = link if link.endswith(".jpg") else f"{link}/1.jpg"
    found = problems(ImageFolderDataModule(tmp_path))
    assert found.keys() == {"b/1.jpg", reached}
    assert all(path in problem for path in found for problem in found.values())


def test_a_name_that_is_not_utf8_is_a_problem_that_shows_it(tmp_path: Path) -> None:
    try:
        touch(tmp_path, os.fsdecode(b"a/\xff.jpg"), os.fsdecode(b"\xfe/1.jpg"), "a/1.jpg", "b/é.jpg")
    except OSError:
        pytest.skip("this file system takes valid UTF-8 only")
    module = ImageFolderDataModule(tmp_path)
    assert [row[0] for row in listed(module)] == ["a/1.jpg", "b/é.jpg"]
    found = problems(module)
    assert set(found) == {r"a/\xff.jpg", r"\xfe/1.jpg"}
    assert all("UTF-8" in reason for reason in found.values())
