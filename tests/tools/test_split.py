import os
import shutil
from pathlib import Path

import pytest

from classifier.data.image_folder import image_files
from tests import generate
from tests.generate import picture, save
from tests.tools.parts import files, opened, parts, refusal, script

SMALL = ("data=folder", "data.root=photos", "output=out")


@pytest.fixture
def work(folder: Path, tmp_path: Path) -> Path:
    """A folder with `photos` in it, which the test may change."""
    generate.copy(folder, tmp_path / "photos")
    return tmp_path


@pytest.mark.parametrize("mode", ["symlink", "hardlink", "copy"])
def test_the_folder_has_the_same_parts(work: Path, mode: str) -> None:
    before = files(work / "photos")
    result = script("split", *SMALL, f"mode={mode}", "data.fold=1", cwd=work)
    assert "60 written, 0 were there" in result.out
    assert "read it with data=folder data.root=out" in result.out
    wanted = opened(work / "photos", fold=1)
    found = opened(work / "out")
    assert parts(found) == parts(wanted)
    assert found.classes == wanted.classes
    # its list is a split file too
    assert parts(opened(work / "out", split_file=str(work / "out" / "split.csv"))) == parts(wanted)
    assert files(work / "photos") == before
    (first, *_) = image_files(work / "out")
    source = work / "photos" / first.relative_to(work / "out" / first.relative_to(work / "out").parts[0])
    assert first.read_bytes() == source.read_bytes()
    assert first.is_symlink() == (mode == "symlink")
    assert os.path.samestat(first.lstat(), source.lstat()) == (mode == "hardlink")
    again = script("split", *SMALL, f"mode={mode}", "data.fold=1", cwd=work)
    assert "0 written, 60 were there" in again.out


def test_links_hold_where_data_and_output_move_together(work: Path) -> None:
    script("split", *SMALL, cwd=work)
    (work / "elsewhere").mkdir()
    (work / "photos").rename(work / "elsewhere" / "photos")
    (work / "out").rename(work / "elsewhere" / "out")
    assert all(path.exists() for path in image_files(work / "elsewhere" / "out"))


def test_without_validation_it_tells_how_none_is_cut(work: Path) -> None:
    result = script("split", *SMALL, "data.val_fraction=0", cwd=work)
    assert "data=folder data.root=out data.val_fraction=0" in result.out
    assert parts(opened(work / "out", val_fraction=0)) == parts(opened(work / "photos", val_fraction=0))


def test_a_second_call_completes_the_first(work: Path) -> None:
    script("split", *SMALL, "mode=copy", cwd=work)
    whole = files(work / "out")
    for path in list(image_files(work / "out"))[::2]:
        path.unlink()
    result = script("split", *SMALL, "mode=copy", cwd=work)
    assert "30 written, 30 were there" in result.out
    assert files(work / "out") == whole


def test_other_content_is_kept_unless_told(work: Path) -> None:
    script("split", *SMALL, "mode=copy", cwd=work)
    changed = next(image_files(work / "out"))
    was = changed.read_bytes()
    changed.write_bytes(b"mine")
    message = refusal("split", *SMALL, "mode=copy", cwd=work)
    assert "exists with other content than" in message
    assert "overwrite=true" in message
    assert changed.read_bytes() == b"mine"
    script("split", *SMALL, "mode=copy", "overwrite=true", cwd=work)
    assert changed.read_bytes() == was


def test_links_are_overwritten_and_not_written_through(work: Path) -> None:
    before = files(work / "photos")
    for mode in ("hardlink", "hardlink", "symlink", "copy"):
        script("split", *SMALL, f"mode={mode}", "overwrite=true", cwd=work)
    assert files(work / "photos") == before
    assert not any(path.is_symlink() for path in image_files(work / "out"))
    assert not list((work / "out").rglob(".*"))


