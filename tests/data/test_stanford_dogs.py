import hashlib
import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from classifier.data import StanfordDogsDataModule
from classifier.data.samples import fingerprint
from classifier.errors import UserError
from tests import generate
from tests.data.listing import problems
from tests.data.server import Server

NAMES = ("Chihuahua", "Japanese_spaniel", "Shetland_sheepdog")
ENTRIES = {
    "images.tar": ("Images",),
    "annotation.tar": ("Annotation",),
    "lists.tar": ("train_list.mat", "test_list.mat"),
}


def archives(root: Path) -> dict[str, bytes]:
    found = {}
    for name, entries in ENTRIES.items():
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for entry in entries:
                tar.add(root / entry, entry)
        found[name] = buffer.getvalue()
    return found


def checksums(files: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def dogs_at(root: Path, **settings: Any) -> StanfordDogsDataModule:
    return StanfordDogsDataModule(root, download=False, image_size=16, **settings)


def ready(root: Path, **settings: Any) -> StanfordDogsDataModule:
    module = dogs_at(root, **settings)
    module.prepare_data()
    module.setup()
    return module


def test_the_official_split_is_kept(dogs: Path) -> None:
    parts = []
    for split_seed, seed in ((0, 0), (0, 1), (1, 0)):
        data = ready(dogs, val_fraction=0.25, test_fraction=0.5, split_seed=split_seed, seed=seed)
        assert data.classes == NAMES
        assert {part: len(data.rows(part)) for part in data.parts} == {"train": 18, "val": 6, "test": 9}
        for part in data.parts:
            rows = data.samples.iloc[data.rows(part)]
            numbers = rows["path"].str.extract(r"_(\d+)\.jpg$")[0].astype(int)
            assert all((numbers > 8) == (part == "test"))
            assert rows["label"].value_counts().nunique() == 1
        parts.append(data.rows("val").tolist())
    assert parts[0] == parts[1] != parts[2]


@pytest.mark.parametrize(("objects", "boxes_of_first"), [("largest", 1), ("first", 1), ("all", 2)])
def test_objects(dogs: Path, objects: str, boxes_of_first: int) -> None:
    module = ready(dogs, objects=objects, val_fraction=0.3)
    counts = module.samples["path"].value_counts()
    assert len(counts) == 33
    assert {path: count for path, count in counts.items() if count > 1 or str(path).endswith("_1.jpg")} == {
        f"Images/{folder}/{folder.split('-')[0]}_1.jpg": boxes_of_first for folder in generate.BREEDS
    }
    assert module.samples.groupby("path")["split"].nunique().max() == 1  # all boxes of an image are in one part


def test_a_png_with_alpha_named_jpg_is_read(dogs: Path) -> None:
    data = ready(dogs)
    path = dogs / "Images" / generate.BREEDS[-1] / "n02105855_1.jpg"
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "RGBA")
    (row,) = (row for row in range(len(data.samples)) if data.image(row) == path)
    assert data.box(row) == (20, 30, 80, 80)
    pixels = data.preprocessing(path, data.box(row)).float().mean((1, 2))
    assert torch.allclose(pixels, torch.tensor(generate.COLORS["red"]).float(), atol=12)


def test_what_no_list_names_is_left_out_and_what_is_damaged_a_problem(dogs: Path, tmp_path: Path) -> None:
    root = generate.copy(dogs, tmp_path / "dogs")
    for folder, path in (("Images", "n02085620_99.jpg"), ("Annotation", "n02085620_99")):
        source = root / folder / generate.BREEDS[0] / path.replace("_99", "_1")
        (root / folder / generate.BREEDS[0] / path).write_bytes(source.read_bytes())
    damaged = f"Annotation/{generate.BREEDS[0]}/n02085620_2"
    (root / damaged).write_text("<")
    table = dogs_at(root).read()
    assert len(table) == 33
    assert set(table["split"].dropna()) == {"train", "test"}
    assert list(problems(dogs_at(root))) == [damaged]


@pytest.mark.parametrize(("content", "override"), [(None, r"data\.download=true"), (b"not MATLAB", "train_list.mat")])
def test_a_missing_or_damaged_list(dogs: Path, tmp_path: Path, content: bytes | None, override: str) -> None:
    root = generate.copy(dogs, tmp_path / "dogs")
    (root / "train_list.mat").unlink()
    if content is not None:
        (root / "train_list.mat").write_bytes(content)
    with pytest.raises(UserError, match=override):
        dogs_at(root).read()


def test_downloaded_once(dogs: Path, tmp_path: Path, server: Server) -> None:
    server.files = archives(dogs)
    root = tmp_path / "data" / "stanford_dogs"

    def prepared() -> StanfordDogsDataModule:
        module = StanfordDogsDataModule(root, url=server.url + "/", sha256=checksums(server.files))
        module.prepare_data()
        return module

    assert fingerprint(prepared().read()) == fingerprint(dogs_at(dogs).read())
    assert sorted(server.requests) == sorted(ENTRIES)
    server.requests.clear()
    prepared()
    assert server.requests == []
    (root / "test_list.mat").unlink()
    (root / "lists.tar").unlink()
    prepared()
    assert server.requests == ["lists.tar"]
    assert (root / "test_list.mat").is_file()
