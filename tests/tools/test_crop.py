import csv
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from classifier.data import AnnotationCropDataModule, ClassificationDataModule
from classifier.data.image_folder import image_files
from classifier.data.samples import Problem, Samples
from tests import generate
from tests.generate import picture, save
from tests.tools.parts import files, opened, parts, refusal, script
from tests.verbs.command import run, start


class Store:
    def read(self, item: int) -> np.ndarray:
        return np.full((40, 20 + item), item * 20, np.uint8)


class ArraysSource:
    """Images that are no files."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def prepare(self) -> None: ...

    def read(self, classes: Sequence[str] | None = None) -> tuple[Samples, list[Problem]]:
        names = [f"photos:{number}" for number in range(12)]
        labels = [number % 2 for number in range(12)]
        return Samples.build(self.root, ["a/b", "c"], names, labels, store=Store()), []


class ArraysDataModule(ClassificationDataModule):
    def __init__(self, root: str, **settings: object) -> None:
        super().__init__(ArraysSource(Path(root)), **settings)  # type: ignore[arg-type]


def boxes(annotated: Path, *arguments: str) -> tuple[str, ...]:
    return ("data=annotation_crop", f"data.root={annotated}", "output=out", "data.num_workers=2", *arguments)


def listed(output: Path) -> list[dict[str, str]]:
    with (output / "split.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_boxes_become_a_folder_with_the_same_parts(annotated: Path, tmp_path: Path) -> None:
    result = script("crop", *boxes(annotated, "format=png", "size=20", "data.fold=2"), cwd=tmp_path)
    assert "60 written, 0 were there" in result.out
    assert "data=folder data.root=out" in result.out
    found = opened(tmp_path / "out")
    assert found.classes == ("blue", "green", "red")
    wanted = AnnotationCropDataModule(annotated, fold=2)
    wanted.setup()
    assert [(line["split"], line["source"]) for line in listed(tmp_path / "out")] == [
        (part, wanted.samples.relative_path(row)) for part, rows in wanted.split.items() for row in rows
    ]
    assert [line["path"] for line in listed(tmp_path / "out")] == [
        found.samples.relative_path(row) for part in found.split for row in found.split[part]
    ]
    line = listed(tmp_path / "out")[0]
    x1, y1, x2, y2 = map(int, line["source_box"].split())
    with Image.open(annotated / line["source"]) as image, Image.open(tmp_path / "out" / line["path"]) as crop:
        cut = image.crop((x1, y1, x2, y2)).resize((20, 20), Image.Resampling.BICUBIC)
        assert np.abs(np.asarray(cut, float) - np.asarray(crop, float)).max() <= 2


def test_several_boxes_of_an_image_and_the_official_split(dogs: Path, tmp_path: Path) -> None:
    arguments = ("experiment=dogs_resnet", f"data.root={dogs}", "data.objects=all", "output=out", "optimizer=sgd")
    script("crop", *arguments, cwd=tmp_path)
    found = parts(opened(tmp_path / "out"))
    assert len(found["test"]) == 9
    assert {"Chihuahua/n02085620_1_1.jpg", "Chihuahua/n02085620_1_2.jpg"} <= {*found["train"], *found["val"]}


def test_upright_deep_and_transparent_images(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = picture("red", (60, 30))
    turned.paste(picture("white", (20, 30)), (40, 0))  # at the bottom, upright
    save(turned, tmp_path / "photos" / "a" / "turned.jpg", exif=exif, quality=95)
    save(Image.fromarray(np.full((30, 30), 40_000, np.uint16)), tmp_path / "photos" / "a" / "deep.png")
    save(Image.new("RGBA", (30, 30), (0, 0, 0, 0)), tmp_path / "photos" / "b" / "clear.png")
    save(Image.new("L", (300, 10), 90), tmp_path / "photos" / "b" / "wide.png")
    none = ("data.val_fraction=0", "data.test_fraction=0", "format=png", "size=15")
    script("crop", "data=folder", "data.root=photos", "output=out", *none, cwd=tmp_path)
    crops = {path.stem: np.asarray(Image.open(path)).astype(int) for path in image_files(tmp_path / "out")}
    assert {name: pixels.shape for name, pixels in crops.items()} == {
        "turned": (30, 15, 3),
        "deep": (15, 15, 3),
        "clear": (15, 15, 3),
        "wide": (10, 300, 3),  # never enlarged
    }
    assert crops["turned"][-5:].min(2).mean() > 150 > 100 > crops["turned"][:15].min(2).mean()
    assert np.abs(crops["deep"] - 40_000 / 257).max() < 1
    assert crops["clear"].min() == 255


@pytest.mark.parametrize("size", ["null", "1000"])
def test_as_large_as_they_are(folder: Path, tmp_path: Path, size: str) -> None:
    script("crop", "data=folder", f"data.root={folder}", "output=out", f"size={size}", "data.channels=1", cwd=tmp_path)
    image = Image.open(tmp_path / "out" / listed(tmp_path / "out")[0]["path"])
    assert (image.size, image.mode, image.format) == ((48, 40), "L", "JPEG")


def test_images_that_are_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = "classifier.data.modules.ArraysDataModule"
    monkeypatch.setattr("classifier.data.modules.ArraysDataModule", ArraysDataModule, raising=False)
    arguments = (f"data._target_={target}", "data=folder", "data.root=arrays", "output=out", "data.check=none")
    result = script("crop", *arguments, "format=png", cwd=tmp_path)
    assert "'a/b' as a_b" in result.out
    found = opened(tmp_path / "out")
    assert found.classes == ("a_b", "c")
    with Image.open(tmp_path / "out" / "train" / "a_b" / "photos_4.png") as image:
        assert image.size == (24, 40)
        assert np.asarray(image).max() == 80
    assert "images that are no files of their own" in refusal("split", *arguments[:-2], "output=o", cwd=tmp_path)


def test_without_parts_as_folders(annotated: Path, tmp_path: Path) -> None:
    result = script("crop", *boxes(annotated, "by_split=false"), cwd=tmp_path)
    assert "data.split_file=out/split.csv" in result.out
    found = opened(tmp_path / "out", split_file=str(tmp_path / "out" / "split.csv"))
    assert (tmp_path / "out" / "red" / "red_000_1.jpg").is_file()
    assert {part: len(rows) for part, rows in found.split.items()} == {"train": 42, "val": 6, "test": 12}


def test_killed_and_run_again(tmp_path: Path) -> None:
    generate.image_folder(tmp_path / "photos", ("blue", "red"), 4)
    large = picture("red", (500, 400))  # large enough to be met in the middle
    for number in range(24):
        save(large, tmp_path / "photos" / "red" / f"large_{number}.jpg")
    arguments = ("data=folder", "data.root=photos", "data.num_workers=1", "format=png", "size=null")
    process = start("crop", *arguments, "output=killed", cwd=tmp_path, folder="scripts")
    while len(list(image_files(tmp_path / "killed"))) < 5 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    finished = list(image_files(tmp_path / "killed"))
    assert 5 <= len(finished) < 32
    for path in finished:
        Image.open(path).load()  # whole
    times = {path: path.stat().st_mtime_ns for path in finished}
    script("crop", *arguments, "output=killed", cwd=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in finished} == times
    script("crop", *arguments, "data.num_workers=2", "output=whole", cwd=tmp_path)
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_other_settings_are_refused_or_redone(annotated: Path, tmp_path: Path) -> None:
    script("crop", *boxes(annotated, "size=20"), cwd=tmp_path)
    for change in ("quality=50", "data.margin=0.3"):
        message = refusal("crop", *boxes(annotated, "size=20", change), cwd=tmp_path)
        assert "60 images that were made from something else or with other settings" in message
        assert "use overwrite=true" in message
    assert "60 images that do not belong" in refusal("crop", *boxes(annotated, "format=png"), cwd=tmp_path)
    script("crop", *boxes(annotated, "size=10", "overwrite=true"), cwd=tmp_path)
    assert {Image.open(path).size for path in image_files(tmp_path / "out")} == {(10, 10)}
    assert "0 written, 60 were there" in script("crop", *boxes(annotated, "size=10"), cwd=tmp_path).out


def test_stopped_by_ctrl_c(annotated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("classifier.tools.folders.decode", stop)
    result = run("crop", *boxes(annotated), cwd=tmp_path, folder="scripts")
    assert (result.code, result.err.splitlines()[-1]) == (130, "stopped")


def test_a_size_that_is_none(annotated: Path, tmp_path: Path) -> None:
    message = refusal("crop", *boxes(annotated, "size=big"), cwd=tmp_path)
    assert message == "size=big must be a whole number of at least 1"


def test_nothing_is_written_into_the_data(annotated: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(annotated)
    message = refusal("crop", *boxes(annotated, "output=link/images/crops"), cwd=tmp_path)
    assert "lies in the data folder" in message
