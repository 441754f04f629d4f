"""How fast this project is on this machine, as ratios to the usual ways of doing the same.

python scripts/benchmark.py data        files to uint8 batches, on one core
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import PIL
import timm
import torch
import torchvision
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table
from timm.data import create_transform
from torchvision.transforms import PILToTensor, RandomResizedCrop

from classifier.data import jpeg
from classifier.data.decode import Box
from classifier.data.transforms import Augmentation, Preprocessing

BATCH = 50
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # torchvision's defaults
SMALL, LARGE = (500, 375), (4000, 3000)
# amplitude falls as 1 / frequency ** slope: with these, a pixel takes as many bits as in photographs
SLOPES = {SMALL: 1.65, LARGE: 1.3}
REFERENCE = "torchvision (reference)"
LIMIT = "libjpeg-turbo, full decode"

simplejpeg = jpeg.simplejpeg  # the pipelines below switch it off and on


@dataclass(frozen=True)
class Row:
    """An image file, and the part of it that is a sample."""

    path: Path
    box: Box | None


@dataclass(frozen=True)
class Result:
    """One line of the table."""

    source: str
    pipeline: str
    images_per_second: float
    ratio: float
    share_of_decoder: float | None


Pipeline = Callable[[Row], torch.Tensor | None]
"""Reads a row as uint8 (3, S, S), which is then stacked to batches; None where there is nothing to stack."""


def pipelines(size: int) -> dict[str, Pipeline]:
    """Name -> pipeline that gives random crops of `size`; the first one is the reference."""
    found: dict[str, Pipeline] = {REFERENCE: torchvision_v1(size), "timm": timm_transform(size)}
    found["this project, Pillow"] = this_project(size, None)
    if simplejpeg is not None:
        found["this project, simplejpeg"] = this_project(size, simplejpeg)
        found[LIMIT] = full_decode()
    return found


def torchvision_v1(size: int) -> Pipeline:
    crop, to_tensor = RandomResizedCrop(size, SCALE, RATIO), PILToTensor()
    return lambda row: to_tensor(crop(open_rgb(row)))


def timm_transform(size: int) -> Pipeline:
    """Its transforms for training with a prefetcher, which takes uint8, without colour jitter and flips."""
    transform = create_transform(
        size,
        is_training=True,
        use_prefetcher=True,
        scale=SCALE,
        ratio=RATIO,
        hflip=0.0,
        color_jitter=None,
        interpolation="bilinear",
    )

    def read(row: Row) -> torch.Tensor:
        pixels = transform(open_rgb(row))
        return pixels if isinstance(pixels, torch.Tensor) else torch.from_numpy(pixels)

    return read


def this_project(size: int, decoder: object) -> Pipeline:
    augment = Augmentation(Preprocessing((size, size)), {"scale": SCALE, "ratio": RATIO})

    def read(row: Row) -> torch.Tensor:
        jpeg.simplejpeg = decoder
        return augment(row.path, row.box)

    return read


def full_decode() -> Pipeline:
    """What the decoder itself takes, with the file in memory: a rate to measure the others against."""
    files: dict[Path, bytes] = {}

    def read(row: Row) -> None:
        if row.path not in files:
            files[row.path] = row.path.read_bytes()
        simplejpeg.decode_jpeg(files[row.path])

    return read


def open_rgb(row: Row) -> Image.Image:
    with Image.open(row.path) as file:
        image = file.convert("RGB")
    return image.crop(row.box) if row.box else image


def photo(width: int, height: int, seed: int) -> Image.Image:
    """1/f noise, as photographs have it, with shapes."""
    random = np.random.default_rng(seed)

    def noise(shrink: int, slope: float) -> np.ndarray:
        shape = (height // shrink, width // shrink)
        frequency = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None])
        frequency[0, 0] = np.inf
        values = np.fft.irfft2(np.fft.rfft2(random.standard_normal(shape)) / frequency**slope, shape)
        return np.clip(128 + 45 * values / values.std(), 0, 255).astype(np.uint8)

    luma = Image.fromarray(noise(1, SLOPES[width, height]))
    colors = [Image.fromarray(noise(4, 1.5)).resize((width, height)) for _ in range(2)]
    image = Image.merge("YCbCr", (luma, *colors)).convert("RGB")
    draw = ImageDraw.Draw(image, "RGBA")
    for _ in range(25):
        x, y = random.integers(0, (width, height)).tolist()
        radius = int(random.integers(width // 40, width // 6))
        around = (x - radius, y - radius // 2, x + radius, y + radius // 2)
        color = (*random.integers(0, 256, 3).tolist(), int(random.integers(40, 200)))
        (draw.ellipse if random.random() < 0.5 else draw.rectangle)(around, fill=color)
    return image


def make_rows(folder: Path, count: int, size: tuple[int, int]) -> list[Row]:
    """`count` JPEGs of quality 90 in `folder`, made where they are not there yet; boxes for the small ones."""
    width, height = size
    rows = []
    for seed in range(count):
        path = folder / f"{width}x{height}" / f"{seed:04d}.jpg"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            photo(width, height, seed).save(path, quality=90, subsampling="4:2:0")
        box = None
        if size == SMALL:
            random = np.random.default_rng(seed)
            side = random.uniform(0.5, 0.8) ** 0.5  # half to four fifths of the area
            w, h = int(width * side), int(height * side)
            x, y = random.integers(0, (width - w + 1, height - h + 1)).tolist()
            box = (x, y, x + w, y + h)
        rows.append(Row(path, box))
    return rows


def bits_per_pixel(rows: Sequence[Row], size: tuple[int, int]) -> float:
    return sum(row.path.stat().st_size for row in rows) * 8 / (len(rows) * size[0] * size[1])


def seconds_per_image(candidates: Mapping[str, Pipeline], rows: Sequence[Row], rounds: int) -> dict[str, list[float]]:
    """Name -> seconds in each round. The pipelines take turns, so that a busy machine slows all of them."""
    for read in candidates.values():
        read(rows[0])  # what is done once only
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds):
        for name, read in candidates.items():
            torch.manual_seed(number)
            start = time.perf_counter()
            for first in range(0, len(rows), BATCH):
                images = [image for row in rows[first : first + BATCH] if (image := read(row)) is not None]
                if images:
                    torch.stack(images)
            seconds[name].append((time.perf_counter() - start) / len(rows))
    return seconds


def results(source: str, seconds: Mapping[str, Sequence[float]]) -> list[Result]:
    """Medians over the rounds; ratios are taken within a round."""

    def times_faster(name: str, than: str) -> float:
        return statistics.median(other / own for own, other in zip(seconds[name], seconds[than], strict=True))

    return [
        Result(
            source,
            name,
            images_per_second=1 / statistics.median(found),
            ratio=times_faster(name, REFERENCE),
            share_of_decoder=times_faster(name, LIMIT) if LIMIT in seconds else None,
        )
        for name, found in seconds.items()
    ]


def benchmark_data(arguments: argparse.Namespace, folder: Path, console: Console) -> list[Result]:
    """Random crops out of boxes of small photos, and out of whole large ones."""
    torch.set_num_threads(1)
    cases = [(SMALL, arguments.images, size) for size in (224, 128, 64)] + [(LARGE, arguments.large, 224)]
    found: list[Result] = []
    for stored, count, size in cases:
        if not count:
            continue
        rows = make_rows(folder, count, stored)
        candidates = {
            name: read
            for name, read in pipelines(size).items()
            if name in (REFERENCE, LIMIT) or not arguments.only or any(part in name for part in arguments.only)
        }
        source = f"{stored[0]}x{stored[1]} to {size}"
        lines = results(source, seconds_per_image(candidates, rows, arguments.rounds))
        note = f"{count} JPEGs, {bits_per_pixel(rows, stored):.1f} bits a pixel, medians of {arguments.rounds} rounds"
        console.print(table(f"{source}: {note}", lines))
        found += lines
    return found


def table(title: str, lines: Sequence[Result]) -> Table:
    made = Table(title=title, title_justify="left")
    for column in ("pipeline", "images/s", "x reference", "of full decode"):
        made.add_column(column, justify="left" if column == "pipeline" else "right")
    for line in lines:
        share = "" if line.share_of_decoder is None else f"{line.share_of_decoder:.0%}"
        made.add_row(line.pipeline, f"{line.images_per_second:.1f}", f"{line.ratio:.2f}", share)
    return made


def versions() -> dict[str, str]:
    modules = {"torch": torch, "torchvision": torchvision, "timm": timm, "pillow": PIL, "simplejpeg": simplejpeg}
    return {name: module.__version__ for name, module in modules.items() if module is not None}


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    data = commands.add_parser("data", help="files to uint8 batches, on one core")
    data.add_argument("--images", type=int, default=300, help="photos of 500x375 pixels (%(default)s)")
    data.add_argument("--large", type=int, default=4, help="photos of 4000x3000 pixels (%(default)s)")
    data.add_argument("--rounds", type=int, default=5, help="each pipeline's turns (%(default)s)")
    data.add_argument("--only", nargs="+", metavar="WORD", help="pipelines with one of these in their name")
    data.add_argument("--folder", type=Path, help="make the photos here, and keep them (a temporary folder)")
    data.add_argument("--json", type=Path, metavar="FILE", help="write the results here, too")
    return parser.parse_args(words)


def main(words: Sequence[str]) -> None:
    arguments = parse_arguments(words)
    console = Console()
    with tempfile.TemporaryDirectory() as temporary:
        found = benchmark_data(arguments, arguments.folder or Path(temporary), console)
    if arguments.json:
        report = {"versions": versions(), "results": [asdict(line) for line in found]}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
