"""Tiles that look alike: a 64-bit fingerprint of the picture, and groups of fingerprints that differ in a few bits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = ["DISTANCE", "fingerprint", "near_groups"]

UInt64Array = npt.NDArray[np.uint64]
Int64Array = npt.NDArray[np.int64]

DISTANCE = 6
"""Fingerprints that differ in at most so many of their 64 bits are of pictures that look alike."""

_SIDE, _BITS = 32, 8
_CHUNKS, _CHUNK_BITS = 4, 16
# Pairs compared at a time, and candidates of one fingerprint in one bucket.
_PAIRS = 1 << 20
_CANDIDATES = 512


def fingerprint(gray: npt.NDArray[np.uint8]) -> int:
    """Return a perceptual hash by the discrete cosine transform.

    The picture is averaged to 32 x 32; of its two-dimensional DCT (type II, orthonormal) the coefficients of 1 to 8
    half waves in both directions are taken, and a bit is set for each that is above their median. Compression, a
    resize, a little blur or another brightness change few bits. A shift by more than a few pixels, a turn or a mirror
    image gives another fingerprint.

    Args:
        gray: uint8 [h, w].

    Returns:
        64 bits.
    """
    from scipy.fft import dctn

    small = np.asarray(Image.fromarray(gray.astype(np.float32)).resize((_SIDE, _SIDE), Image.Resampling.BOX))
    waves = dctn(small, norm="ortho")[1 : _BITS + 1, 1 : _BITS + 1].ravel()
    return int(np.packbits(waves > np.median(waves)).view(">u8")[0])


def near_groups(fingerprints: UInt64Array) -> Int64Array:
    """Group fingerprints that differ in at most `DISTANCE` bits, directly or by way of others of the group.

    Multi-index hashing (Norouzi et al., CVPR 2012): cut in four parts of 16 bits, two fingerprints within 6 bits have a
    part in which they differ in at most one. So each is compared only with those in 4 x 17 buckets, and with at most
    512 in each, however many there are: time and memory stay proportional to their number.

    Args:
        fingerprints: uint64 [n].

    Returns:
        int64 [n], the group of each, numbered from 0.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    distinct, which = np.unique(fingerprints, return_inverse=True)
    if not len(distinct):
        return np.empty(0, dtype=np.int64)
    group = np.arange(len(distinct), dtype=np.int64)
    for first, second in _close_pairs(distinct):
        edges = (np.ones(len(first), dtype=np.int8), (group[first], group[second]))
        merged = connected_components(coo_array(edges, shape=(len(distinct),) * 2), directed=False)[1]
        group = merged[group].astype(np.int64)
    return group[which.ravel()]


def _close_pairs(distinct: UInt64Array) -> Iterator[tuple[Int64Array, Int64Array]]:
    """Yield pairs of distinct fingerprints within the distance; a pair may come more than once."""
    flips = [0, *(1 << bit for bit in range(_CHUNK_BITS))]
    for chunk in range(_CHUNKS):
        keys = ((distinct >> np.uint64(chunk * _CHUNK_BITS)) & np.uint64(0xFFFF)).astype(np.int64)
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        for flip in flips:
            start = np.searchsorted(ordered, ordered ^ flip, side="left")
            stop = np.searchsorted(ordered, ordered ^ flip, side="right")
            if flip == 0:
                # Each pair of a bucket once.
                start = np.arange(1, len(ordered) + 1)
            count = np.clip(stop - start, 0, _CANDIDATES)
            ends = np.cumsum(count)
            done = 0
            while done < len(count):
                before = int(ends[done - 1]) if done else 0
                until = max(done + 1, int(np.searchsorted(ends, before + _PAIRS, side="right")))
                part = slice(done, until)
                left = np.repeat(np.arange(done, until), count[part])
                right = np.repeat(start[part] - ends[part] + count[part], count[part]) + before
                right = right + np.arange(len(left))
                first, second = order[left], order[right]
                near = _bits(distinct[first] ^ distinct[second]) <= DISTANCE
                if near.any():
                    yield first[near], second[near]
                done = until


def _bits(words: UInt64Array) -> UInt64Array:
    """Count the set bits of each word (Warren, Hacker's Delight, 5-1)."""
    one, two, four = np.uint64(0x5555555555555555), np.uint64(0x3333333333333333), np.uint64(0x0F0F0F0F0F0F0F0F)
    words = words - ((words >> np.uint64(1)) & one)
    words = (words & two) + ((words >> np.uint64(2)) & two)
    words = (words + (words >> np.uint64(4))) & four
    return (words * np.uint64(0x0101010101010101)) >> np.uint64(56)
