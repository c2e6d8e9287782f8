"""How sharp a tile is, by what its finest detail weighs against the next coarser: a number without units."""

from __future__ import annotations

import itertools
import math

import numpy as np
import numpy.typing as npt

__all__ = ["BLURRED", "detail_factor", "sharpness"]

Array = npt.NDArray[np.float32]

BLURRED = 0.2
"""Tiles whose sharpness is below this are blurred; see docs/describe.md for how well that tells them."""

# Scale, in µm, of the finest detail that is judged: half of a nucleolus, twice a pixel of a 20x scan.
_FINEST = 1.0
_OCTAVES = 3
_SMALLEST_GRID = 8
# Mean squared Laplacian, in squared gray levels, below which there is no detail to compare with.
_LEAST_DETAIL = 4.0


def detail_factor(mpp: float, side: int) -> int:
    """Return how many pixels of a tile the finest detail spans.

    Args:
        mpp: µm/px, NaN where unknown: it is then taken for 0.5.
        side: The tile's short side in px.

    Returns:
        The number of pixels that comes nearest to 1 µm, at least 2: single pixels are full of noise and of what JPEG
        leaves. At most a 32nd of the side, so that small tiles keep a few octaves.
    """
    wanted = round(_FINEST / mpp) if math.isfinite(mpp) and mpp > 0 else 2
    return max(2, min(wanted, side // 32))


def sharpness(gray: npt.NDArray[np.uint8], factor: int) -> float:
    """Compare the detail of one scale with that of twice the scale, for three octaves, and return the least.

    The gray image is averaged over squares of `factor` px and its Laplacian taken (4 neighbors); E1 is the mean square
    of that, E2 the same of the image averaged over squares twice as wide, then E3 and E4. The sharpness is the least of
    E1/E2, E2/E3 and E3/E4. Contrast, stain and the amount of tissue cancel out; blur takes from the fine scale what it
    leaves to the coarse one. After Pech-Pacheco et al. (ICPR 2000), whose variance of the Laplacian this sets in
    relation, because alone it measures content as much as focus.

    Args:
        gray: uint8 [h, w].
        factor: Pixels that the finest detail spans.

    Returns:
        About 0.08 to 3; NaN where the tile is too small or has no detail at any scale.
    """
    level = _averaged(gray, factor)
    energies: list[float] = []
    while len(energies) <= _OCTAVES and min(level.shape) >= _SMALLEST_GRID:
        energies.append(_detail(level))
        level = _averaged(level, 2)
    ratios = [fine / coarse for fine, coarse in itertools.pairwise(energies) if coarse >= _LEAST_DETAIL]
    return min(ratios, default=math.nan)


def _averaged(image: npt.NDArray[np.uint8] | Array, factor: int) -> Array:
    """Average over squares; what is left of them at the right and lower edge is cut off."""
    height, width = image.shape[0] // factor, image.shape[1] // factor
    squares = image[: height * factor, : width * factor].reshape(height, factor, width * factor)
    rows: Array = squares.sum(axis=1, dtype=np.float32)
    return rows.reshape(height, width, factor).sum(axis=2) * np.float32(1 / factor**2)


def _detail(image: Array) -> float:
    laplacian = 4 * image[1:-1, 1:-1]
    for neighbor in (image[:-2, 1:-1], image[2:, 1:-1], image[1:-1, :-2], image[1:-1, 2:]):
        laplacian -= neighbor
    return float(np.square(laplacian).mean())
