"""Images that are the same, or nearly: rescaled, recompressed, brightened or a little trimmed copies.

Found by a perceptual hash of 63 bits, and confirmed by comparing the thumbnails themselves. Mirrored and turned
copies, and crops of more than about 2 %, are not found.
Source: C. Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010 (the hash of DCT signs).
"""

import logging
import warnings
from collections.abc import Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from classifier.data.check import stamp
from classifier.data.image_facts import THUMBNAIL, Facts, image_facts
from classifier.data.loader import Images
from classifier.data.samples import PART_WORDS, boxes_of, group_ids, image_ids
from classifier.parallel import parallel_map, tracked, worker_count

log = logging.getLogger(__name__)

# Measured on photographs and on pictures with their spectrum: copies as above differ in up to 8 bits and correlate
# by 0.98 at least; unrelated pairs, of more than a million, differ in 12 at least (one of crops of sky in 6) and
# correlate by 0.92 at most.
MAX_BITS = 8
MIN_CORRELATION = 0.98
FLAT = 3.0  # standard deviation in grey levels below which there is nothing to compare: a blank wall, a black frame
PAIRS = 1 << 22  # compared at a time by each thread, 10 bytes each
CONFIRMED = 1 << 14  # pairs confirmed at a time, 2 kB each


def all_facts(table: pd.DataFrame, images: Images) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Read every image of `table`, once for all its boxes, on all cores.

    Returns:
        What is known of each sample, with the index of `table`: of its image the number `image`, and `width`, `height`,
        `notes` and `digest` as in `Facts`; `side_x`, `side_y` in pixels of what lies in the image. That part itself,
        int64 (N, 4). Thumbnails, uint8 (N, 16, 16).
    """
    numbers, boxes = image_ids(table), boxes_of(table)
    rows_of = [np.asarray(rows) for rows in pd.Series(numbers).groupby(numbers).indices.values()]

    def read(rows: np.ndarray) -> Facts:
        return image_facts(images.picture(int(rows[0])), None if boxes is None else boxes[rows], images.value_range)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large, but not refused
        facts = list(tracked(parallel_map(read, rows_of, worker_count("auto")), "reading", len(rows_of)))
    thumbnails = np.zeros((len(table), THUMBNAIL, THUMBNAIL), np.uint8)
    for rows, item in zip(rows_of, facts, strict=True):
        thumbnails[rows] = item.thumbnails
    known = pd.DataFrame([item[:4] for item in facts], columns=Facts._fields[:4]).iloc[numbers].set_axis(table.index)
    sizes = known[["width", "height"]].to_numpy(np.int64)
    inside = np.hstack([np.zeros_like(sizes), sizes]) if boxes is None else np.clip(boxes, 0, np.tile(sizes, 2))
    side_x, side_y = (inside[:, 2:] - inside[:, :2]).T
    return known.assign(image=numbers, side_x=side_x, side_y=side_y), inside, thumbnails


def group_copies(
    table: pd.DataFrame, images: Images, facts: tuple[pd.DataFrame, np.ndarray] | None = None
) -> pd.DataFrame:
    """`table` with the samples of equal and nearly equal images in one group, joined with the groups that it has.

    Args:
        facts: What is known of each sample, and the thumbnails, as of `all_facts`, if the images were read already.
    """
    known, thumbnails = facts or all_facts(table, images)[::2]
    equal = known.groupby(known["digest"].where(known["digest"] != b"")).indices.values()
    sets = [rows for rows in [*equal, *near_duplicates(known, thumbnails)] if known["image"].iloc[rows].nunique() > 1]
    log.info("data.group_duplicates=true: %d samples are copies, in %d sets", sum(map(len, sets)), len(sets))
    return _joined(table, sets)


def group_augmented(table: pd.DataFrame) -> pd.DataFrame:
    """`table` with the copies that Roboflow made of one photo in one group, joined with the groups that it has.

    They are called NAME_jpg.rf.HASH.jpg, and lie in folders of one name, or of any part.
    """
    if not table["path"].str.contains(".rf.", regex=False).any():  # as nearly always
        return table
    parts = table["path"].str.extract(r"(?i)(?:([^/]+)/)?([^/]+)\.rf\.[0-9a-z]{16,}\.[^/]+$")
    folders = parts[0].where(~parts[0].str.lower().isin(list(PART_WORDS)), "").fillna("")
    photos = folders + "/" + parts[1]
    sets = [rows for rows in table.groupby(photos).indices.values() if table["path"].iloc[rows].nunique() > 1]
    if sets:
        what = (
            "images are copies of one of %d photos by their names (.rf.): those of a photo stay on one side of a split"
        )
        log.info(f"%d {what}", sum(map(len, sets)), len(sets))
    return _joined(table, sets)


def _joined(table: pd.DataFrame, sets: Sequence[Any]) -> pd.DataFrame:
    """`table` with the rows of each of `sets` in one group, joined with the groups that it has."""
    if not sets:
        return table
    groups = group_ids(table)
    links = np.concatenate([_chain(groups[rows]) for rows in sets])
    return table.assign(group=pd.Series(_numbers(links, len(table))[groups], table.index).astype("str"))


def warn_of_leaks(table: pd.DataFrame, root: Path) -> None:
    """Say how many samples are of a group that is in two parts, and how many files are equal to one in another part.

    Few are read whole: those whose size, and then whose middle, is that of a file in another part.
    """
    if "group" in table:
        divided = table["path"][table["split"].groupby(group_ids(table)).transform("nunique") > 1]
        if len(divided):
            advice = "move each group into one part, or divide all images by a data.split_file=... of your own"
            log.warning("%d images of groups are in two parts, as %s: %s", len(divided), divided.iat[0], advice)
    files = table.loc[table["split"].notna(), ["path", "split"]].drop_duplicates("path")

    def middle(path: str) -> bytes:
        return np.fromfile(path, np.uint8, 4096, offset=stamp(path)[0] // 2).tobytes()

    with suppress(OSError):  # who reads it will say why
        for look in (lambda path: stamp(path)[0], middle, lambda path: blake2b(Path(path).read_bytes()).digest()):
            found = pd.Series([look(f"{root}/{path}") for path in files["path"]], files.index)
            files = files[files["split"].groupby(found).transform("nunique") > 1]
        if len(files):
            advice = "remove them from one, or use data.group_duplicates=true where the data has no parts of its own"
            log.warning("%d files are in two parts, as %s: %s", len(files), files.iat[0, 0], advice)


def near_duplicates(known: pd.DataFrame, thumbnails: np.ndarray) -> list[np.ndarray]:
    """Groups of samples that are nearly the same without being of equal files, each as int64 rows; see `all_facts`."""
    # smaller pictures look alike without being copies
    rows = np.flatnonzero((known[["side_x", "side_y"]] >= 2 * THUMBNAIL).all(axis=1))
    contents = pd.factorize(known["digest"].iloc[rows])[0]
    return [rows[positions] for positions in alike(thumbnails[rows], contents, worker_count("auto"))]


def alike(thumbnails: np.ndarray, images: np.ndarray, workers: int = 1) -> list[np.ndarray]:
    """Groups of thumbnails that are nearly the same, each as int64 rows.

    Compares all pairs: 0.3 s for 10,000 samples, half a minute for 100,000, on two cores.

    Args:
        thumbnails: uint8 (N, 16, 16), grey.
        images: int64 (N,): samples of the same number are not compared, as they are known to be related.
        workers: Threads.
    """
    rows = np.flatnonzero(thumbnails.std(axis=(1, 2)) >= FLAT)
    if len(rows) < 2:
        return []
    numbers = images[rows]
    # which of the 63 lowest frequencies lie above their median
    spectrum = dctn(thumbnails[rows].astype(np.float32), axes=(1, 2))[:, :8, :8].reshape(len(rows), 64)[:, 1:]
    bits = np.packbits(spectrum > np.median(spectrum, axis=1, keepdims=True), axis=1)
    hashes = np.ascontiguousarray(bits).view(np.uint64)[:, 0]
    unit = thumbnails[rows].reshape(len(rows), -1).astype(np.float32)
    unit -= unit.mean(axis=1, keepdims=True)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)

    block = max(1, PAIRS // len(rows))

    def links_from(start: int) -> np.ndarray:
        """int64 (links, 2): positions in `rows` of a block of them, and of later ones that are like them."""
        different = np.bitwise_count(hashes[start : start + block, None] ^ hashes[None, start:])
        first, second = np.nonzero(different <= MAX_BITS)
        later = (second > first) & (numbers[first + start] != numbers[second + start])
        first, second = first[later] + start, second[later] + start
        pairs = np.stack([first, second], axis=1)
        chunks = [pairs[at : at + CONFIRMED] for at in range(0, len(pairs), CONFIRMED)]
        same = [np.einsum("ij,ij->i", *unit[chunk.T]) >= MIN_CORRELATION for chunk in chunks]
        links: np.ndarray = pairs[np.concatenate([np.zeros(0, bool), *same])]
        if len(links) < len(rows):
            return links
        # frames of a resting camera are all alike: a thousand of them are half a million pairs, and a thousand links
        return np.concatenate([_chain(group) for group in _connected(links, len(rows))])

    starts = range(0, len(rows), block)  # numpy lets other threads run
    links = np.concatenate(list(tracked(parallel_map(links_from, starts, workers), "comparing", len(starts))))
    return [rows[members] for members in _connected(links, len(rows))]


def _connected(links: np.ndarray, count: int) -> list[np.ndarray]:
    """Groups of two and more of `count` things that `links` (int64 (L, 2)) join, directly or by others."""
    numbers = pd.Series(_numbers(links, count))
    shared = numbers[numbers.duplicated(keep=False)]
    return [np.asarray(rows) for rows in shared.groupby(shared).groups.values()]


def _numbers(links: np.ndarray, count: int) -> np.ndarray:
    """int (count,): the same number for things that `links` join."""
    matrix = coo_array((np.ones(len(links), np.int8), (links[:, 0], links[:, 1])), shape=(count, count))
    joined: np.ndarray = connected_components(matrix, directed=False)[1]
    return joined


def _chain(group: np.ndarray) -> np.ndarray:
    """int64 (N - 1, 2): links of the first of a group to each of the others."""
    return np.stack([np.full(len(group) - 1, group[0]), group[1:]], axis=1)
