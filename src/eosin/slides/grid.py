"""A grid of tiles over a slide at a physical scale, and how much of each tile a mask covers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eosin.core.errors import EosinError

__all__ = ["Grid", "coverage", "lay_grid"]

# Level-0 px by which a tile may reach out of the slide. OpenSlide and libtiff keep a TIFF's resolution in 32 bits, so a
# position 100,000 px from the corner is known to about 0.006 px.
_SLACK = 0.01
# Shares nearer to 1 than this are 1: a tile inside the tissue passes a threshold of 1 whatever its position's last bit.
_NEARLY_ONE = 1e-9

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Grid:
    """Where the tiles of a slide lie.

    Attributes:
        x: Left edge of each tile in level-0 px, int64 [N], row by row.
        y: Upper edge of each tile in level-0 px, int64 [N].
        level0_width: Extent of a tile along x in level-0 px; need not be whole.
        level0_height: Extent of a tile along y in level-0 px.
        mpp: µm/px of the tiles.
        size: Side of a tile in px at `mpp`.
    """

    x: IntArray
    y: IntArray
    level0_width: float
    level0_height: float
    mpp: float
    size: int

    def __len__(self) -> int:
        return len(self.x)


def lay_grid(
    slide_size: tuple[int, int], slide_mpp: tuple[float, float], *, mpp: float, size: int, stride: int
) -> Grid:
    """Lay tiles over a slide, anchored at its left upper corner, all of them wholly inside.

    Tile (i, j) lies at x = round(i · stride · mpp / slide_mpp_x), y = round(j · stride · mpp / slide_mpp_y): each
    position is rounded by itself, so none is off by more than half a level-0 px however wide the slide. Where rounding
    up would push the last row or column out of the slide, it is rounded down.

    Args:
        slide_size: Width and height in level-0 px.
        slide_mpp: µm per level-0 px along x and y.
        mpp: µm/px of the tiles.
        size: Side of a tile in px at `mpp`.
        stride: Distance between tiles in px at `mpp`: `size` for tiles that touch, less for tiles that overlap.

    Returns:
        The grid; empty when the slide is smaller than a tile.

    Raises:
        EosinError: If a number is not above 0.
    """
    for name, value in (("mpp", mpp), ("size", size), ("stride", stride), ("slide mpp", min(slide_mpp))):
        if not (math.isfinite(value) and value > 0):
            raise EosinError(f"{name}: {value!r} is not a number above 0")
    columns, width = _positions(slide_size[0], mpp / slide_mpp[0], size, stride)
    rows, height = _positions(slide_size[1], mpp / slide_mpp[1], size, stride)
    x, y = np.tile(columns, len(rows)), np.repeat(rows, len(columns))
    return Grid(x, y, width, height, float(mpp), int(size))


def _positions(length: int, scale: float, size: int, stride: int) -> tuple[IntArray, float]:
    """Tiles' positions along one side and their extent there in level-0 px; `scale` is level-0 px per px of a tile."""
    extent, step = size * scale, stride * scale
    room = length + _SLACK - extent
    if room < 0:
        return np.zeros(0, np.int64), extent
    exact = np.arange(int(room / step) + 1) * step
    return np.minimum(np.rint(exact), math.floor(room)).astype(np.int64), extent


def coverage(mask: npt.NDArray[np.bool_], grid: Grid, extent: tuple[float, float]) -> FloatArray:
    """Share of each tile's area that a mask covers, exactly, also where a tile cuts through the mask's pixels.

    Four lookups a tile in an integral image (Crow, "Summed-area tables for texture mapping", SIGGRAPH 1984); a mask
    being constant within a pixel, its integral is bilinear there. Whole pixels are summed as integers, so nothing is
    lost however large the slide.

    Args:
        mask: bool [h, w], from the slide's left upper corner on.
        grid: The tiles.
        extent: Width and height in level-0 px that the mask spans: the slide's, or a little more where its last pixels
            lie partly outside.

    Returns:
        float64 [N] in [0, 1]; what lies outside the mask counts as not covered.
    """
    height, width = mask.shape
    if len(grid) == 0 or mask.size == 0:
        return np.zeros(len(grid))
    # One row and column more than the integral needs: the fractional part of the far edge looks there and finds 0.
    integral = np.zeros((height + 2, width + 2), np.int32 if mask.size < 1 << 31 else np.int64)
    inside = integral[1:-1, 1:-1]
    np.cumsum(mask, axis=0, dtype=integral.dtype, out=inside)
    np.cumsum(inside, axis=1, out=inside)
    integral[-1], integral[:, -1] = integral[-2], integral[:, -2]
    scale_x, scale_y = width / extent[0], height / extent[1]
    left, right = _edges(grid.x, grid.level0_width, scale_x, width)
    top, bottom = _edges(grid.y, grid.level0_height, scale_y, height)
    covered = _rectangle(integral, left, right, top, bottom)
    share = covered / (grid.level0_width * scale_x * grid.level0_height * scale_y)
    share[share > 1 - _NEARLY_ONE] = 1.0
    return np.maximum(share, 0.0)


def _edges(at: IntArray, extent: float, scale: float, length: int) -> tuple[tuple[IntArray, FloatArray], ...]:
    """Whole mask px and the fraction beyond of both edges of each tile, within the mask."""
    low, high = np.clip(at * scale, 0, length), np.clip((at + extent) * scale, 0, length)
    return tuple((np.floor(edge).astype(np.int64), edge - np.floor(edge)) for edge in (low, high))


def _rectangle(
    integral: IntArray,
    left: tuple[IntArray, FloatArray],
    right: tuple[IntArray, FloatArray],
    top: tuple[IntArray, FloatArray],
    bottom: tuple[IntArray, FloatArray],
) -> FloatArray:
    """Area of the mask inside each rectangle, in mask px."""

    def column(edge: tuple[IntArray, FloatArray], row: IntArray) -> FloatArray:
        """Mask left of `edge` in one row of pixels, from where `row` begins, in px."""
        whole, part = edge
        below, above = integral[row + 1, whole], integral[row, whole]
        step = integral[row + 1, whole + 1] - integral[row, whole + 1] - (below - above)
        return (below - above) + part * step

    def columns(edge: tuple[IntArray, FloatArray]) -> tuple[IntArray, FloatArray]:
        """Mask left of `edge` between the whole rows: whole columns, and the column that the edge cuts."""
        whole, part = edge
        between = integral[bottom[0], whole] - integral[top[0], whole]
        cut = integral[bottom[0], whole + 1] - integral[top[0], whole + 1] - between
        return between, part * cut

    (far, far_part), (near, near_part) = columns(right), columns(left)
    area = (far - near) + (far_part - near_part)
    area += bottom[1] * (column(right, bottom[0]) - column(left, bottom[0]))
    area -= top[1] * (column(right, top[0]) - column(left, top[0]))
    return area
