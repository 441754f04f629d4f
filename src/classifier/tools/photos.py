"""Pictures that a codec and a hash meet as they meet photographs, for tests and measurements."""

from pathlib import Path

import numpy as np
from PIL import Image


def photo(random: np.random.Generator, size: tuple[int, int] = (500, 375)) -> Image.Image:
    """A picture of `size` (width, height): surfaces with edges between them, and detail at every scale.

    The spectrum falls about as 1 / frequency, as that of photographs does; a JPEG of quality 85 has 0.35 bytes a pixel.
    Source: D. J. Field, Relations between the statistics of natural images and the response properties of cortical
    cells, JOSA A 4 (12), 1987.
    """
    width, height = size
    falloff = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    falloff[0, 0] = 1
    noise = np.fft.rfft2(random.normal(size=(3, height, width)))
    detail = np.fft.irfft2(noise / falloff**1.15, (height, width))
    detail /= detail.std(axis=(1, 2), keepdims=True)
    # brightness varies more than colour
    pixels = 0.9 * detail[:1] + 0.25 * detail
    rows, columns = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    for _ in range(5):  # edges of things
        angle, offset = random.uniform(0, 2 * np.pi), random.normal(0, 0.3)
        side = (columns - 0.5) * np.cos(angle) + (rows - 0.5) * np.sin(angle) > offset
        pixels += side * random.normal(0, 0.5, (3, 1, 1))
    shown = 128 + 45 * (pixels - pixels.mean())
    return Image.fromarray(np.clip(shown, 0, 255).astype(np.uint8).transpose(1, 2, 0))


def photos(
    folder: Path, count: int, size: tuple[int, int] = (500, 375), quality: int = 85, seed: int = 0
) -> list[Path]:
    """Write `count` of them as folder/<number>.jpg."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    paths = [folder / f"{number:05d}.jpg" for number in range(count)]
    for path in paths:
        photo(random, size).save(path, quality=quality)
    return paths
