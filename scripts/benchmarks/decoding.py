"""File to uint8 image on one core: random crops out of boxes of small photos, and out of whole large ones."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from timm.data import create_transform
from torchvision.transforms import PILToTensor, RandomResizedCrop

from benchmarks.photos import LARGE, SMALL, Photo, bits_per_pixel, make_photos
from benchmarks.timing import Result, results, table, take_turns
from classifier.data import jpeg
from classifier.data.loader import Item, collate
from classifier.data.transforms import Augmentation, Preprocessing

BATCH = 50
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # torchvision's defaults
REFERENCE = "torchvision (reference)"
LIMIT = "libjpeg-turbo, full decode"

simplejpeg = jpeg.simplejpeg  # the pipelines below switch it off and on

Pipeline = Callable[[Photo], torch.Tensor | None]
"""Reads a photo as uint8 (3, S, S), which is then stacked to batches; None where there is nothing to stack."""


def measure(folder: Path, count: int, large: int, rounds: int, only: Sequence[str], console: Console) -> list[Result]:
    """Photos of 500x375 to 224, 128 and 64 pixels, and of 12 megapixels to 224.

    Args:
        folder: Where the photos are made.
        count, large: Number of small and of large photos.
        only: Pipelines with one of these words in their names; empty for all.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    cases = [(SMALL, count, size) for size in (224, 128, 64)] + [(LARGE, large, 224)]
    found: list[Result] = []
    for stored, number, size in cases:
        if not number:
            continue
        photos = make_photos(folder, number, stored)
        runs = {
            name: over(photos, read)
            for name, read in pipelines(size).items()
            if name in (REFERENCE, LIMIT) or not only or any(word in name for word in only)
        }
        case = f"{stored[0]}x{stored[1]} to {size}"
        lines = results(case, take_turns(runs, rounds, console, case), REFERENCE, LIMIT)
        bits = bits_per_pixel(photos, stored)
        console.print(table(f"{case}, one core: {number} JPEGs, {bits:.1f} bits a pixel, {rounds} rounds", lines))
        found += lines
    jpeg.simplejpeg = simplejpeg
    torch.set_num_threads(threads)
    return found


def over(photos: Sequence[Photo], read: Pipeline) -> Callable[[int], int]:
    """A run over all photos, in batches."""

    def run(number: int) -> int:
        torch.manual_seed(number)
        for first in range(0, len(photos), BATCH):
            images = [image for photo in photos[first : first + BATCH] if (image := read(photo)) is not None]
            if images:
                collate([Item(image=image, label=0, index=0) for image in images])
        return len(photos)

    return run


def pipelines(size: int) -> dict[str, Pipeline]:
    """Name -> pipeline that gives random crops of `size`; the first one is the reference."""
    found: dict[str, Pipeline] = {REFERENCE: torchvision_v1(size), "timm": timm_transform(size)}
    found["this project, Pillow"] = this_project(size, None)
    if simplejpeg is not None:
        found["this project, simplejpeg"] = this_project(size, simplejpeg)
        found[LIMIT] = full_decode()
    return found


def torchvision_v1(size: int) -> Pipeline:
    """As in torchvision's references for classification, but for the flip and the conversion to float."""
    crop, to_tensor = RandomResizedCrop(size, SCALE, RATIO), PILToTensor()
    return lambda photo: to_tensor(crop(open_rgb(photo)))


def timm_crops(size: int) -> Callable[[Image.Image], Any]:
    """Its transforms for training with a prefetcher, which takes uint8, without colour jitter and flips."""
    transform: Callable[[Image.Image], Any] = create_transform(
        size, is_training=True, use_prefetcher=True, scale=SCALE, ratio=RATIO, hflip=0.0, color_jitter=0.0,
        interpolation="bilinear",
    )  # fmt: skip
    return transform


def timm_transform(size: int) -> Pipeline:
    transform = timm_crops(size)

    def read(photo: Photo) -> torch.Tensor:
        pixels = transform(open_rgb(photo))
        return pixels if isinstance(pixels, torch.Tensor) else torch.from_numpy(pixels)

    return read


def this_project(size: int, decoder: object) -> Pipeline:
    augment = Augmentation(Preprocessing((size, size)), {"scale": SCALE, "ratio": RATIO})

    def read(photo: Photo) -> torch.Tensor:
        jpeg.simplejpeg = decoder
        return augment(photo.path, photo.box)

    return read


def full_decode() -> Pipeline:
    """What the decoder itself takes, with the file in memory: a rate to measure the others against."""
    files: dict[Path, bytes] = {}

    def read(photo: Photo) -> None:
        if photo.path not in files:
            files[photo.path] = photo.path.read_bytes()
        simplejpeg.decode_jpeg(files[photo.path])

    return read


def open_rgb(photo: Photo) -> Image.Image:
    with Image.open(photo.path) as file:
        image = file.convert("RGB")
    return image.crop(photo.box) if photo.box else image
