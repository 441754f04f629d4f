from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from benchmarks.photos import photo
from classifier.tools.image_facts import THUMBNAIL, image_facts
from classifier.tools.near_duplicates import near_duplicates


def thumbnails(images: list[Image.Image]) -> np.ndarray:
    return np.concatenate([image_facts(np.array(image)).thumbnails for image in images])


def groups(images: list[Image.Image]) -> list[list[int]]:
    return [group.tolist() for group in near_duplicates(thumbnails(images), np.arange(len(images)), workers=2)]


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
    assert [group.tolist() for group in near_duplicates(pixels, np.array([0, 0, 1, 1]))] == [[0, 1, 2, 3]]
    assert near_duplicates(pixels, np.zeros(4, np.int64)) == near_duplicates(pixels[:0], np.zeros(0, np.int64)) == []


def test_many_that_are_all_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two resting cameras: of their pairs only a few are kept."""
    monkeypatch.setattr("classifier.tools.near_duplicates.PAIRS", 1 << 18)  # in several blocks
    random = np.random.default_rng(3)
    scenes = thumbnails([photo(random, (120, 90)) for _ in range(2)]).astype(np.float64)
    frames = scenes[np.arange(1500) % 2] + random.normal(0, 1, (1500, THUMBNAIL, THUMBNAIL))
    found = near_duplicates(frames.clip(0, 255).astype(np.uint8), np.arange(1500), workers=2)
    assert [group.tolist() for group in found] == [list(range(0, 1500, 2)), list(range(1, 1500, 2))]
