import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from classifier.data.check import CHECKS, check_images, image_size, refuse
from classifier.data.samples import Problem, Samples
from classifier.errors import UserError
from tests.data.test_header import png_header
from tests.generate import picture, save


def table(root: Path, paths: Sequence[str], boxes: Sequence[tuple[int, int, int, int]] | None = None) -> Samples:
    return Samples.build(root, ["a", "b"], paths, [0] * len(paths), boxes=boxes)


def cut(path: Path, share: float) -> str:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path.name


def damaged(root: Path) -> dict[str, str]:
    """Files that cannot be used -> what their problem must speak of."""
    (root / "empty.jpg").touch()
    (root / "text.jpg").write_text("<html>not found</html>")
    found = {"empty.jpg": "empty", "text.jpg": "not an image", "gone.jpg": "No such file"}
    for suffix in ("jpg", "png", "gif", "webp", "bmp", "tif"):
        found[cut(save(picture("red", (80, 60)), root / f"half.{suffix}"), 0.5)] = ""
        found[cut(save(picture("red", (80, 60)), root / f"most.{suffix}"), 0.97)] = ""
    return found


def whole_files(root: Path) -> list[str]:
    suffixes = ("jpg", "png", "gif", "webp", "bmp", "tif", "ppm")
    return [save(picture("blue", (80, 60)), root / f"good.{suffix}").name for suffix in suffixes]


@pytest.mark.parametrize("check", ["quick", "full"])
def test_all_damaged_files_are_found_at_once(tmp_path: Path, check: str) -> None:
    wanted, good = damaged(tmp_path), whole_files(tmp_path)
    names = [*wanted, *good]
    usable, problems = check_images(table(tmp_path, names), check)
    assert [usable.relative_path(row) for row in range(len(usable))] == good
    assert {problem.path for problem in problems} == set(wanted)
    for problem in problems:
        assert wanted[problem.path] in problem.reason
        assert "data." not in problem.reason, "advice belongs to the whole list"
    with pytest.raises(UserError) as error:
        refuse(problems, len(names))
    message = str(error.value)
    assert all(name in message for name in wanted)
    assert f"{len(wanted)} of {len(names)} samples" in message
    assert "data.on_error=skip" in message


def test_a_long_list_is_cut_in_words() -> None:
    with pytest.raises(UserError, match="30 of 99") as error:
        refuse([Problem(f"{number}.jpg", "empty") for number in range(30)], 99)
    assert str(error.value).count(".jpg") == 20
    assert "10 more" in str(error.value)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp"])
