"""Pixels of any size at any place of a level, cut into pieces so that memory stays bounded."""

from __future__ import annotations

import math

import numpy as np

from eosin.slides.backend import Backend
from eosin.slides.resample import UInt8Array, resample_area, resample_linear

__all__ = ["FINER", "sample"]

FINER = 0.05
"""How much finer than the finest level pixels may be asked for: so much is interpolated, more would be invented."""

# Source pixels read at once (3 MB): few enough to stay in the processor's cache.
_PIECE = 1 << 20

_ROUNDING = 1e-9


def sample(
    backend: Backend,
    level: int,
    start: tuple[float, float],
    step: tuple[float, float],
    extent: tuple[float, float],
    size: tuple[int, int],
) -> UInt8Array:
    """Resample a region of a level.

    Args:
        backend: The open slide.
        level: The level to read.
        start: Left upper corner in px of the level; may lie outside.
        step: px of the level per output px, along x and y: the mean is taken where it is at least 1, else interpolated.
        extent: Where the slide ends, in px of the level: the last column of level 0 may have none here.
        size: Width and height of the output in px.

    Returns:
        uint8 [height, width, 3]; white where an output pixel lies wholly outside the slide.
    """
    start = (_whole(start[0]), _whole(start[1]))
    step = (_whole(step[0]), _whole(step[1]))
    out = np.full((size[1], size[0], 3), 255, np.uint8)
    columns, rows = (_inside(start[axis], step[axis], extent[axis], size[axis]) for axis in (0, 1))
    wide, high = _piece(backend.band(level), step, columns[1] - columns[0], rows[1] - rows[0])
    for top in range(rows[0], rows[1], high):
        for left in range(columns[0], columns[1], wide):
            part = (left, top, min(wide, columns[1] - left), min(high, rows[1] - top))
            out[top : top + part[3], left : left + part[2]] = _one_piece(backend, level, start, step, part)
    return out


def _whole(value: float) -> float:
    """Return the whole number that a value is, up to the rounding of arithmetic; else the value."""
    return float(round(value)) if abs(value - round(value)) <= _ROUNDING * max(1.0, abs(value)) else value


def _inside(start: float, step: float, extent: float, count: int) -> tuple[int, int]:
    """Return the range of output pixels that overlap the slide along an axis."""
    first = max(0, math.floor(-start / step + _ROUNDING))
    last = min(count, math.ceil((extent - start) / step - _ROUNDING))
    return (first, last) if first < last else (0, 0)


def _piece(band: int, step: tuple[float, float], width: int, height: int) -> tuple[int, int]:
    """Return how many output px to make at once: all, or else as many rows as one row of source tiles gives."""
    if width * step[0] * height * step[1] <= _PIECE:
        return max(1, width), max(1, height)
    high = max(1, int(band / step[1]))
    wide = max(1, int(_PIECE / (step[0] * max(1.0, high * step[1]))))
    return wide, high


def _one_piece(
    backend: Backend,
    level: int,
    start: tuple[float, float],
    step: tuple[float, float],
    part: tuple[int, int, int, int],
) -> UInt8Array:
    left, top, width, height = part
    size = backend.levels[level].width, backend.levels[level].height
    corner = start[0] + left * step[0], start[1] + top * step[1]
    ends = corner[0] + width * step[0], corner[1] + height * step[1]
    interpolated = min(step) < 1
    spans = []
    for axis in (0, 1):
        # Interpolation reaches half a pixel further than the mean.
        margin = 1 if interpolated else 0
        low = min(max(0, math.floor(corner[axis]) - margin), size[axis] - 1)
        high = max(min(size[axis], math.ceil(ends[axis] - _ROUNDING) + margin), low + 1)
        spans.append((low, high - low))
    (x, wide), (y, high) = spans
    pixels = backend.read(level, x, y, wide, high)
    origin = backend.origin(level, x, y)
    resample = resample_linear if interpolated else resample_area
    return resample(pixels, corner[0] - origin[0], corner[1] - origin[1], *step, width, height)
