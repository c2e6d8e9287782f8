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
from eosin.nuclei.labels import Labels, relabel, relabel_with_ids

__all__ = ["SMALL", "Center", "Targets", "center_cut", "targets"]

SMALL = 30
"""Pixels inside the cut below which a nucleus is left out of the HV maps."""

_TABLE = 1 << 20
"""Largest id for which a table over all ids is made."""

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
    inside = instances[window]
    nuclei = (inside > 0).astype(np.uint8)
    typed = None if types is None else _type_target(instances, np.asarray(types), window)
    return Targets(nuclei, _hv(instances, window, small, center), typed)


def _type_target(instances: Labels, types: Ints, window: tuple[slice, slice]) -> Ints:
    if types.ndim == 2:
        if types.shape != instances.shape:
            raise EosinError(f"types of {types.shape[::-1]} px for a label map of {instances.shape[::-1]} px")
        return types[window].astype(np.int64)
    contiguous = relabel(instances)
    count = int(contiguous.max())
    if types.shape != (count,):
        raise EosinError(f"{types.size} types for {count} nuclei; give each nucleus one type")
    return np.concatenate([[0], types]).astype(np.int64)[contiguous[window]]


def _hv(instances: Labels, window: tuple[slice, slice], small: int, center: Center) -> Floats:
    """Measure each nucleus of the cut once, then give each of its pixels there its place: float32 [2, h, w]."""
    middle, whole = _cut_first(instances, window, small)
    hv = np.zeros((2, *middle.shape), dtype=np.float32)
    pixels = np.flatnonzero(whole)
    if not len(pixels):
        return hv
    owner = whole.ravel()[pixels]
    areas = np.bincount(owner)
    target = np.flatnonzero(middle)
    whose = middle.ravel()[target]
    # Rows are channel 1 of the maps, columns channel 0.
    for channel, places, here, side in zip(
        (1, 0), np.divmod(pixels, whole.shape[1]), np.divmod(target, middle.shape[1]), window, strict=True
    ):
        first = np.full(len(areas), np.iinfo(np.int64).max)
        last = np.zeros(len(areas), dtype=np.int64)
        np.minimum.at(first, owner, places)
        np.maximum.at(last, owner, places)
        mean = np.bincount(owner, weights=places) / np.maximum(areas, 1)
        zero = np.floor(mean + 0.5) - 1 if center == "official" else mean
        distance = (here + side.start - zero[whose]).astype(np.float32)
        scale = np.where(distance < 0, (zero - first)[whose], (last - zero)[whose]).astype(np.float32)
        # A side without extent holds distances of 0 only.
        hv[channel].ravel()[target] = distance / np.where(scale > 0, scale, 1)
    return hv


def _cut_first(instances: Labels, window: tuple[slice, slice], small: int) -> tuple[Labels, Labels]:
    """Number the nuclei that are large enough inside the cut 1 to n, there and on the canvas; all others are 0."""
    found = relabel_with_ids(instances[window])
    sizes = np.bincount(found.instances.ravel())
    kept = sizes >= max(small, 1)
    kept[0] = False
    number = np.cumsum(kept, dtype=np.int32) * kept
    top = int(instances.max())
    if top > _TABLE:
        return _cut_first(relabel(instances), window, small)
    table = np.zeros(top + 1, dtype=np.int32)
    table[found.ids] = number[1:]
    return number.take(found.instances), table.take(instances)
