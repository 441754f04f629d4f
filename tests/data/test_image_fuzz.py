"""Images with bytes changed, cut out, put in and repeated: read or refused, in little time and memory."""

import resource
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from classifier.data.check import check_images
from classifier.data.image import FORMATS, ImageError, decode, everything
from classifier.data.image_facts import image_facts
from classifier.data.loader import Images
from tests.data.tables import make_table
from tests.verbs.command import FORKS


def whole(path: Path) -> Iterator[bytes]:
    """Files of every format, of several modes."""
    colours = np.random.default_rng(0).integers(0, 256, (40, 56, 3)).astype(np.uint8)
    deep = (colours[..., 0] * np.uint16(257), colours[..., 0] / np.float32(255), colours[..., 0].astype(np.int32))
    images: list[Image.Image] = [Image.fromarray(colours).convert(mode) for mode in ("RGB", "L", "P", "RGBA", "CMYK")]
    exif = Image.Exif()
    exif[0x0112] = 6
    for image in [*images, *map(Image.fromarray, deep)]:
        for options in ({"exif": exif}, {"save_all": True, "append_images": [image]}, {"progressive": True}):
            try:
                image.save(path, **options)
            except (OSError, ValueError, KeyError):  # not in this format
                continue
            yield path.read_bytes()


def changed(content: bytes, random: np.random.Generator) -> bytes:
    for _ in range(random.integers(1, 4)):
        end = int(random.choice([40, 400, len(content)]))  # headers above all
        at, length = int(random.integers(0, max(1, end))), int(random.integers(1, 30))
        part, noise = content[at : at + length], random.bytes(length)
        new = [noise[:1], b"", noise + part, part * 3, b"\xff\xff\xff\xff", b"\0"][random.integers(0, 6)]
        content = content[:at] + new + content[at + (1 if len(new) == 1 else length) :]
    return content[: random.integers(0, len(content) + 1)] if random.random() < 0.1 else content


def fuzz(folder: Path, form: str, count: int) -> tuple[int, float, int]:
    """How many of the files are read, the longest time in seconds, and by how many bytes the process grows."""
    random, longest, good = np.random.default_rng(len(form)), 0.0, 0
    wholes = list(whole(folder / f"whole.{form.lower()}"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        path = folder / f"{number}"
        path.write_bytes(changed(wholes[number % len(wholes)], random))
        started, read = time.perf_counter(), []
        for value_range in (None, (0, 999)):
            with suppress(ImageError):
                found = decode(path, None, everything, (32, 32), value_range=value_range)
                assert (found.shape, found.dtype) == ((3, 32, 32), torch.uint8)
                read.append(value_range)
        for how in ("quick", "full"):
            table = check_images(make_table([path.name]), Images.of(make_table([path.name]), folder), how)
            refused = "problem" in table and table["problem"].notna().all()
            assert not refused or None not in read
        image_facts(path)
        good += bool(read)
        longest = max(longest, time.perf_counter() - started)
        path.unlink()
    return good, longest, 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("count", [20, pytest.param(300, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")
def test_changed_bytes(tmp_path: Path, form: str, count: int) -> None:
    if count == 20:
        good, seconds, grown = fuzz(tmp_path, form, count)
    else:
        with FORKS.Pool(1) as pool:
            good, seconds, grown = pool.apply(fuzz, (tmp_path, form, count))
        print(f"{form}: {good} of {count} are read, {seconds:.2f} s, {grown / 1e6:.0f} MB")
    assert good < count
    assert good > 0 or count == 20
    assert grown < 1 << 30
