"""Images that are nearly the same: rescaled, recompressed, brightened or a little trimmed copies.

Found by a perceptual hash of 63 bits, and confirmed by comparing the thumbnails themselves. Mirrored and turned
copies, and crops of more than about 2 %, are not found.
Source: C. Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010 (the hash of DCT signs).
"""

import numpy as np
import pandas as pd
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from classifier.parallel import parallel_map, tracked

# Measured on photographs and on pictures with their spectrum: copies as above differ in up to 8 bits and correlate
# by 0.98 at least; unrelated pairs, of more than a million, differ in 12 at least (one of crops of sky in 6) and
# correlate by 0.92 at most.
MAX_BITS = 8
MIN_CORRELATION = 0.98
FLAT = 3.0  # standard deviation in grey levels below which there is nothing to compare: a blank wall, a black frame
PAIRS = 1 << 22  # compared at a time by each thread, 10 bytes each
CONFIRMED = 1 << 14  # pairs confirmed at a time, 2 kB each


def near_duplicates(thumbnails: np.ndarray, images: np.ndarray, workers: int = 1) -> list[np.ndarray]:
    """Groups of samples that are nearly the same, each as int64 rows.

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
        alike = [np.einsum("ij,ij->i", *unit[chunk.T]) >= MIN_CORRELATION for chunk in chunks]
        links: np.ndarray = pairs[np.concatenate([np.zeros(0, bool), *alike])]
        if len(links) < len(rows):
            return links
        # frames of a resting camera are all alike: a thousand of them are half a million pairs, and a thousand links
        groups = _connected(links, len(rows))
        return np.concatenate([np.stack([np.full(len(group) - 1, group[0]), group[1:]], axis=1) for group in groups])

    starts = range(0, len(rows), block)  # numpy lets other threads run
    links = np.concatenate(list(tracked(parallel_map(links_from, starts, workers), "comparing", len(starts))))
    return [rows[members] for members in _connected(links, len(rows))]


def _connected(links: np.ndarray, count: int) -> list[np.ndarray]:
    """Groups of two and more of `count` things that `links` (int64 (L, 2)) join, directly or by others."""
    matrix = coo_array((np.ones(len(links), np.int8), (links[:, 0], links[:, 1])), shape=(count, count))
    numbers = pd.Series(connected_components(matrix, directed=False)[1])
    shared = numbers[numbers.duplicated(keep=False)]
    return [np.asarray(rows) for rows in shared.groupby(shared).groups.values()]
