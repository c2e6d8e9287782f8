"""From the network's maps to nuclei, by the law of HoVer-Net (Graham et al., Medical Image Analysis 2019, section 3.3).

1. Pixels with a nucleus probability of 0.5 or more, in groups of 10 px or more, are nuclei.
2. The horizontal map rises through a nucleus and falls where the next begins, as the vertical map does: Sobel filters
   of 21 px measure both slopes. Brought to 0..1 and turned over, the larger of the two is high on borders.
3. What is not border (below 0.4), with holes filled, opened by an ellipse of 5 px, and still of 10 px or more, marks
   one nucleus a group; from the marks a watershed of the slopes floods the pixels of step 1.
4. A nucleus's type is that of most of its pixels; if these say background, the second most.

As the authors' code has it, slopes are brought to 0..1 by their least and largest value in the whole tile, so what one
nucleus becomes depends on all others, and on noise in the background: `normalise="official"`. With `"fixed"` the scale
is constant: 1 is the fall from +1 to -1 of two ideal nuclei that touch, and 0.4 lies where the maps neither rise nor
fall. Then windows of a large image agree where they overlap.

The instances are those of the authors' code, at less cost: a group of pixels with a single mark needs no watershed;
areas, boxes and types are counted in one pass; the 21-fold sums of the filters are products with small band matrices.
Where slopes are equal to the last digit, as of maps rounded to halves, pixels between two marks may go to the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from eosin.core.errors import EosinError
from eosin.nuclei.labels import scikit_image
from eosin.nuclei.outlines import outlines

__all__ = ["Found", "Nucleus", "describe", "postprocess", "segment"]

Floats32 = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]
Normalise = Literal["official", "fixed"]

_BORDER = 0.4
"""Height from which a pixel is border."""

_BAND = 32
"""Rows or columns that one product with a band matrix filters: fewer cost calls, more multiply more zeros."""


@dataclass(frozen=True, eq=False)
class Nucleus:
    """One nucleus.

    Attributes:
        id: In the label map.
        bbox: (x0, y0, x1, y1) in pixels, x1 and y1 just outside.
        centroid: (x, y), center of mass of its pixels, counted as published ones are: pixel (0, 0) lies at (0, 0).
        area: In pixels.
        type: 0 where its pixels say nothing but background; None where the network has no types.
        probability: Share of its pixels that say its type; without types, their mean probability of being nucleus.
        contour: int32 [k, 2], corners (x, y) of its outline along pixel edges; see `outlines`.
    """

    id: int
    bbox: tuple[int, int, int, int]
    centroid: tuple[float, float]
    area: int
    type: int | None
    probability: float
    contour: npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Found:
    """What was found in a tile.

    Attributes:
        instances: int32 [H, W], ids 1 to n, 0 for the background.
        table: The nuclei, in the order of their ids.
    """

    instances: Ids
    table: list[Nucleus]


def postprocess(
    np_prob: Floats32,
    hv: Floats32,
    tp_prob: Floats32 | None = None,
    *,
    scale: float = 1.0,
    normalise: Normalise = "official",
) -> Found:
    """Find nuclei and describe them.

    Args:
        np_prob: [H, W], probability of being nucleus.
        hv: [2, H, W], horizontal and vertical map.
        tp_prob: [C, H, W], probability or any score of each type, background first; None without types.
        scale: Size of a nucleus in pixels relative to 0.25 µm/px: 0.25 / mpp. Filters and least areas follow it.
        normalise: How slopes are scaled; see the module.

    Raises:
        EosinError: If shapes disagree or a map holds values that are not finite.
    """
    instances = segment(np_prob, hv, scale=scale, normalise=normalise)
    return Found(instances, describe(instances, np_prob, tp_prob))


def segment(np_prob: Floats32, hv: Floats32, *, scale: float = 1.0, normalise: Normalise = "official") -> Ids:
    """Find nuclei: int32 [H, W], ids 1 to n; arguments as of `postprocess`."""
    _check(np_prob, hv)
    if not 0.05 <= scale <= 20:
        raise EosinError(f"scale {scale}: nuclei of 0.05 to 20 times their size at 0.25 µm/px can be found")
    smallest = math.ceil(10 * scale * scale)
    groups = _large(np_prob >= 0.5, smallest)
    inside = groups > 0
    if not inside.any():
        return np.zeros(inside.shape, dtype=np.int32)
    borders = _borders(hv, int(20 * scale + 1) | 1, normalise)
    flat = inside & (borders < _BORDER)
    marks = _large(_open(_fill(flat)), smallest)
    return _flood(groups, inside, marks, borders)


def _check(np_prob: Floats32, hv: Floats32) -> None:
    if np_prob.ndim != 2 or hv.shape != (2, *np_prob.shape):
        raise EosinError(f"nucleus map {np_prob.shape} and HV maps {hv.shape} are not [H, W] and [2, H, W]")
    # The least value is NaN where any is.
    for name, values in (("nucleus", np_prob), ("HV", hv)):
        if values.size and not (math.isfinite(values.min()) and math.isfinite(values.max())):
            raise EosinError(f"the {name} map holds values that are not finite; the network's output is broken")


def _large(mask: Mask, smallest: int) -> Ids:
    """Number the groups of pixels that touch by edges, but for those of fewer pixels: int32 [H, W], ids with gaps."""
    from scipy import ndimage

    groups, count = ndimage.label(mask)
    sizes = np.bincount(groups.ravel(), minlength=count + 1)
    small = sizes < smallest
    small[0] = False
    if small.any():
        groups[small[groups]] = 0
    return np.asarray(groups, dtype=np.int32)


def _fill(mask: Mask) -> Mask:
    """Fill holes: parts of the background that touch no side of the tile."""
    from scipy import ndimage

    parts, count = ndimage.label(~mask)
    open_parts = np.zeros(count + 1, dtype=bool)
    for side in (parts[0], parts[-1], parts[:, 0], parts[:, -1]):
        open_parts[side] = True
    open_parts[0] = False
    return ~open_parts[parts]


def _open(mask: Mask) -> Mask:
    """Open by OpenCV's ellipse of 5 x 5 px: a block of 3 rows by 5 columns, and one pixel on top and below.

    Outside the tile counts as inside for the erosion and as outside for the dilation, so borders do not erode.
    """
    return _spread(~_spread(~mask))


def _spread(mask: Mask) -> Mask:
    """Dilate by the ellipse; what is outside the tile adds nothing. It is its own mirror image, so this erodes too."""
    height, width = mask.shape
    wide = mask.copy()
    for step in (1, 2):
        if step < width:
            wide[:, step:] |= mask[:, :-step]
            wide[:, :-step] |= mask[:, step:]
    spread = wide.copy()
    for step, source in ((1, wide), (2, mask)):
        if step < height:
            spread[step:] |= source[:-step]
            spread[:-step] |= source[step:]
    return spread


def _borders(hv: Floats32, size: int, normalise: Normalise) -> Floats32:
    """How much each pixel is a border between nuclei: float32 [H, W], 0 to 1."""
    smooth, slope = _sobel(size)
    sides = []
    for given, along in zip(hv, (1, 0), strict=True):
        values = _stretched(np.asarray(given, dtype=np.float32)) if normalise == "official" else given
        rises = _filtered(_filtered(values.astype(np.float64), slope, along), smooth, 1 - along)
        if normalise == "official":
            sides.append(1 - _stretched(rises))
        else:
            # The fall from +1 to -1 along a straight border, at its steepest.
            fall = 2 * smooth.sum() * slope[slope > 0].sum()
            rises *= -(1 - _BORDER) / fall
            rises += _BORDER
            sides.append(rises.clip(0, 1, out=rises).astype(np.float32))
    return np.maximum(*sides)


def _stretched(values: npt.NDArray[np.floating]) -> Floats32:
    """Bring to 0..1 by the least and the largest value; 0 where these are the same."""
    low, high = float(values.min()), float(values.max())
    scale = 1 / (high - low) if high - low > np.finfo(np.float64).eps else 0.0
    return np.asarray(values * scale - low * scale, dtype=np.float32)


@lru_cache(maxsize=8)
def _sobel(size: int) -> tuple[Floats, Floats]:
    """Weights of OpenCV's Sobel filter of an odd size: across the slope (binomial), and along it."""
    across = np.array([math.comb(size - 1, place) for place in range(size)], dtype=np.float64)
    inner = np.array([math.comb(size - 3, place) for place in range(size - 2)], dtype=np.float64)
    return across, np.convolve(inner, [-1.0, 0.0, 1.0])