@pytest.mark.parametrize("mode", ["symlink", "hardlink"])
def test_a_copy_replaces_the_links_of_an_earlier_call(work: Path, mode: str) -> None:
    script("split", *SMALL, f"mode={mode}", cwd=work)
    result = script("split", *SMALL, "mode=copy", cwd=work)
    assert "60 written, 0 were there" in result.out
    for path in image_files(work / "out"):
        assert (path.is_symlink(), path.stat().st_nlink) == (False, 1)
    assert "0 written, 60 were there" in script("split", *SMALL, "mode=copy", cwd=work).out


def test_a_link_whose_file_has_gone_is_replaced(work: Path) -> None:
    script("split", *SMALL, cwd=work)
    broken = next(image_files(work / "out"))
    broken.unlink()
    broken.symlink_to("nowhere")
    script("split", *SMALL, cwd=work)
    assert broken.exists()


def test_images_of_another_split_are_refused(work: Path) -> None:
    script("split", *SMALL, cwd=work)
    message = refusal("split", *SMALL, "data.fold=0", "overwrite=true", cwd=work)
    assert "images that do not belong to this split" in message


def test_equal_names_and_odd_ones(tmp_path: Path) -> None:
    for sub in ("a", "b", "c"):
        for name in ("cats", ".dogs and:birds*"[1:]):
            save(picture("red"), tmp_path / "photos" / "train" / name / sub / "1.jpg")
    save(picture("red"), tmp_path / "photos" / "test" / "cats" / "1.jpg")
    result = script("split", *SMALL, "data.val_fraction=0", cwd=tmp_path)
    assert "'dogs and:birds*' as dogs and_birds_" in result.out
    assert parts(opened(tmp_path / "out", val_fraction=0)) == {
        "train": sorted(f"{name}/{file}.jpg" for name in ("cats", "dogs and_birds_") for file in ("1", "1_2", "1_3")),
        "test": ["cats/1.jpg"],
    }
    lines = (tmp_path / "out" / "split.csv").read_text().splitlines()
    assert lines[:3] == [
        "path,label,split,source",
        "train/cats/1.jpg,cats,train,train/cats/a/1.jpg",
        "train/cats/1_2.jpg,cats,train,train/cats/b/1.jpg",
    ]


def test_a_class_without_training_images_is_told(work: Path) -> None:
    lines = ["path,split"] + [f"{name}/00{n}.jpg,train" for name in ("blue", "green") for n in range(3)]
    (work / "mine.csv").write_text("\n".join([*lines, "red/000.jpg,test"]))
    result = script("split", *SMALL, "data.split_file=mine.csv", cwd=work)
    assert "1 classes have no training image, 'red' first" in result.out


def test_boxes_are_for_crop(annotated: Path, tmp_path: Path) -> None:
    message = refusal("split", "data=annotation_crop", f"data.root={annotated}", "output=out", cwd=tmp_path)
    assert "are boxes in images" in message
    assert "scripts/crop.py" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("output=photos/out",), "output=photos/out lies in the data folder photos, which is only read"),
        (("output=.",), "output=. contains the data folder photos: name a folder of its own"),
        (("output=file",), "output=file is a file and not a folder"),
        (("output=out", "mode=symlnk"), "mode=symlnk is unknown: did you mean symlink?"),
        ((), "output is not set: type output=..."),
        (("output=out", "mdoe=copy"), "there is no key mdoe: did you mean mode?"),
    ],
)
def test_refusals(work: Path, arguments: tuple[str, ...], message: str) -> None:
    (work / "file").write_text("")
    assert message in refusal("split", "data.root=photos", *arguments, cwd=work)


def test_what_is_in_the_way(work: Path) -> None:
    script("split", *SMALL, cwd=work)
    target = next(image_files(work / "out"))
    target.unlink()
    target.mkdir()
    assert "is not a file: remove it" in refusal("split", *SMALL, cwd=work)
    shutil.rmtree(work / "out")
    (work / "out").mkdir()
    (work / "out" / "train").write_text("")
    assert "cannot write out/train" in refusal("split", *SMALL, cwd=work)


def test_a_file_system_without_links(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    message = refusal("split", *SMALL, "mode=hardlink", cwd=work)
    assert message.startswith("cannot make the hardlink out/")
    assert message.endswith("use mode=copy")
