from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from benchmarks.photos import photo
from classifier.data import AnnotationCropDataModule, ImageFolderDataModule
from classifier.data.copies import alike, group_augmented, group_copies, warn_of_leaks
from classifier.data.image_facts import THUMBNAIL, image_facts
from classifier.data.loader import Images
from tests import generate
from tests.data.tables import make_table
from tests.generate import save


def thumbnails(images: list[Image.Image]) -> np.ndarray:
    return np.concatenate([image_facts(np.array(image)).thumbnails for image in images])


def groups(images: list[Image.Image]) -> list[list[int]]:
    return [group.tolist() for group in alike(thumbnails(images), np.arange(len(images)), workers=2)]


def recompressed(image: Image.Image) -> Image.Image:
    file = BytesIO()
    image.save(file, "JPEG", quality=30)
    return Image.open(file)


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "recompressed": recompressed,
    "smaller": lambda image: image.resize((image.width // 3, image.height // 3)),
    "larger": lambda image: image.resize((image.width * 2, image.height * 2)),
    "squashed": lambda image: image.resize((100, 100)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "harder": lambda image: ImageEnhance.Contrast(image).enhance(1.2),
    "trimmed": lambda image: image.crop((2, 1, image.width - 1, image.height - 1)),
}


@pytest.mark.parametrize("change", COPIES)
def test_copies_are_found(change: str) -> None:
    random = np.random.default_rng(0)
    originals = [photo(random, (200, 150)) for _ in range(30)]
    found = groups([*originals, *(COPIES[change](image) for image in originals)])
    right = [[index, index + 30] for index in range(30)]
    assert [group for group in found if group not in right] == []
    assert len(found) >= 27


def test_different_photographs_and_blank_ones_are_not() -> None:
    random = np.random.default_rng(1)
    images = [photo(random, (120, 90)) for _ in range(300)]
    images += [Image.new("RGB", (120, 90), (shade, shade, shade)) for shade in range(0, 250, 10)]
    images += [Image.new("RGB", (120, 90), "red"), Image.new("RGB", (120, 90), "red")]
    assert groups(images) == []


def test_related_ones_are_not_compared() -> None:
    image = photo(np.random.default_rng(2), (120, 90))
    pixels = thumbnails([image] * 4)
    assert [group.tolist() for group in alike(pixels, np.array([0, 0, 1, 1]))] == [[0, 1, 2, 3]]
    assert alike(pixels, np.zeros(4, np.int64)) == alike(pixels[:0], np.zeros(0, np.int64)) == []


def test_many_that_are_all_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two resting cameras: of their pairs only a few are kept."""
    monkeypatch.setattr("classifier.data.copies.PAIRS", 1 << 18)  # in several blocks
    random = np.random.default_rng(3)
    scenes = thumbnails([photo(random, (120, 90)) for _ in range(2)]).astype(np.float64)
    frames = scenes[np.arange(1500) % 2] + random.normal(0, 1, (1500, THUMBNAIL, THUMBNAIL))
    found = alike(frames.clip(0, 255).astype(np.uint8), np.arange(1500), workers=2)
    assert [group.tolist() for group in found] == [list(range(0, 1500, 2)), list(range(1, 1500, 2))]


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """root/{cat,dog}: 16 photographs of each, with an equal file and a smaller one of every second."""
    root, random = tmp_path_factory.mktemp("twins") / "photos", np.random.default_rng(4)
    for number in range(32):
        image, place = photo(random, (120, 90)), root / ("cat", "dog")[number % 2]
        save(image, place / f"{number:02d}_a.jpg")
        if number % 4 < 2:
            save(image, place / f"{31 - number:02d}_b.jpg")
            save(image.resize((96, 72)), place / f"{31 - number:02d}_c.jpg")
    return root


def divided(root: Path, **settings: Any) -> dict[str, set[str]]:
    """Of each photograph that has copies, the parts that it and they are in."""
    module = ImageFolderDataModule(root, **settings)
    module.setup()
    parts: dict[str, set[str]] = {}
    for path, part in module.samples[["path", "split"]].itertuples(index=False):
        number = int(path[4:6]) if path.endswith("_a.jpg") else 31 - int(path[4:6])
        parts.setdefault(str(number), set()).add(str(part))
    return {number: found for number, found in parts.items() if int(number) % 4 < 2}


@pytest.mark.parametrize("settings", [{}, {"split_seed": 5}, {"fold": 1, "num_folds": 3}])
def test_copies_stay_on_one_side(twins: Path, settings: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    assert {len(parts) for parts in divided(twins, **settings).values()} != {1}
    assert "data.group_duplicates=true" in caplog.text
    caplog.clear()
    together = divided(twins, group_duplicates=True, **settings)
    assert len(together) == 16
    assert {len(parts) for parts in together.values()} == {1}
    assert {part for parts in together.values() for part in parts} >= {"train", "test"}
    assert "WARNING" not in caplog.text


def test_groups_are_joined(twins: Path, tmp_path: Path) -> None:
    """A copy in another group joins the two; where nothing is a copy, nothing is."""
    names = ["cat/00_a.jpg", "cat/04_a.jpg", "cat/31_b.jpg", "cat/08_a.jpg", "cat/12_a.jpg"]
    table = make_table(names, groups=["p", "p", "q", "q", None])
    groups = group_copies(table, Images.of(table, twins))["group"].tolist()
    assert groups == groups[:1] * 4 + groups[4:] != groups[:1] * 5
    plain = AnnotationCropDataModule(generate.annotated(tmp_path / "plain", per_class=8), group_duplicates=True)
    plain.setup()
    assert "group" not in plain.samples


def test_augmented_copies_are_known_by_their_names(caplog: pytest.LogCaptureFixture) -> None:
    """Those of one photo stay together, and with whatever its group is; a part's folder makes no other photo."""
    photos = ["train/cat/1", "train/cat/2", "val/cat/1", "cat/2", "dog/1", "train/1", "val/1"]
    names = [f"{photo}_jpg.rf.{number:032x}.jpg" for number, photo in enumerate(photos)]
    groups: list[str | None] = [*[None] * 4, "p", None, None, "p"]
    table = make_table([*names, "dog/x.jpg"], groups=groups, splits=["train", *["val"] * 7])
    found = group_augmented(table)["group"].tolist()
    assert [found.index(group) for group in found] == [0, 1, 0, 1, 4, 5, 5, 4]
    plain = table.assign(path=table["path"].str.replace(".rf.", "."))
    assert group_augmented(plain) is plain
    warn_of_leaks(group_augmented(table), Path("none"))
    (message,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert names[0] in message
