import os
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from classifier.data.check import check_images, image_size, refuse
from classifier.data.image import upright_size
from classifier.data.image_facts import image_facts
from classifier.data.loader import Images
from classifier.data.samples import BOX
from classifier.errors import UserError
from tests.data.tables import make_table
from tests.generate import picture, save

CHECKS = ("quick", "full", "none")
Boxes = Sequence[tuple[int, int, int, int]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder


def checked(
    root: Path, paths: Sequence[str], level: str = "quick", cache: Path | None = None, boxes: Boxes | None = None
) -> pd.DataFrame:
    table = make_table(paths, boxes=boxes)
    return check_images(table, Images.of(table, root), level, cache).reindex(columns=[*table, "problem"])


def outcome(*arguments: object, **keywords: object) -> tuple[list[str], dict[str, str]]:
    """Usable paths, and the problems of the others."""
    found = checked(*arguments, **keywords)  # type: ignore[arg-type]
    bad = found["problem"].notna()
    return found["path"][~bad].tolist(), dict(zip(found["path"][bad], found["problem"][bad], strict=True))


def damaged(root: Path) -> dict[str, str]:
    """Files that cannot be used -> what their problem must speak of."""
    (root / "empty.jpg").touch()
    (root / "text.jpg").write_text("<html>not found</html>")
    found = {"empty.jpg": "empty", "text.jpg": "web page", "gone.jpg": "No such file"}
    for suffix in ("jpg", "png", "gif", "webp", "bmp", "tif"):
        for name, share in (("half", 0.5), ("most", 0.97)):
            path = save(picture("red", (80, 60)), root / f"{name}.{suffix}")
            path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
            found[path.name] = ""
    return found


def whole_files(root: Path) -> list[str]:
    suffixes = ("jpg", "png", "gif", "webp", "bmp", "tif", "ppm")
    return [save(picture("blue", (80, 60)), root / f"good.{suffix}").name for suffix in suffixes]


def broken_in_the_middle(path: Path) -> str:
    content = bytearray(save(picture("red", (200, 150)), path).read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200] = bytes(200)
    path.write_bytes(content)
    return path.name


def blank(path: Path) -> None:
    """Other content of the same length and time: whoever reads the file notices."""
    status = path.stat()
    path.write_bytes(bytes(status.st_size))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("level", ["quick", "full"])
def test_all_damaged_files_are_found_at_once_and_kept(root: Path, tmp_path: Path, level: str) -> None:
    wanted, good = damaged(root), [*whole_files(root), save(picture("red"), root / "folder" / "ä.jpg").name]
    good[-1] = f"folder/{good[-1]}"
    names = [*wanted, *good]
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(root.glob("*.*"))}
    usable, problems = outcome(root, names, level, tmp_path / "cache")
    assert usable == good
    assert list(problems) == list(wanted)
    assert all(wanted[path] in problem and "data." not in problem for path, problem in problems.items())
    # nothing is written among the data, and the second time nothing is read
    assert before == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(root.glob("*.*"))}
    for name in good:
        blank(root / name)
    assert outcome(root, names, level, tmp_path / "cache") == (usable, problems)
    assert outcome(root, names, level)[0] == []


def test_refusing_names_three_of_each_kind(root: Path) -> None:
    texts = [
        "empty",
        "a pointer",
        *(f"box ({number}, 2) in {number}x9 pixels" for number in range(4)),
        *["a pointer"] * 30,
    ]
    skipped = pd.DataFrame({"path": [f"{number}.jpg" for number in range(36)], "problem": texts})
    with pytest.raises(UserError) as error:
        refuse(skipped, 99)
    first, pointers, more, *rest, advice = str(error.value).splitlines()
    assert "36 of 99" in first
    assert "data.on_error=skip" in advice
    assert (pointers, "28" in more) == ("  1.jpg, 6.jpg, 7.jpg: a pointer", True)
    assert [line.split(":")[0].strip() for line in rest if ":" in line] == ["2.jpg", "3.jpg", "4.jpg", "0.jpg"]


CONTENTS = {
    b"version https://git-lfs.github.com/spec/v1\n": "git lfs pull",
    b"\n<!DOCTYPE html>": "web page",
    b"<?xml version='1.0'?>": "XML",
    b'{"error": 403}': "JSON",
    bytes(9000): "zeros",
    b"hello\n": "text",
    b"\0\0\0\x18ftypheic\0\0\0\0mif1": "HEIC",
    b"\0\0\0\x18ftypmp42\0\0\0\0": "video",
    bytes(128) + b"DICM": "DICOM",
    b"II*\0" + bytes(9): "TIFF",
    bytes(range(1, 200)): "not an image",
}


