"""What the check found is kept, and never wrongly."""

import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from classifier.data import ImageFolderDataModule, check
from classifier.data.check import check_images
from classifier.data.samples import Samples
from tests import generate
from tests.data.test_check import damaged, table, whole_files
from tests.generate import picture, save


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder


def blank(path: Path) -> None:
    """Other content of the same length and time: whoever reads the file notices."""
    status = path.stat()
    path.write_bytes(bytes(status.st_size))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def outcome(samples: Samples, level: str, cache: Path | None) -> tuple[list[str], dict[str, str]]:
    usable, problems = check_images(samples, level, cache)
    return [usable.relative_path(row) for row in range(len(usable))], {item.path: item.reason for item in problems}


@pytest.mark.parametrize("level", ["quick", "full"])
def test_the_second_run_reads_nothing_and_says_the_same(level: str, root: Path, tmp_path: Path) -> None:
    names = [*damaged(root), *whole_files(root), save(picture("red"), root / "folder" / "ä\udcff.jpg").name]
    names[-1] = f"folder/{names[-1]}"
    samples = table(root, names, [(0, 0, 500, 500)] * len(names))
    first = outcome(samples, level, tmp_path / "cache")
    for name in first[0]:
        blank(root / name)
    assert outcome(samples, level, tmp_path / "cache") == first
    assert names[-1] in first[0]
    assert outcome(samples, level, None) != first


def test_a_changed_file_is_read_again(root: Path, tmp_path: Path) -> None:
    names = whole_files(root)
    samples, cache = table(root, names), tmp_path / "cache"
    assert outcome(samples, "quick", cache) == (names, {})
    blank(root / names[0])
    blank(root / names[1])
    os.utime(root / names[1])  # a new time, the same length
    (root / names[2]).write_bytes(b"")
    (root / names[3]).unlink()
    usable, problems = outcome(samples, "quick", cache)
    assert usable == [names[0], *names[4:]]
    assert list(problems) == names[1:4]
    save(picture("blue"), root / names[2])  # and mended
    assert names[2] in outcome(samples, "quick", cache)[0]


def test_levels_and_folders_are_kept_apart(root: Path, tmp_path: Path) -> None:
    """What passed the quick check may fail the full one; another root may have the same names."""
    path = save(picture("red", (200, 150)), root / "x.png")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200] = bytes(200)
    path.write_bytes(content)
    other = tmp_path / "other"
    other.mkdir()
    for folder, level, count in ((root, "quick", 0), (root, "full", 1), (root, "quick", 0), (other, "quick", 1)):
        assert len(outcome(table(folder, ["x.png"]), level, tmp_path / "cache")[1]) == count


def test_what_may_change_without_the_file_is_not_kept(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as the right to read it."""

    def denied(path: Path, level: str) -> tuple[int, int]:
        raise PermissionError(13, "Permission denied", str(path))

    samples = table(root, whole_files(root))
    with monkeypatch.context() as patch:
        patch.setattr(check, "image_size", denied)
        assert len(outcome(samples, "quick", tmp_path / "cache")[1]) == len(samples)
    assert outcome(samples, "quick", tmp_path / "cache")[1] == {}


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def not_ours(path: Path) -> None:
    path.write_text("hello")


def other_arrays(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, x=np.zeros(3))


def pickled(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, origin=np.array([print, {}], dtype=object), allow_pickle=True)


def uneven(path: Path) -> None:
    with np.load(path) as arrays:
        changed = {**arrays, "numbers": arrays["numbers"][:-1]}
    with path.open("wb") as file:
        np.savez(file, **changed)


@pytest.mark.parametrize("harm", [cut_off, not_ours, other_arrays, pickled, uneven])
def test_a_damaged_cache_is_ignored_and_written_anew(harm: Callable[[Path], None], root: Path, tmp_path: Path) -> None:
    names = whole_files(root)
    samples, cache = table(root, names), tmp_path / "cache"
    outcome(samples, "quick", cache)
    (kept,) = cache.rglob("*.npz")
    whole = kept.read_bytes()
    harm(kept)
    assert outcome(samples, "quick", cache) == (names, {})
    with np.load(kept) as now:
        harmed = {name: now[name].tolist() for name in now.files}
    kept.write_bytes(whole)
    with np.load(kept) as before:
        assert harmed == {name: before[name].tolist() for name in before.files}


def test_a_folder_that_cannot_be_written_costs_a_line(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = whole_files(root)
    (tmp_path / "file").touch()
    assert outcome(table(root, names), "quick", tmp_path / "file" / "cache") == (names, {})
    assert "data.cache_dir" in caplog.text
    assert [record.levelno for record in caplog.records] == [logging.WARNING]

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    assert outcome(table(root, names), "quick", tmp_path / "cache") == (names, {})
    assert "No space left" in caplog.text
    assert not list((tmp_path / "cache").rglob("*.npz"))


def test_nothing_is_kept_inside_the_data(root: Path) -> None:
    """`data.root=data` with the default folder, data/cache, that would look like a class."""
    names = whole_files(root)
    before = sorted(root.rglob("*"))
    assert outcome(table(root, names), "quick", root / "cache") == (names, {})
    assert sorted(root.rglob("*")) == before


def test_one_of_several_processes_reads(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads stand for them: a lock keeps them out of each other's way as well."""
    for number in range(40):
        save(picture("red", seed=number), root / f"{number}.jpg")
    looked: list[Path] = []
    true_size = check.image_size

    def counted(path: Path, level: str) -> tuple[int, int]:
        looked.append(path)
        return true_size(path, level)

    monkeypatch.setattr(check, "image_size", counted)
    samples = table(root, [f"{number}.jpg" for number in range(40)])
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: outcome(samples, "quick", tmp_path / "cache"), range(4)))
    assert all(item == found[0] for item in found)
    assert len(looked) == len(set(looked)) == 40


def test_another_source_of_the_same_root_forgets_nothing(root: Path, tmp_path: Path) -> None:
    names = whole_files(root)
    outcome(table(root, names), "quick", tmp_path / "cache")
    outcome(table(root, names[:1]), "quick", tmp_path / "cache")
    for name in names:
        blank(root / name)
    assert outcome(table(root, names), "quick", tmp_path / "cache") == (names, {})


def test_the_data_module_uses_its_folder(tmp_path: Path) -> None:
    photos = generate.image_folder(tmp_path / "photos", per_class=4)
    for _ in range(2):
        datamodule = ImageFolderDataModule(photos, cache_dir=str(tmp_path / "cache"))
        datamodule.setup()
        assert len(datamodule.samples) == 12
        for path in photos.rglob("*.jpg"):
            blank(path)
    assert list((tmp_path / "cache").rglob("*.npz"))