def test_no_cut_is_missed(tmp_path: Path, suffix: str) -> None:
    """Not even where bytes that look like an end mark happen to lie near the cut."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    path = save(Image.fromarray(noise), tmp_path / f"x.{suffix}")
    content = path.read_bytes()
    missed = []
    for length in np.linspace(1, len(content) * 0.98, 150).astype(int):
        path.write_bytes(content[:length])
        if not check_images(table(tmp_path, [path.name]), "quick")[1]:
            missed.append(int(length))
    assert not missed


@pytest.mark.parametrize("padding", [16, 4096])
@pytest.mark.parametrize("check", ["quick", "full"])
def test_padding_behind_a_jpeg_is_accepted(tmp_path: Path, padding: int, check: str) -> None:
    path = save(picture("red"), tmp_path / "x.jpg")
    path.write_bytes(path.read_bytes() + bytes(padding))
    assert image_size(path, check) == (48, 40)


def test_the_full_check_finds_damage_in_the_middle(tmp_path: Path) -> None:
    path = save(picture("red", (200, 150)), tmp_path / "x.png")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200] = bytes(200)
    path.write_bytes(content)
    assert check_images(table(tmp_path, ["x.png"]), "quick")[1] == []
    usable, problems = check_images(table(tmp_path, ["x.png"]), "full")
    assert len(usable) == 0
    assert [problem.path for problem in problems] == ["x.png"]


def test_none_trusts_whole_images(tmp_path: Path) -> None:
    samples = table(tmp_path, list(damaged(tmp_path)))
    assert check_images(samples, "none") == (samples, [])


@pytest.mark.parametrize("check", CHECKS)
def test_boxes_are_cut_at_the_edge_and_outside_ones_reported(tmp_path: Path, check: str) -> None:
    save(picture("red", (80, 60)), tmp_path / "x.jpg")
    save(picture("red", (30, 20)), tmp_path / "y.jpg")
    boxes = [
        (10, 10, 20, 20),
        (-5, -5, 100, 100),
        (70, 50, 90, 70),
        (80, 10, 90, 20),  # begins where the image ends
        (10, -9, 20, 0),
        (10, 10, 200, 200),
        (40, 5, 50, 9),  # would lie in x.jpg
    ]
    samples = table(tmp_path, ["x.jpg"] * 5 + ["y.jpg"] * 2, boxes)
    usable, problems = check_images(samples, check)
    found = [(usable.relative_path(row), usable.box(row)) for row in range(len(usable))]
    assert found == [
        ("x.jpg", (10, 10, 20, 20)),
        ("x.jpg", (0, 0, 80, 60)),
        ("x.jpg", (70, 50, 80, 60)),
        ("y.jpg", (10, 10, 30, 20)),
    ]
    assert [problem.path for problem in problems] == ["x.jpg", "x.jpg", "y.jpg"]
    assert "(80, 10, 90, 20)" in problems[0].reason
    assert "80x60" in problems[0].reason
    assert "30x20" in problems[2].reason


def test_a_bad_file_with_many_boxes_is_one_problem(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").touch()
    usable, problems = check_images(table(tmp_path, ["x.jpg"] * 3, [(0, 0, 5, 5)] * 3), "quick")
    assert (len(usable), len(problems)) == (0, 1)


@pytest.mark.parametrize("check", CHECKS)
def test_nothing_is_written(tmp_path: Path, check: str) -> None:
    names = [*damaged(tmp_path), *whole_files(tmp_path)]
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(tmp_path.iterdir())}
    check_images(table(tmp_path, names, [(0, 0, 500, 500)] * len(names)), check)
    assert before == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(tmp_path.iterdir())}


class Store:
    """Of which the second image is damaged."""

    def read(self, item: int) -> np.ndarray:
        if item == 1:
            raise OSError("image file is truncated")
        return np.zeros((6, 8, 3), np.uint8)


class Sized(Store):
    def size(self, item: int) -> tuple[int, int]:
        return 8, 6


@pytest.mark.parametrize("store", [Store(), Sized()])
@pytest.mark.parametrize("check", CHECKS)
def test_images_out_of_a_store(tmp_path: Path, store: Store, check: str) -> None:
    names, boxes = ["a/0", "a/1", "a/2"], [(-5, 2, 50, 50)] * 3
    samples = Samples.build(tmp_path / "x.npz", ["a"], names, [0] * 3, boxes=boxes, store=store)
    usable, problems = check_images(samples, check)
    trusted = isinstance(store, Sized) and check != "full"
    assert problems == ([] if trusted else [Problem("a/1", "image file is truncated")])
    assert [usable.relative_path(row) for row in range(len(usable))] == (names if trusted else ["a/0", "a/2"])
    assert {usable.box(row) for row in range(len(usable))} == {(0, 2, 8, 6)}


def test_an_unknown_check_is_answered_with_the_choices(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.check=ful is unknown: did you mean full"):
        check_images(table(tmp_path, []), "ful")


@pytest.mark.parametrize("boxes", [None, []])
def test_an_empty_table_has_no_problems(tmp_path: Path, boxes: list[tuple[int, int, int, int]] | None) -> None:
    usable, problems = check_images(table(tmp_path, [], boxes), "quick")
    assert (len(usable), problems) == (0, [])


@pytest.mark.parametrize("form", ["png", "gif"])
def test_a_decompression_bomb_is_refused_unread(form: str, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """A few bytes that ask for gigabytes, with the number of pixels told; large images pass without a warning."""
    limit = Image.MAX_IMAGE_PIXELS or 0
    sizes = {"large": (10_000, limit // 10_000 * 3 // 2), "bomb": (10_000, limit // 10_000 * 3)}
    for name, (width, height) in sizes.items():
        if form == "png":
            content = png_header(width, height) + b"\0\0\0\0IEND\xaeB`\x82"
        else:
            content = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
            content += b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\2\2\x4c\1\0;"
        (tmp_path / f"{name}.{form}").write_bytes(content)
    usable, problems = check_images(table(tmp_path, [f"{name}.{form}" for name in sizes]), "quick")
    assert [problem.path for problem in problems] == [f"bomb.{form}"]
    pixels = sizes["bomb"][0] * sizes["bomb"][1]
    assert f"{pixels}" in problems[0].reason.replace(",", "")
    assert [usable.relative_path(row) for row in range(len(usable))] == [f"large.{form}"]
    assert not recwarn.list
