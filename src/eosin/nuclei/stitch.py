"""Nuclei of an image that is too large to be looked at as a whole: in blocks, without seams.

A block is a core and a margin around it. Nuclei are sought in both; a block keeps those whose first pixel (the topmost,
of these the leftmost) lies in its core. Cores tile the image, so each nucleus belongs to one block, and it is there
whole and as it would be found in the whole image, where the margin is wide enough. Where it is not, the block says so
(`find` returns None) and is looked at again with a wider one. It is wide enough where no nucleus that has a pixel in
the core lies so near to the block's outer side that the filters look beyond it, or touches one that does.

What is larger than `LARGEST` is no nucleus (tissue folds, ink, a network that has learned nothing): each block keeps
what lies in its core.

All this holds where slopes are scaled by a constant, `normalise="fixed"`; see `eosin.nuclei.postprocess`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from eosin.nuclei.found import Nuclei
from eosin.nuclei.postprocess import Floats32, Ids, Normalise, describe, segment

__all__ = ["LARGEST", "Box", "blocks", "find", "margins", "surroundings"]

LARGEST = 400
"""Side in px at 0.25 µm/px of the largest thing that is a nucleus: 100 µm."""

# Margin at first, in px at 0.25 µm/px: two nuclei of 18 µm side by side, and the reach of the filters. Blocks share
# what the network said, so a wide one costs little; a second look costs the network's time.
_MARGIN = 160
# Blocks begin where the filters' products with band matrices begin in the whole image, so sums have the same order.
_ALIGNED = 32
# How far opening and smoothing look, beyond the filters.
_BEYOND = 4


@dataclass(frozen=True)
class Box:
    """A rectangle: x0 <= x < x1, y0 <= y < y1, in px."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def width(self) -> int:
        """In px."""
        return self.x1 - self.x0

    @property
    def height(self) -> int:
        """In px."""
        return self.y1 - self.y0

    def within(self, other: Box) -> tuple[slice, slice]:
        """Return the rows and columns that this one takes in an array that covers the other."""
        return slice(self.y0 - other.y0, self.y1 - other.y0), slice(self.x0 - other.x0, self.x1 - other.x0)


def blocks(width: int, height: int, side: int) -> Iterator[Box]:
    """Divide an image into cores of blocks, row by row; the last of a row or column may be smaller."""
    for y in range(0, height, side):
        for x in range(0, width, side):
            yield Box(x, y, min(x + side, width), min(y + side, height))


def margins(scale: float) -> tuple[int, ...]:
    """Return the margins to try, in px, the widest last; `scale` as of `postprocess`."""
    widest = math.ceil(LARGEST * scale) + _reach(scale) + 1
    tried = []
    margin = math.ceil(_MARGIN * scale)
    while margin < widest:
        tried.append(margin)
        margin *= 2
    return (*tried, widest)


def _reach(scale: float) -> int:
    """How far from a pixel the law looks, in px."""
    return (int(20 * scale + 1) | 1) // 2 + _BEYOND


def surroundings(core: Box, margin: int, width: int, height: int) -> Box:
    """Return a block: its core and margin, inside the image."""

    def span(start: int, stop: int, length: int) -> tuple[int, int]:
        low = (start - margin) // _ALIGNED * _ALIGNED
        high = -(-(stop + margin) // _ALIGNED) * _ALIGNED
        return max(0, low), min(length, high)

    (x0, x1), (y0, y1) = span(core.x0, core.x1, width), span(core.y0, core.y1, height)
    return Box(x0, y0, x1, y1)


def find(
    np_prob: Floats32,
    hv: Floats32,
    types: npt.NDArray[np.uint8] | None,
    block: Box,
    core: Box,
    size: tuple[int, int],
    *,
    scale: float = 1.0,
    normalise: Normalise = "fixed",
    last: bool = False,
) -> Nuclei | None:
    """Find the nuclei that belong to a block.

    Args:
        np_prob: [h, w], probability of being nucleus.
        hv: [2, h, w].
        types: [h, w], the likeliest type of each pixel, 0 for the background; None without types.
        block: What the maps cover.
        core: The part that is the block's own.
        size: Width and height of the image.
        scale: See `postprocess`.
        normalise: See `postprocess`.
        last: Whether the margin is the widest of `margins`; then there is always an answer.

    Returns:
        The nuclei in px of the image; None where a wider margin is needed.

    Raises:
        EosinError: As `postprocess`.
    """
    instances = segment(np_prob, hv, scale=scale, normalise=normalise)
    count = int(instances.max())
    own = _present(instances[core.within(block)], count)
    if not last and (own & _uncertain(instances, block, size, _reach(scale), count)).any():
        return None
    kept = _kept(instances, own, block, core, LARGEST * scale)
    one_hot: Any = None
    if types is not None:
        one_hot = types[None] == np.arange(int(types.max()) + 1, dtype=np.uint8)[:, None, None]
    return Nuclei.of(describe(kept, np_prob, one_hot), kept, (block.x0, block.y0))


def _present(instances: Ids, count: int) -> npt.NDArray[np.bool_]:
    """Which ids occur: bool [count + 1]; 0 does not count."""
    there = np.zeros(count + 1, dtype=bool)
    there[instances] = True
    there[0] = False
    return there


def _uncertain(instances: Ids, block: Box, size: tuple[int, int], reach: int, count: int) -> npt.NDArray[np.bool_]:
    """Which nuclei might be others in the whole image: near an outer side, or beside one that is: bool [count + 1]."""
    near = np.zeros(count + 1, dtype=bool)
    if block.x0 > 0:
        near |= _present(instances[:, :reach], count)
    if block.y0 > 0:
        near |= _present(instances[:reach], count)
    if block.x1 < size[0]:
        near |= _present(instances[:, -reach:], count)
    if block.y1 < size[1]:
        near |= _present(instances[-reach:], count)
    if not near.any():
        return near
    beside = near.copy()
    for one, other in ((instances[1:], instances[:-1]), (instances[:, 1:], instances[:, :-1])):
        touching = (one != other) & (one > 0) & (other > 0)
        first, second = one[touching], other[touching]
        beside[first[near[second]]] = True
        beside[second[near[first]]] = True
    return beside


def _kept(instances: Ids, own: npt.NDArray[np.bool_], block: Box, core: Box, largest: float) -> Ids:
    """Leave the block's nuclei, and of what is too large what lies in the core: int32 [h, w], ids 1 to n."""
    from scipy import ndimage

    rows, columns = core.within(block)
    keep = np.zeros(len(own), dtype=bool)
    cut = np.zeros(len(own), dtype=bool)
    for number, box in enumerate(ndimage.find_objects(instances), start=1):
        if not own[number]:
            continue
        down, across = box
        if max(down.stop - down.start, across.stop - across.start) > largest:
            cut[number] = True
            continue
        first = across.start + int(np.argmax(instances[down.start, across] == number))
        keep[number] = rows.start <= down.start < rows.stop and columns.start <= first < columns.stop
    numbers = np.cumsum(keep | cut, dtype=np.int32)
    kept = np.where(keep, numbers, 0).astype(np.int32).take(instances)
    if cut.any():
        inside = instances[rows, columns]
        kept[rows, columns] += np.where(cut, numbers, 0).astype(np.int32).take(inside)
    return kept