def test_what_is_no_image_is_named_and_not_waited_for(root: Path) -> None:
    for number, content in enumerate(CONTENTS):
        (root / f"{number}.jpg").write_bytes(content)
    os.mkfifo(root / "pipe.jpg")
    for name, target in (("device", "/dev/zero"), ("gone", "nowhere.jpg")):
        (root / f"{name}.jpg").symlink_to(target)
    wanted = {f"{number}.jpg": text for number, text in enumerate(CONTENTS.values())}
    wanted |= {"pipe.jpg": "named pipe", "device.jpg": "device", "gone.jpg": "nowhere.jpg"}
    _, problems = outcome(root, list(wanted))
    assert problems.keys() == wanted.keys()
    assert [text for path, text in wanted.items() if text not in problems[path]] == []
    for name in ("pipe.jpg", "device.jpg"):  # by other ways than training's
        assert image_facts(root / name).notes.keys() == {"unreadable"}
        with pytest.raises(UserError, match=wanted[name]):
            upright_size(root / name)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp"])
def test_no_cut_is_missed(root: Path, suffix: str) -> None:
    """Not even where bytes that look like an end mark happen to lie near the cut."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    content = save(Image.fromarray(noise), root / f"x.{suffix}").read_bytes()
    lengths = np.linspace(1, len(content) * 0.98, 150).astype(int)
    for length in lengths:
        (root / f"{length}.{suffix}").write_bytes(content[:length])
    assert outcome(root, [f"{length}.{suffix}" for length in lengths])[0] == []


def test_a_jpeg_that_ends_in_its_thumbnail_is_cut_off(root: Path) -> None:
    thumbnail = save(picture("blue", (16, 12)), root / "thumbnail.jpg").read_bytes()
    content = save(picture("red", (83, 61)), root / "x.jpg").read_bytes()
    exif = b"Exif\0\0II*\0\x08\0\0\0" + bytes(5000) + thumbnail
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    (root / "whole.jpg").write_bytes(content[:2] + segment + content[2:])
    (root / "cut.jpg").write_bytes(content[:2] + segment)
    assert image_size(root / "whole.jpg", "quick") == (83, 61, 1)
    assert list(outcome(root, ["whole.jpg", "cut.jpg"])[1]) == ["cut.jpg"]


@pytest.mark.parametrize("padding", [16, 4096])
@pytest.mark.parametrize("level", ["quick", "full"])
def test_padding_after_a_jpeg_is_accepted(root: Path, padding: int, level: str) -> None:
    path = save(picture("red"), root / "x.jpg")
    path.write_bytes(path.read_bytes() + bytes(padding))
    assert image_size(path, level) == (48, 40, 1)


def test_levels_and_folders_are_kept_apart(root: Path, tmp_path: Path) -> None:
    """What passed the quick check may fail the full one; another root may have the same names."""
    name = broken_in_the_middle(root / "x.png")
    (tmp_path / "other").mkdir()
    cases = [(root, "quick", 0), (root, "full", 1), (root, "quick", 0), (tmp_path / "other", "quick", 1)]
    for folder, level, count in cases:
        assert len(outcome(folder, [name], level, tmp_path / "cache")[1]) == count


def test_none_trusts_whole_images(root: Path) -> None:
    names = list(damaged(root))
    assert outcome(root, names, "none") == (names, {})


@pytest.mark.parametrize("kind", ["array", "image", "file"])
@pytest.mark.parametrize("level", CHECKS)
@pytest.mark.parametrize("boxes", [None, [(-5, 2, 50, 50)] * 3])
def test_images_that_are_not_files(root: Path, kind: str, level: str, boxes: Boxes | None) -> None:
    """Of which the second is damaged. Arrays are one piece: the quick check takes one image for all."""
    save(picture("red", (8, 6)), root / "good.png")
    (root / "bad.png").touch()

    def read_images(items: np.ndarray) -> list[np.ndarray | Image.Image | Path]:
        path = root / ("bad.png" if 1 in items.tolist() else "good.png")
        if kind == "file":
            return [path]
        if path.name == "bad.png":
            raise OSError("image file is truncated")
        return [np.zeros((6, 8, 3), np.uint8) if kind == "array" else Image.open(path)]

    table = make_table(["a/0", "a/1", "a/2"], boxes=boxes).assign(item=range(3))
    found = check_images(table, Images.of(table, root, read_images), level).reindex(columns=[*BOX, "problem"])
    trusted = boxes is None and (level == "none" or (kind == "array" and level == "quick"))
    assert found["problem"].notna().tolist() == [False, not trusted, False]
    if boxes is not None:
        assert found[BOX].iloc[[0, 2]].to_numpy().tolist() == [[0, 2, 8, 6]] * 2


@pytest.mark.parametrize("boxes", [None, []])
def test_an_empty_table_has_no_problems(root: Path, boxes: Boxes | None) -> None:
    assert len(checked(root, [], boxes=boxes)) == 0


def test_a_changed_file_is_read_again(root: Path, tmp_path: Path) -> None:
    names, cache = whole_files(root), tmp_path / "cache"
    assert outcome(root, names, "quick", cache) == (names, {})
    blank(root / names[0])
    blank(root / names[1])
    os.utime(root / names[1])  # a new time, the same length
    (root / names[2]).write_bytes(b"")
    (root / names[3]).unlink()
    usable, problems = outcome(root, names, "quick", cache)
    assert usable == [names[0], *names[4:]]
    assert list(problems) == names[1:4]
    save(picture("blue"), root / names[2])  # and mended
    assert names[2] in outcome(root, names, "quick", cache)[0]
    # another table of the same root forgets nothing
    outcome(root, names[4:5], "quick", cache)
    blank(root / names[5])
    assert names[5] in outcome(root, names, "quick", cache)[0]


def test_nothing_is_kept_inside_the_data(root: Path) -> None:
    """`data.root=data` with the default folder, data/cache, that would look like a class."""
    names = whole_files(root)
    before = sorted(root.rglob("*"))
    assert outcome(root, names, "quick", root / "cache") == (names, {})
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize("level", CHECKS)
def test_boxes_are_cut_at_the_edge_and_outside_ones_reported(root: Path, level: str) -> None:
    save(picture("red", (80, 60)), root / "x.jpg")
    save(picture("red", (30, 20)), root / "y.jpg")
    cases = [
        ("x.jpg", (10, 10, 20, 20), [10, 10, 20, 20]),
        ("x.jpg", (-5, -5, 100, 100), [0, 0, 80, 60]),
        ("x.jpg", (80, 10, 90, 20), None),  # begins where the image ends
        ("x.jpg", (10, -9, 20, 0), None),
        ("y.jpg", (10, 10, 200, 200), [10, 10, 30, 20]),
        ("y.jpg", (40, 5, 50, 9), None),  # would lie in x.jpg
    ]
    found = checked(root, [path for path, _, _ in cases], level, boxes=[box for _, box, _ in cases])
    bad = found["problem"].notna()
    assert bad.tolist() == [wanted is None for _, _, wanted in cases]
    assert found[BOX][~bad].to_numpy().tolist() == [wanted for _, _, wanted in cases if wanted]
    assert {found[side].dtype for side in BOX} == {np.dtype("int32")}
    assert all(text in found["problem"][2] for text in ("(80, 10, 90, 20)", "80x60"))


def test_a_decompression_bomb_is_refused_unread(root: Path, recwarn: pytest.WarningsRecorder) -> None:
    """A few bytes that ask for gigabytes, with the number of pixels named; large images pass without a warning."""
    for name, height in (("large.gif", 10_500), ("bomb.gif", 20_000)):
        content = b"GIF89a" + struct.pack("<HHBBB", 10_000, height, 0x80, 0, 0) + bytes(6)
        (root / name).write_bytes(content + b"," + struct.pack("<HHHHB", 0, 0, 10_000, height, 0) + b"\2\2\x4c\1\0;")
    usable, problems = outcome(root, ["large.gif", "bomb.gif"])
    assert usable == ["large.gif"]
    assert "200000000" in problems["bomb.gif"]
    assert not recwarn.list


MANY = [((90, 0, 190, 50), 99, 0, False), ((-2, 0, 102, 50), 0, 0, False), ((-30, 0, 30, 50), 0, 2, False)]


@pytest.mark.parametrize(("box", "others", "margin", "warned"), [*MANY, ((60, 0, 120, 50), 0, 0, True)])
def test_many_boxes_outside_are_reported(
    root: Path, caplog: pytest.LogCaptureFixture, box: tuple[int, ...], others: int, margin: float, warned: bool
) -> None:
    """Not one, not slips, and not those grown by a margin."""
    save(picture("red", (100, 100)), root / "x.jpg")
    table = make_table(["x.jpg"] * (others + 1), boxes=[box, *[(0, 0, 50, 50)] * others])
    check_images(table, Images.of(table, root), "quick", None, margin)
    assert ("data.box_format" in caplog.text) == warned


def test_what_cannot_be_read_is_looked_at_again(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The right to read a file can change without the file."""
    names = whole_files(root)
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
        assert len(outcome(root, names, "quick", tmp_path / "cache")[1]) == len(names)
    assert outcome(root, names, "quick", tmp_path / "cache") == (names, {})


