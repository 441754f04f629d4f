"""python scripts/crop.py: the samples as class folders, written once, whole and under names of their own."""

import csv
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from classifier.data import AnnotationCropDataModule
from classifier.tools.folders import LONGEST, distinct, safe_name
from tests import generate
from tests.generate import picture, save
from tests.tools.parts import files, opened, parts, refusal, script
from tests.verbs.command import start

PHOTOS = ("data=folder", "data.root=photos", "output=out")


def boxes(annotated: Path, *arguments: str) -> tuple[str, ...]:
    return ("data=annotation_crop", f"data.root={annotated}", "output=out", "data.num_workers=2", *arguments)


def listed(output: Path) -> list[dict[str, str]]:
    with (output / "split.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def images(output: Path) -> list[Path]:
    return [output / line["path"] for line in listed(output)]


def test_boxes_become_a_folder_with_the_same_parts(annotated: Path, tmp_path: Path) -> None:
    result = script("crop", *boxes(annotated, "format=png", "size=20", "data.fold=2"), cwd=tmp_path)
    assert "60 written, 0 were there" in result.out
    assert "data=folder data.root=out" in result.out
    found = opened(tmp_path / "out")
    assert found.classes == ("blue", "green", "red")
    wanted = AnnotationCropDataModule(annotated, fold=2)
    wanted.setup()
    assert [(line["split"], line["source"]) for line in listed(tmp_path / "out")] == [
        (part, path) for part in wanted.parts for path in wanted.samples["path"][wanted.rows(part)]
    ]
    assert sorted(line["path"] for line in listed(tmp_path / "out")) == sorted(found.samples["path"])
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
    script("crop", *PHOTOS, "data.val_fraction=0", "data.test_fraction=0", "format=png", "size=15", cwd=tmp_path)
    crops = {path.stem: np.asarray(Image.open(path)).astype(int) for path in images(tmp_path / "out")}
    shapes = {"turned": (30, 15, 3), "deep": (15, 15, 3), "clear": (15, 15, 3), "wide": (10, 300, 3)}
    assert {name: pixels.shape for name, pixels in crops.items()} == shapes  # never enlarged
    assert crops["turned"][-5:].min(2).mean() > 150 > 100 > crops["turned"][:15].min(2).mean()
    assert np.abs(crops["deep"] - 40_000 / 257).max() < 1
    assert crops["clear"].min() == 255


def test_images_that_are_not_files(tmp_path: Path) -> None:
    pixels = np.full((12, 40, 24), 20, np.uint8) * np.arange(12, dtype=np.uint8)[:, None, None]
    (tmp_path / "arrays").mkdir()
    np.save(tmp_path / "arrays" / "X_train.npy", pixels)
    np.save(tmp_path / "arrays" / "Y_train.npy", np.array(["a/b", "c"] * 6))
    result = script("crop", "data=arrays", "data.root=arrays", "output=out", "format=png", cwd=tmp_path)
    assert "'a/b' as a_b" in result.out
    assert opened(tmp_path / "out").classes == ("a_b", "c")
    (path,) = (tmp_path / "out").rglob("00004.png")
    np.testing.assert_array_equal(np.asarray(Image.open(path))[..., 0], pixels[4])


def test_without_parts_as_folders(annotated: Path, tmp_path: Path) -> None:
    result = script("crop", *boxes(annotated, "by_split=false"), cwd=tmp_path)
    assert "data.split_file=out/split.csv" in result.out
    found = opened(tmp_path / "out", split_file=str(tmp_path / "out" / "split.csv"))
    assert (tmp_path / "out" / "red" / "red_000_1.jpg").is_file()
    assert {part: len(found.rows(part)) for part in found.parts} == {"train": 42, "val": 6, "test": 12}


@pytest.mark.slow
def test_killed_and_run_again(tmp_path: Path) -> None:
    generate.image_folder(tmp_path / "photos", ("blue", "red"), 4)
    large = picture("red", (500, 400))  # large enough to be killed in the middle of one
    for number in range(16):
        save(large, tmp_path / "photos" / "red" / f"large_{number}.jpg")
    arguments = (*PHOTOS[:2], "data.num_workers=1", "format=png", "size=null")
    process = start("../scripts/crop", *arguments, "output=killed", cwd=tmp_path)
    while len(list((tmp_path / "killed").rglob("[!.]*.png"))) < 3 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    finished = list((tmp_path / "killed").rglob("[!.]*.png"))
    assert 3 <= len(finished) < 24
    for path in finished:
        Image.open(path).load()  # whole
    assert f" {len(finished)} were there" in script("crop", *arguments, "output=killed", cwd=tmp_path).out
    script("crop", *arguments, "data.num_workers=2", "output=whole", cwd=tmp_path)
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


@pytest.mark.slow
def test_other_settings_are_refused_or_redone(annotated: Path, tmp_path: Path) -> None:
    script("crop", *boxes(annotated, "size=20"), cwd=tmp_path)
    before = files(tmp_path / "out")
    for change in ("quality=50", "data.margin=0.3"):
        assert "overwrite=true" in refusal("crop", *boxes(annotated, "size=20", change), cwd=tmp_path)
    assert "output=out" in refusal("crop", *boxes(annotated, "format=png"), cwd=tmp_path)
    assert "output=out" in refusal("crop", *boxes(annotated, "size=20", "data.fold=0", "overwrite=true"), cwd=tmp_path)
    assert files(tmp_path / "out") == before
    script("crop", *boxes(annotated, "size=10", "overwrite=true"), cwd=tmp_path)
    assert {Image.open(path).size for path in images(tmp_path / "out")} == {(10, 10)}
    first = images(tmp_path / "out")[0]
    first.unlink()
    first.symlink_to("nowhere")
    assert "1 written, 59 were there" in script("crop", *boxes(annotated, "size=10"), cwd=tmp_path).out
    assert "0 written, 60 were there" in script("crop", *boxes(annotated, "size=10"), cwd=tmp_path).out
    (tmp_path / "out" / "split.csv").unlink()  # then what is there may be anything
    assert "overwrite=true" in refusal("crop", *boxes(annotated, "size=10"), cwd=tmp_path)


def test_equal_names_and_odd_ones(tmp_path: Path) -> None:
    for sub in ("a", "b", "c"):
        for name in ("cats", "dogs and:birds*"):
            save(picture("red"), tmp_path / "photos" / "train" / name / sub / "1.jpg")
    save(picture("red"), tmp_path / "photos" / "test" / "cats" / "1.jpg")
    result = script("crop", *PHOTOS, "data.val_fraction=0", cwd=tmp_path)
    assert "'dogs and:birds*' as dogs and_birds_" in result.out
    assert "data=folder data.root=out data.val_fraction=0" in result.out  # else a part would be cut for validation
    assert parts(opened(tmp_path / "out", val_fraction=0)) == {
        "train": sorted(f"{name}/{file}.jpg" for name in ("cats", "dogs and_birds_") for file in ("1", "1_2", "1_3")),
        "test": ["cats/1.jpg"],
    }
    assert [line["source"] for line in listed(tmp_path / "out")[:2]] == ["train/cats/a/1.jpg", "train/cats/b/1.jpg"]


def test_safe_names() -> None:
    names = ["dog", "Dr. Who 100%", "犬", "a/b\\c:d", "../up", ".hidden", "dot.", " blank\n", "", "..", "ü" * 150]
    wanted = ["dog", "Dr. Who 100%", "犬", "a_b_c_d", "_._up", "_hidden", "dot_", "blank_", "_", "__"]
    assert [safe_name(name) for name in names] == [*wanted, "ü" * (LONGEST // 2)]  # cut between characters


def test_distinct_names() -> None:
    found = distinct(pd.Series(["1", "1", "1_2", "1", "e\u0301", "é", "X", "x"])).tolist()
    assert found == ["1", "1_2", "1_2_2", "1_3", "e\u0301", "é_2", "X", "x_2"]
    assert distinct(pd.Series(["a", "a", "a_2", "a_2"])).is_unique
    assert distinct(pd.Series(["x"] * 20_000)).iloc[-1] == "x_20000"  # in linear time


def test_refusals(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    generate.copy(folder, tmp_path / "photos")
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    cases = {
        ("output=photos/out",): "output=photos/out",
        ("output=link/crops",): "output=link/crops",
        ("output=.",): "output=.",
        ("output=file",): "output=...",
        ("output=out", "format=gif"): "format=gif",
        ("output=out", "size=big", "overwrite=maybe"): "size=big",
        (): "output=...",
    }
    for arguments, said in cases.items():
        assert said in refusal("crop", "data=folder", "data.root=photos", *arguments, cwd=tmp_path)
    assert not (tmp_path / "out").exists()
