"""What HoVer-Net learns from a label map: nucleus or not, where in its nucleus a pixel lies, and of what type it is.

The horizontal map of a nucleus runs from -1 at its left edge over 0 at its center to +1 at its right edge, the vertical
map likewise from top to bottom (Graham et al., Medical Image Analysis 2019, section 3.1). Between touching nuclei both
jump from +1 to -1, which is what separates them.

As the authors' code has it: centers are the rounded center of mass; the two sides are scaled by themselves; a map is
cut out of a larger canvas, nuclei with fewer than 30 px inside the cut stay 0 in the HV maps but not in the nucleus
map, and the others are measured with what lies outside it. `center="official"` is the authors' center, which lies one
pixel left of and above the center of mass (they count pixels from 1 and the center from 0); `"exact"` is the center of
mass itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from eosin.core.errors import EosinError
from eosin.nuclei.labels import Labels, relabel

__all__ = ["SMALL", "Targets", "center_cut", "targets"]

SMALL = 30
"""Pixels inside the cut below which a nucleus is left out of the HV maps."""

Center = Literal["official", "exact"]
Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Targets:
    """What the branches of the network learn of one cut.

    Attributes:
        np: uint8 [h, w], 1 inside nuclei.
        hv: float32 [2, h, w], -1 to 1, horizontal then vertical, 0 outside nuclei.
        tp: int64 [h, w], type of each pixel, 0 outside nuclei; None without types.
    """

    np: Bytes
    hv: Floats
    tp: Ints | None


def center_cut(height: int, width: int, crop: tuple[int, int], name: str = "the label map") -> tuple[slice, slice]:
    """Return where a cut of the middle lies; with an odd rest, one pixel more remains below and to the right.

    Raises:
        EosinError: If the cut is larger than what it is cut from.
    """
    if not (0 < crop[0] <= height and 0 < crop[1] <= width):
        raise EosinError(f"{name}: {width}x{height} px are too few for a cut of {crop[1]}x{crop[0]} px")
    top, left = (height - crop[0]) // 2, (width - crop[1]) // 2
    return slice(top, top + crop[0]), slice(left, left + crop[1])


def targets(
    instances: Labels,
    types: npt.ArrayLike | None = None,
    crop: tuple[int, int] | None = None,
    *,
    small: int = SMALL,
    center: Center = "official",
) -> Targets:
    """Make the targets of the middle of a label map.

    Args:
        instances: Integer [H, W], no id below 0, each nucleus in one part (`labels.split_parts`, after mirroring).
        types: Integer [H, W], the type of each pixel, or [n], that of each nucleus in the order of the ids.
        crop: Height and width of the middle; all by default.
        small: Nuclei with fewer pixels than this in the middle stay 0 in the HV maps.
        center: See the module.

    Raises:
        EosinError: If the map is smaller than the cut, or types are not those of this map.
    """
    height, width = instances.shape
    window = center_cut(height, width, crop or (height, width))
    contiguous = relabel(instances)
    inside = contiguous[window]
    nuclei = (inside > 0).astype(np.uint8)
    typed = None if types is None else _type_target(contiguous, np.asarray(types), window)
    return Targets(nuclei, _hv(contiguous, inside, window, small, center), typed)


def _type_target(instances: npt.NDArray[np.int32], types: Ints, window: tuple[slice, slice]) -> Ints:
    if types.ndim == 2:
        if types.shape != instances.shape:
            raise EosinError(f"types of {types.shape[::-1]} px for a label map of {instances.shape[::-1]} px")
        return types[window].astype(np.int64)
    count = int(instances.max())
    if types.shape != (count,):
        raise EosinError(f"{types.size} types for {count} nuclei; give each nucleus one type")
    return np.concatenate([[0], types]).astype(np.int64)[instances[window]]


def _hv(
    instances: npt.NDArray[np.int32],
    inside: npt.NDArray[np.int32],
    window: tuple[slice, slice],
    small: int,
    center: Center,
) -> Floats:
    """Measure each nucleus once, then give each of its pixels its place: float32 [2, h, w]."""
    from scipy import ndimage

    hv = np.zeros((2, *inside.shape), dtype=np.float32)
    count = int(instances.max())
    sizes = np.bincount(inside.ravel(), minlength=count + 1)
    wanted = sizes >= max(small, 1)
    wanted[0] = False
    numbers = np.flatnonzero(wanted)
    if not len(numbers):
        return hv
    boxes = ndimage.find_objects(instances)
    bounds = np.array([[(side.start, side.stop - 1) for side in boxes[number - 1]] for number in numbers])
    # Only the part of the canvas where these nuclei lie is looked at.
    low, high = bounds[:, :, 0].min(axis=0), bounds[:, :, 1].max(axis=0) + 1
    part = instances[low[0] : high[0], low[1] : high[1]]
    pixels = np.flatnonzero(wanted[part])
    owner = part.ravel()[pixels]
    areas = np.bincount(owner, minlength=count + 1)[numbers]
    rows, columns = np.nonzero(wanted[inside])
    whose = np.searchsorted(numbers, inside[rows, columns])
    # Rows are channel 1 of the maps, columns channel 0.
    for axis, (channel, places, offset) in enumerate(
        ((1, rows, window[0].start), (0, columns, window[1].start)),
    ):
        of_pixel = pixels // part.shape[1] if axis == 0 else pixels % part.shape[1]
        mean = np.bincount(owner, weights=of_pixel, minlength=count + 1)[numbers] / areas + low[axis]
        middle = np.floor(mean + 0.5) - 1 if center == "official" else mean
        before = (middle - bounds[:, axis, 0]).astype(np.float32)
        after = (bounds[:, axis, 1] - middle).astype(np.float32)
        distance = (places + offset - middle[whose]).astype(np.float32)
        scale = np.where(distance < 0, before[whose], after[whose])
        # A side without extent holds distances of 0 only.
        hv[channel, rows, columns] = distance / np.where(scale > 0, scale, 1)
    return hv