@pytest.mark.parametrize("harm", ["cut off", "other columns", "no numbers"])
def test_a_damaged_cache_is_ignored_and_rewritten(harm: str, root: Path, tmp_path: Path) -> None:
    names, cache = whole_files(root), tmp_path / "cache"
    outcome(root, names, "quick", cache)
    (kept,) = cache.rglob("*.parquet")
    whole = pd.read_parquet(kept)
    if harm == "cut off":
        kept.write_bytes(kept.read_bytes()[:200])
    else:
        (whole[["path"]] if harm == "other columns" else whole.assign(width="wide")).to_parquet(kept)
    assert outcome(root, names, "quick", cache) == (names, {})
    pd.testing.assert_frame_equal(pd.read_parquet(kept), whole)


def test_a_folder_that_cannot_be_written_costs_a_line(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = whole_files(root)
    (tmp_path / "file").touch()
    assert outcome(root, names, "quick", tmp_path / "file" / "cache") == (names, {})
    monkeypatch.setattr(pd.DataFrame, "to_parquet", lambda *_, **__: Path("/nowhere/x").touch())
    assert outcome(root, names, "quick", tmp_path / "cache") == (names, {})
    assert ["data.cache_dir" in message for message in caplog.messages] == [True, True]
    assert not list((tmp_path / "cache").rglob("*.parquet"))
