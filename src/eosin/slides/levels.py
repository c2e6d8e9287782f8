"""The levels of a pyramid: how their pixels lie over those of level 0, and which one serves a resolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Level", "coarsest_serving", "lay_levels", "same_scene"]

# A level whose pixels are larger than wanted by no more than this still serves.
_SELECTION = 1e-3


@dataclass(frozen=True)
class Level:
    """One resolution of a slide.

    Attributes:
        width: px of this level.
        height: px of this level.
        downsample: px of level 0 per px of this level, along x and along y. Pixel (i, j) covers the px of level 0 from
            (i · x, j · y) to ((i + 1) · x, (j + 1) · y).
    """

    width: int
    height: int
    downsample: tuple[float, float]


def lay_levels(sizes: Sequence[tuple[int, int]]) -> tuple[Level, ...]:
    """Find how the levels lie over level 0.

    A scanner reduces by a whole number and rounds the size up or down: 2,221 px made from 4,443 are pixel pairs with
    one px left over, not pixels of 2.0005. So a ratio that a whole number explains, along both axes and up to the
    rounding of the sizes, is that number; where several do (small levels), a power of two is preferred, then the
    nearest. Any other ratio is taken as it is, along each axis.

    Args:
        sizes: Width and height of each level, finest first.
    """
    width, height = sizes[0]
    return tuple(Level(w, h, _downsample(width / w, height / h, width, height, w, h)) for w, h in sizes)


def _downsample(ratio_x: float, ratio_y: float, width: int, height: int, w: int, h: int) -> tuple[float, float]:
    # |w - width / k| < 1 holds between width / (w + 1) and width / (w - 1), without the ends.
    low = max(width / (w + 1), height / (h + 1))
    high = min(width / max(w - 1, 1e-9), height / max(h - 1, 1e-9))
    middle = (ratio_x * ratio_y) ** 0.5
    powers = [2**exponent for exponent in range(31) if low < 2**exponent < high]
    whole = powers or [k for k in {max(1, int(middle)), int(middle) + 1} if low < k < high]
    if not whole:
        return ratio_x, ratio_y
    best = min(whole, key=lambda k: abs(k / middle - 1))
    return float(best), float(best)


def same_scene(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether an image can be another one reduced: no larger, and of the same proportions up to rounding."""
    (width, height), (w, h) = size, other
    if w > width or h > height or min(w, h) < 1:
        return False
    return abs((width / w) / (height / h) - 1) <= 1 / w + 1 / h + 1e-3


def coarsest_serving(levels: Sequence[Level], step: tuple[float, float]) -> int:
    """Return the coarsest level that is no coarser than wanted along either axis (by 0.1 % at most); else level 0.

    Args:
        levels: Finest first.
        step: px of level 0 per px wanted, along x and y.
    """
    serving = 0
    for index, level in enumerate(levels):
        if all(have <= want * (1 + _SELECTION) for have, want in zip(level.downsample, step, strict=True)):
            serving = index
    return serving
