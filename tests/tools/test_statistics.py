import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.generate import picture, save
from tests.tools.parts import opened, refusal, script


def measured(root: Path, tmp_path: Path, *arguments: str, data: str = "folder") -> dict[str, Any]:
    path = tmp_path / "found" / "statistics.json"
    settings = (f"data={data}", f"data.root={root}", "data.image_size=32", f"json={path}", "data.num_workers=0")
    script("data_statistics", *settings, *arguments, cwd=tmp_path)
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def test_as_numpy_on_all_pixels_at_once(folder: Path, tmp_path: Path) -> None:
    found = measured(folder, tmp_path)
    datamodule = opened(folder, image_size=32, num_workers=0, batch_size=1000, interpolation="bicubic")
    (batch,) = datamodule.eval_dataloader("train")
    pixels = batch["image"].numpy().astype(np.float64) / 255
    np.testing.assert_allclose(found["mean"], pixels.mean((0, 2, 3)), rtol=0, atol=1e-6)
    np.testing.assert_allclose(found["std"], pixels.std((0, 2, 3)), rtol=0, atol=1e-6)
    # the usual mistake is off by far more than that
    assert abs(pixels.std((2, 3)).mean() - pixels.std((0, 2, 3)).mean()) > 0.05
    assert found["images"] == len(pixels) == 42
    assert found["classes"] == {name: {"train": 14, "val": 2, "test": 4} for name in ("blue", "green", "red")}
    assert len(measured(folder, tmp_path, "data.channels=1", "data.num_workers=2")["mean"]) == 1


def test_sizes_are_of_upright_images_and_of_boxes(annotated: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        for number in range(3):
            image = picture("red", (60, 20))
            exif = image.getexif()
            exif[0x0112] = 6  # lies on its side
            save(image, tmp_path / "photos" / name / f"{number}.jpg", exif=exif)
    sizes = measured(tmp_path / "photos", tmp_path, "data.val_fraction=0")["sizes"]
    assert sizes["width"] == {"min": 20, "median": 20, "max": 20}
    assert sizes["height"] == {"min": 60, "median": 60, "max": 60}
    assert sizes["aspect"]["median"] == pytest.approx(1 / 3)
    assert measured(annotated, tmp_path, data="annotation_crop")["sizes"]["width"]["max"] == 30


def test_what_is_printed(tmp_path: Path) -> None:
    for name in [*(f"class_{number}" for number in range(50)), "[bold]x", "y" * 100]:
        for number in range(3):
            save(picture("blue", (8, 8)), tmp_path / "photos" / name / f"{number}.png")
    arguments = ("data.root=photos", "data.image_size=8", "data.num_workers=0", "data.batch_size=100")
    result = script("data_statistics", *arguments, cwd=tmp_path)
    assert re.search(r'^"model.mean=\[[\d.]+,[\d.]+,[\d.]+\]" "model.std=\[[\d.]+,[\d.]+,[\d.]+\]"$', result.out, re.M)
    assert "[bold]x" in result.out
    assert "all 52 classes" in result.out
    assert result.out.count("class_") < 40


def test_refusals(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "split.csv").write_text("path,split\nred/000.jpg,test\n")
    root = f"data.root={folder}"
    assert "data.split_file=..." in refusal("data_statistics", root, "data.split_file=split.csv", cwd=tmp_path)
    assert "json=" in refusal("data_statistics", root, f"json={folder}/statistics.json", cwd=tmp_path)
    assert "seed=-1" in refusal("data_statistics", root, "seed=-1", cwd=tmp_path)
