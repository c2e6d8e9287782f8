"""Outlines of nuclei: along the edges of their pixels, all of an image at once.

An outline is a polygon through corners of pixels: pixel (x, y) covers x to x + 1 and y to y + 1. So the polygon's area
is the nucleus's, two nuclei that touch share an edge, and a nucleus of one pixel has an outline of four points.
(OpenCV's `findContours` goes through the centers of the pixels instead: half a pixel inside, and no polygon at all for
one pixel.)
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from eosin.nuclei.labels import Labels

__all__ = ["outlines"]

Ints = npt.NDArray[np.int64]
Polygon = npt.NDArray[np.int32]

# Directions along the edge of a pixel with the pixel on the right hand: over its top, down its right, back along its
# bottom, up its left. Of each, the neighbor beyond the edge, as (row, column), and the neighbor straight ahead.
_BEYOND = ((-1, 0), (0, 1), (1, 0), (0, -1))
_AHEAD = ((0, 1), (1, 0), (0, -1), (-1, 0))
# Where the edge starts, as (x, y) from the pixel's upper left corner.
_START = np.array(((0, 0), (1, 0), (1, 1), (0, 1)))


def outlines(instances: Labels) -> list[Polygon]:
    """Trace the outer outline of each nucleus.

    Args:
        instances: int [H, W], ids 1 to n (`labels.relabel`), 0 for the background.

    Returns:
        For each nucleus in the order of ids, int32 [k, 2]: (x, y) of the polygon's corners, clockwise as seen on the
        image, the first one not repeated. Pixels that touch by a corner are apart; of a nucleus in several parts,
        the largest part's outline (with its holes filled) is returned. Ids that do not occur have no points.
    """
    count = int(instances.max()) if instances.size else 0
    nothing = np.empty((0, 2), dtype=np.int32)
    if not count:
        return []
    height, width = instances.shape
    padded = np.zeros((height + 2, width + 2), dtype=instances.dtype)
    padded[1:-1, 1:-1] = instances
    stride = width + 2
    edges, following = _edges(padded)
    order, starts = _loops(following)
    ordered = edges[order]
    direction, pixel = ordered & 3, ordered >> 2
    row = pixel // stride
    # Area by Green's theorem, from horizontal edges alone: bottoms count for, tops against.
    area = np.add.reduceat(np.where(direction == 2, row + 1, np.where(direction == 0, -row, 0)), starts)
    owner = padded.ravel()[pixel[starts]]
    # The inner side of a hole runs the other way round, and its area is below 0: it is never the largest.
    by_owner = np.lexsort((-area, owner))
    largest = by_owner[np.flatnonzero(np.diff(owner[by_owner], prepend=0))]
    before = np.roll(direction, 1)
    before[starts] = direction[np.append(starts[1:], len(direction)) - 1]
    corner = direction != before
    # The border of one pixel around the image is taken off again.
    points = np.stack([pixel % stride - 1, row - 1], axis=1)[corner] + _START[direction[corner]]
    ends = np.append(np.cumsum(corner), 0)  # the last entry is place -1: before the first edge there is no corner
    found = [nothing] * count
    polygons = points.astype(np.int32)
    bounds = np.append(starts, len(direction)) - 1
    for loop in largest:
        found[owner[loop] - 1] = polygons[ends[bounds[loop]] : ends[bounds[loop + 1]]]
    return found


def _edges(padded: Labels) -> tuple[Ints, Ints]:
    """Number the edges as 4 * pixel + direction, and find for each the place of the one that follows it.

    At the end of an edge the outline turns right where the pixel ahead is another's, goes straight where that pixel
    is the nucleus's too, and turns left where the pixel beside that one is as well.
    """
    flat, stride = padded.ravel(), padded.shape[1]
    inside = flat > 0
    found, after = [], []
    for direction in range(4):
        beyond = _BEYOND[direction][0] * stride + _BEYOND[direction][1]
        ahead = _AHEAD[direction][0] * stride + _AHEAD[direction][1]
        # What the roll wraps around is the border, which is nobody's.
        here = np.flatnonzero((flat != np.roll(flat, -beyond)) & inside)
        mine = flat[here]
        straight = flat[here + ahead] == mine
        left = straight & (flat[here + ahead + beyond] == mine)
        following = 4 * here + (direction + 1) % 4
        following[straight] = 4 * (here[straight] + ahead) + direction
        following[left] = 4 * (here[left] + ahead + beyond) + (direction + 3) % 4
        found.append(4 * here + direction)
        after.append(following)
    edges, following = np.concatenate(found), np.concatenate(after)
    # Only the places that are written are ever read.
    place = np.empty(4 * len(flat), dtype=np.int64)
    place[edges] = np.arange(len(edges))
    return edges, place[following]


def _loops(following: Ints) -> tuple[Ints, Ints]:
    """Order edges loop by loop, each loop from its first edge on: places int64 [n], and where each loop starts.

    All loops at once, by doubling: who is two steps ahead, then four, then eight.
    """
    count = len(following)
    first, ahead = np.arange(count), following
    while True:
        better = np.minimum(first, first[ahead])
        if (better == first).all():
            break
        first, ahead = better, ahead[ahead]
    heads = np.flatnonzero(first == np.arange(count))
    # Each loop is cut before its head; how far an edge is from the cut is its place, counted from the end.
    last = np.empty(count, dtype=np.int64)
    last[following] = np.arange(count)
    ahead, left = following.copy(), np.ones(count, dtype=np.int64)
    tails = last[heads]
    ahead[tails], left[tails] = tails, 0
    while (step := left[ahead]).any():
        left += step
        ahead = ahead[ahead]
    sizes = left[heads] + 1
    starts = np.cumsum(sizes) - sizes
    start = np.empty(count, dtype=np.int64)
    start[heads] = starts + sizes - 1
    order = np.empty(count, dtype=np.int64)
    order[start[first] - left] = np.arange(count)
    return order, starts
