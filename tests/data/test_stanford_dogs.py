import hashlib
import io
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from classifier.data.modules import StanfordDogsDataModule
from classifier.data.samples import SPLITS
from classifier.data.stanford_dogs import StanfordDogsSource, breed
from classifier.errors import UserError
from tests import generate
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


def module(root: Path, **settings: object) -> StanfordDogsDataModule:
    made = StanfordDogsDataModule(root, download=False, image_size=16, **settings)  # type: ignore[arg-type]
    made.prepare_data()
    made.setup()
    return made


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("n02085620-Chihuahua", "Chihuahua"),
        ("n02107574-Flat-coated_retriever", "Flat-coated_retriever"),
        ("mine", "mine"),
    ],
)
def test_readable_names(folder: str, name: str) -> None:
    assert breed(folder) == name


@pytest.mark.parametrize("split_seed", [0, 1])
def test_the_official_split_is_kept(dogs: Path, split_seed: int) -> None:
    data = module(dogs, val_fraction=0.25, test_fraction=0.5, split_seed=split_seed)
    assert data.classes == NAMES
    assert {name: len(rows) for name, rows in data.split.items()} == {"train": 18, "val": 6, "test": 9}
    for name, rows in data.split.items():
        numbers = [int(Path(data.samples.relative_path(row)).stem.split("_")[1]) for row in rows]
        assert all((number > 8) == (name == "test") for number in numbers)
        assert len(set(np.bincount(data.samples.labels[rows]).tolist())) == 1


def test_the_validation_part_depends_on_the_split_seed_alone(dogs: Path) -> None:
    parts = [
        module(dogs, split_seed=split_seed, seed=seed).split["val"].tolist()
        for split_seed, seed in ((0, 0), (0, 1), (1, 0))
    ]
    assert parts[0] == parts[1] != parts[2]


@pytest.mark.parametrize(("objects", "boxes_of_first"), [("largest", 1), ("first", 1), ("all", 2)])
def test_objects(dogs: Path, objects: str, boxes_of_first: int) -> None:
    samples, problems = StanfordDogsSource(dogs, objects=objects).read()
    assert problems == []
    counts = Counter(samples.relative_path(row) for row in range(len(samples)))
    assert len(counts) == 33
    assert {path: count for path, count in counts.items() if count > 1 or path.endswith("_1.jpg")} == {
        f"Images/{folder}/{folder.split('-')[0]}_1.jpg": boxes_of_first for folder in generate.BREEDS
    }


def test_all_objects_of_an_image_are_in_one_part(dogs: Path) -> None:
    data = module(dogs, objects="all", val_fraction=0.3)
    images = data.samples.image_ids()
    parts = [set(images[rows].tolist()) for rows in data.split.values()]
    assert sum(map(len, parts)) == 33
    assert data.num_classes == 3


def test_a_png_with_alpha_named_jpg_is_read(dogs: Path) -> None:
    data = module(dogs)
    path = dogs / "Images" / generate.BREEDS[-1] / "n02105855_1.jpg"
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "RGBA")
    row = next(row for row in range(len(data.samples)) if data.samples.path(row) == path)
    assert data.samples.box(row) == (20, 30, 80, 80)
    pixels = data.preprocessing(path, data.samples.box(row)).float().mean((1, 2))
    assert torch.allclose(pixels, torch.tensor(generate.COLORS["red"]).float(), atol=12)


def test_labels_are_those_of_the_given_classes(dogs: Path) -> None:
    wanted = ["Shetland_sheepdog", "Pug", "Chihuahua", "Japanese_spaniel"]
    samples, _ = StanfordDogsSource(dogs).read(wanted)
    assert samples.classes == tuple(wanted)
    for row in range(len(samples)):
        assert samples.relative_path(row).split("/")[1].endswith(wanted[samples.labels[row]])
    with pytest.raises(UserError, match="Japanese_spaniel"):
        StanfordDogsSource(dogs).read(["Chihuahua", "Shetland_sheepdog"])


def test_images_that_no_list_names_are_left_out(dogs: Path, tmp_path: Path) -> None:
    root = generate.copy(dogs, tmp_path / "dogs")
    for folder, path in (("Images", "n02085620_99.jpg"), ("Annotation", "n02085620_99")):
        source = root / folder / generate.BREEDS[0] / path.replace("_99", "_1")
        (root / folder / generate.BREEDS[0] / path).write_bytes(source.read_bytes())
    samples, _ = StanfordDogsSource(root).read()
    assert len(samples) == 33
    assert {SPLITS[number] for number in samples.splits} == {"train", "test"}


@pytest.mark.parametrize(("content", "override"), [(None, "data.download=true"), (b"not MATLAB", "train_list.mat")])
def test_a_missing_or_damaged_list(dogs: Path, tmp_path: Path, content: bytes | None, override: str) -> None:
    root = generate.copy(dogs, tmp_path / "dogs")
    (root / "train_list.mat").unlink()
    if content is not None:
        (root / "train_list.mat").write_bytes(content)
    with pytest.raises(UserError, match=override):
        StanfordDogsSource(root).read()


def test_downloaded_once(dogs: Path, tmp_path: Path, server: Server) -> None:
    server.files = archives(dogs)
    root = tmp_path / "data" / "stanford_dogs"

    def prepare() -> StanfordDogsSource:
        source = StanfordDogsSource(root, url=server.url + "/", sha256=checksums(server.files))
        source.prepare()
        return source

    samples, problems = prepare().read()
    assert problems == []
    assert samples.fingerprint() == StanfordDogsSource(dogs).read()[0].fingerprint()
    assert sorted(server.requests) == sorted((name, None) for name in ENTRIES)
    server.requests.clear()
    prepare()
    assert server.requests == []


def test_only_what_is_missing_is_fetched(dogs: Path, tmp_path: Path, server: Server) -> None:
    server.files = archives(dogs)
    root = generate.copy(dogs, tmp_path / "dogs")
    (root / "test_list.mat").unlink()
    StanfordDogsSource(root, url=server.url, sha256=checksums(server.files)).prepare()
    assert server.requests == [("lists.tar", None)]
    assert (root / "test_list.mat").is_file()


def test_other_archives_than_the_official_ones_are_refused(dogs: Path, tmp_path: Path, server: Server) -> None:
    server.files = archives(dogs)
    with pytest.raises(UserError, match=r"images\.tar has the SHA-256"):
        StanfordDogsSource(tmp_path / "dogs", url=server.url).prepare()
    assert not (tmp_path / "dogs" / "Images").exists()


def test_nothing_is_fetched_without_download(tmp_path: Path, server: Server) -> None:
    source = StanfordDogsSource(tmp_path / "dogs", download=False, url=server.url)
    source.prepare()
    assert server.requests == []
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match=r"data\.download=true"):
        source.read()