def _filtered(values: Floats, weights: Floats, axis: int) -> Floats:
    """Correlate along an axis; beyond the sides the tile is mirrored, its last pixel not repeated.

    A product with a band matrix does 2.5 times the arithmetic, and still less time: it is what processors are good at.
    """
    reach, length = len(weights) // 2, values.shape[axis]
    blocks = -(-length // _BAND)
    added = [(0, 0), (0, 0)]
    added[axis] = (reach, reach)
    padded = np.pad(values, added, mode="reflect")
    matrix = np.zeros((_BAND, _BAND + 2 * reach))
    for row in range(_BAND):
        matrix[row, row : row + len(weights)] = weights
    out = np.empty_like(values)
    for block in range(blocks):
        start, stop = block * _BAND, min((block + 1) * _BAND, length)
        part = matrix[: stop - start, : stop - start + 2 * reach]
        if axis == 0:
            np.matmul(part, padded[start : stop + 2 * reach], out=out[start:stop])
        else:
            out[:, start:stop] = padded[:, start : stop + 2 * reach] @ part.T
    return out


def _flood(groups: Ids, inside: Mask, marks: Ids, borders: Floats32) -> Ids:
    """Give every pixel of a group that holds marks to one of them: int32 [H, W], contiguous ids."""
    # A filled hole may reach beyond the groups: marks count inside them only.
    marked = np.flatnonzero(marks)
    marked = marked[inside.ravel()[marked]]
    if not len(marked):
        return np.zeros(groups.shape, dtype=np.int32)
    mark, group = marks.ravel()[marked], groups.ravel()[marked]
    # Of contiguous ids, in the order of the marks.
    used = np.zeros(int(mark.max()) + 1, dtype=bool)
    used[mark] = True
    mark = (np.cumsum(used, dtype=np.int32) * used)[mark]
    largest = int(groups.max())
    least = np.full(largest + 1, np.iinfo(np.int32).max, dtype=np.int32)
    most = np.zeros(largest + 1, dtype=np.int32)
    np.minimum.at(least, group, mark)
    np.maximum.at(most, group, mark)
    several = most > least
    instances = np.where(several, 0, most).take(groups)
    if several.any():
        seeds = np.zeros_like(groups)
        seeds.ravel()[marked] = mark
        _watershed(several.take(groups), seeds, borders, inside, instances)
    return instances


def _watershed(several: Mask, seeds: Ids, borders: Floats32, inside: Mask, instances: Ids) -> None:
    """Flood the groups that hold several marks, in place; groups do not touch, so each is flooded as if alone."""
    # Pixels inside a mark have no neighbor left to flood: they wait in the queue for nothing, and most pixels do.
    frontier = several & ~_surrounded((seeds > 0) | ~several)
    np.copyto(instances, seeds, where=several)
    rows, columns = np.flatnonzero(frontier.any(axis=1)), np.flatnonzero(frontier.any(axis=0))
    window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    places = np.flatnonzero(frontier)
    depth = np.zeros(frontier.shape)
    depth.ravel()[places] = -_smoothed((1 - borders.astype(np.float64)) * inside, places)
    mask = frontier[window]
    flooded = scikit_image("segmentation").watershed(depth[window], np.where(mask, seeds[window], 0), mask=mask)
    np.copyto(instances[window], flooded, where=mask)


def _surrounded(mask: Mask) -> Mask:
    """Find pixels of a mask whose neighbors by edges are in it too; outside the tile counts as in it."""
    inner = mask.copy()
    inner[1:] &= mask[:-1]
    inner[:-1] &= mask[1:]
    inner[:, 1:] &= mask[:, :-1]
    inner[:, :-1] &= mask[:, 1:]
    return inner


def _smoothed(values: Floats, places: npt.NDArray[np.int64]) -> Floats:
    """Smooth by 1/4, 1/2, 1/4 along both axes, at these pixels; the tile is mirrored as in `_filtered`."""
    padded = np.pad(values, 1, mode="reflect")
    flat, stride = padded.ravel(), padded.shape[1]
    rows, columns = np.divmod(places, values.shape[1])
    middle = (rows + 1) * stride + columns + 1

    def along(step: int) -> Floats:
        here = middle + step
        return 0.25 * (flat[here - 1] + flat[here + 1]) + 0.5 * flat[here]

    return np.asarray(0.25 * (along(-stride) + along(stride)) + 0.5 * along(0))


def describe(instances: Ids, np_prob: Floats32, tp_prob: Floats32 | None = None) -> list[Nucleus]:
    """Describe the nuclei of a label map; arguments as of `postprocess`.

    Args:
        instances: int32 [H, W], ids 1 to n.
        np_prob: [H, W].
        tp_prob: [C, H, W] or None.

    Raises:
        EosinError: If shapes disagree.
    """
    from scipy import ndimage

    if np_prob.shape != instances.shape or (tp_prob is not None and tp_prob.shape[1:] != instances.shape):
        shapes = f"{instances.shape}, {np_prob.shape} and {None if tp_prob is None else tp_prob.shape}"
        raise EosinError(f"label map, nucleus map and type map {shapes} are not [H, W], [H, W] and [C, H, W]")
    pixels = np.flatnonzero(instances)
    owner = instances.ravel()[pixels]
    count = int(owner.max()) if len(owner) else 0
    areas = np.bincount(owner, minlength=count + 1)[1:]
    rows, columns = np.divmod(pixels, instances.shape[1])
    x, y = (np.bincount(owner, weights=places, minlength=count + 1)[1:] / areas for places in (columns, rows))
    if tp_prob is None:
        types: list[int | None] = [None] * count
        likely = np.bincount(owner, weights=np_prob.ravel()[pixels], minlength=count + 1)[1:] / areas
    else:
        kinds, likely = _majority(owner, tp_prob.reshape(len(tp_prob), -1)[:, pixels].argmax(axis=0), areas)
        types = list(kinds.tolist())
    boxes = [(box[1].start, box[0].start, box[1].stop, box[0].stop) for box in ndimage.find_objects(instances)]
    return [
        Nucleus(number, *rest)
        for number, rest in enumerate(
            zip(
                boxes,
                zip(x.tolist(), y.tolist(), strict=True),
                areas.tolist(),
                types,
                likely.tolist(),
                outlines(instances),
                strict=True,
            ),
            start=1,
        )
    ]


def _majority(
    owner: Ids, said: npt.NDArray[np.int64], areas: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], Floats]:
    """Choose types: int64 [n], and the share of a nucleus's pixels that say so; of equals the lower type."""
    width = int(said.max()) + 1 if len(said) else 1
    cells = np.bincount(owner.astype(np.int64) * width + said, minlength=(len(areas) + 1) * width)
    votes = cells.reshape(-1, width)[1:]
    kinds = votes.argmax(axis=1)
    others = votes.copy()
    others[:, 0] = 0
    second = np.where(others.any(axis=1), others.argmax(axis=1), 0)
    kinds = np.where(kinds == 0, second, kinds)
    return kinds, votes[np.arange(len(kinds)), kinds] / areas
