"""Pictures that a codec and a hash meet as they meet photographs."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw

from classifier.data.image import Box
from classifier.data.loader import Images

SMALL, LARGE = (500, 375), (4000, 3000)
# amplitude falls as 1 / frequency ** slope: with these, a pixel takes as many bits as in photographs
SLOPES = {LARGE: 1.3}
SLOPE = 1.65


@dataclass(frozen=True)
class Photo:
    """An image file, and the part of it that is a sample."""

    path: Path
    box: Box | None


def photo(random: np.random.Generator, size: tuple[int, int] = SMALL) -> Image.Image:
    """1/f noise, as photographs have it, with shapes; `size` is (width, height).

    At quality 90 a JPEG of 500x375 has about 1.8 bits a pixel.
    Source: D. J. Field, Relations between the statistics of natural images and the response properties of cortical
    cells, JOSA A 4 (12), 1987.
    """
    width, height = size

    def noise(shrink: int, slope: float) -> Image.Image:
        shape = (height // shrink, width // shrink)
        frequency = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None])
        frequency[0, 0] = np.inf
        values = np.fft.irfft2(np.fft.rfft2(random.standard_normal(shape)) / frequency**slope, shape)
        return Image.fromarray(np.clip(128 + 45 * values / values.std(), 0, 255).astype(np.uint8))

    colors = [noise(4, 1.5).resize(size) for _ in range(2)]
    image = Image.merge("YCbCr", (noise(1, SLOPES.get(size, SLOPE)), *colors)).convert("RGB")
    draw = ImageDraw.Draw(image, "RGBA")
    for _ in range(25):
        x, y = random.integers(0, size).tolist()
        radius = int(random.integers(width // 40, width // 6))
        around = (x - radius, y - radius // 2, x + radius, y + radius // 2)
        color = (*random.integers(0, 256, 3).tolist(), int(random.integers(40, 200)))
        (draw.ellipse if random.random() < 0.5 else draw.rectangle)(around, fill=color)
    return image


def make_photos(folder: Path, count: int, size: tuple[int, int] = SMALL) -> list[Photo]:
    """`count` JPEGs of quality 90 in folder/<size>, made where they are not there yet, in two class folders.

    Small ones have a box of half to four fifths of their area.
    """
    width, height = size
    made = []
    for seed in range(count):
        path = folder / f"{width}x{height}" / "ab"[seed % 2] / f"{seed:05d}.jpg"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            photo(np.random.default_rng(seed), size).save(path, quality=90, subsampling="4:2:0")
        random = np.random.default_rng(seed)
        side = random.uniform(0.5, 0.8) ** 0.5
        w, h = int(width * side), int(height * side)
        x, y = random.integers(0, (width - w + 1, height - h + 1)).tolist()
        made.append(Photo(path, (x, y, x + w, y + h) if size == SMALL else None))
    return made


def images_of(root: Path, paths: list[str]) -> Images:
    """Samples of one class."""
    return Images(root, pa.array(paths), np.zeros(len(paths), dtype=np.int64))


def bits_per_pixel(photos: list[Photo], size: tuple[int, int]) -> float:
    """Of the files."""
    return sum(photo.path.stat().st_size for photo in photos) * 8 / (len(photos) * size[0] * size[1])
