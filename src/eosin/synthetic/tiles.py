"""One synthetic tile: which tissue, which slide, which field."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eosin.core.errors import EosinError
from eosin.synthetic.epithelium import paint_glands, paint_lymphocytes, paint_tumor
from eosin.synthetic.fibers import paint_muscle, paint_stroma
from eosin.synthetic.frame import Array, Frame, mix
from eosin.synthetic.layer import Layer
from eosin.synthetic.nuclei import Drawn, draw_nuclei
from eosin.synthetic.shapes import join
from eosin.synthetic.sparse import paint_adipose, paint_background, paint_mucus
from eosin.synthetic.stain import beer_lambert, scan, slide_stain

_PAINTERS: dict[str, Callable[[Frame], Layer]] = {
    "adipose": paint_adipose,
    "background": paint_background,
    "glands": paint_glands,
    "lymphocytes": paint_lymphocytes,
    "mucus": paint_mucus,
    "muscle": paint_muscle,
    "stroma": paint_stroma,
    "tumor": paint_tumor,
}

TISSUES: tuple[str, ...] = tuple(_PAINTERS)

# What is found next to what, and how often a field holds some of it.
_NEIGHBORS: dict[str, tuple[str, ...]] = {
    "adipose": ("stroma", "background", "muscle"),
    "background": ("stroma", "adipose", "mucus"),
    "glands": ("stroma", "lymphocytes"),
    "lymphocytes": ("stroma", "adipose", "tumor"),
    "mucus": ("tumor", "stroma", "background"),
    "muscle": ("stroma", "adipose"),
    "stroma": ("tumor", "lymphocytes", "muscle", "adipose"),
    "tumor": ("stroma", "lymphocytes", "mucus"),
}
_SHARE_MIXED = 0.35
_LARGEST = 4096


@dataclass(frozen=True)
class SyntheticTile:
    """A drawn tile. It is not real tissue.

    Attributes:
        image: R, G, B, uint8 [3, size, size].
        instances: 0 outside nuclei, else 1 to n, int32 [size, size]. Empty above 4 µm/px.
        types: Id in `NUCLEUS_TYPES` of each pixel's nucleus, 0 outside, uint8 [size, size].
        tissue: One of `TISSUES`.
        slide: Number of the slide it was stained with.
        mpp: µm per pixel.
    """

    image: NDArray[np.uint8]
    instances: NDArray[np.int32]
    types: NDArray[np.uint8]
    tissue: str
    slide: int
    mpp: float


def check_whole(name: str, value: int, low: int, high: int) -> None:
    """Raise EosinError naming the argument unless `value` is a whole number in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value <= high:
        raise EosinError(f"{name}: {value!r} is not a whole number from {low} to {high}")


def check_mpp(mpp: float) -> None:
    """Raise EosinError unless `mpp` is a number from 0.1 to 8."""
    number = isinstance(mpp, int | float | np.integer | np.floating) and not isinstance(mpp, bool)
    if not number or not math.isfinite(mpp) or not 0.1 <= mpp <= 8:
        raise EosinError(f"mpp: {mpp!r} is not a number from 0.1 to 8 (µm per pixel)")


def _frame(tissue: str, size: int, mpp: float, seed: int, slide: int, index: int) -> Frame:
    return Frame(size, float(mpp), mix(seed, slide, index, zlib.crc32(tissue.encode())))


def _blend(frame: Frame, tissue: str) -> Layer:
    """The tissue, in some fields with islands of a neighbour that leave the center alone."""
    layer = _PAINTERS[tissue](frame.child(tissue))
    mixing = frame.child("mixing")
    rng = mixing.rng()
    if rng.random() >= _SHARE_MIXED:
        return layer
    name = _NEIGHBORS[tissue][int(rng.integers(len(_NEIGHBORS[tissue])))]
    islands, bays = mixing.waves(110, "islands"), mixing.waves(32, "bays")

    def height(x: Array, y: Array) -> Array:
        bump = np.exp((x * x + y * y) * np.float32(-1 / (2 * 20.0**2)))
        return (
            islands(x, y) + np.float32(0.3) * bays(x, y) - np.float32(0.6) - np.float32(2.2) * bump.astype(np.float32)
        )

    rise = height(frame.x, frame.y) + np.float32(0.12) * mixing.noise(9, "coast")
    share = np.clip(rise * np.float32(9 / max(1.0, 0.5 * frame.mpp)) + np.float32(0.5), 0, 1)
    if not share.any():
        return layer
    other = _PAINTERS[name](frame.child(name))
    kept = [group.take(height(group.x, group.y) < 0) for group in layer.bodies]
    added = [group.take(height(group.x, group.y) >= 0) for group in other.bodies]
    return Layer(
        layer.hematoxylin + share * (other.hematoxylin - layer.hematoxylin),
        layer.eosin + share * (other.eosin - layer.eosin),
        kept + added,
    )


def draw_tissue(frame: Frame, tissue: str) -> Drawn:
    """The dyes and nuclei of a field before stain and scanner."""
    layer = _blend(frame, tissue)
    bodies = join(layer.bodies) if layer.bodies else None
    thickness = 1 + np.float32(0.07) * frame.noise(90, "thickness")
    grain = 1 + np.float32(0.15) * frame.noise(1.2, "grain") + np.float32(0.10) * frame.noise(3.1, "coarse grain")
    # Uptake differs over a section too: both dyes with its thickness, each on its own by a little less.
    cut, uptake_h, uptake_e = np.exp(frame.child("uptake").rng().normal(0, (0.2, 0.14, 0.16))).astype(np.float32)
    thickness *= cut * grain
    if bodies is None:
        empty = np.zeros(layer.eosin.shape, np.int32)
        drawn = Drawn(layer.hematoxylin, layer.eosin, empty, empty.astype(np.uint8))
    else:
        drawn = draw_nuclei(frame, layer.hematoxylin, layer.eosin, bodies)
    hematoxylin, eosin = drawn.hematoxylin * (thickness * uptake_h), drawn.eosin * (thickness * uptake_e)
    return Drawn(hematoxylin, eosin, drawn.instances, drawn.types)


def render_tile(
    tissue: str, *, size: int = 128, mpp: float = 0.5, seed: int = 0, slide: int = 0, index: int = 0
) -> SyntheticTile:
    """Draw a synthetic H&E tile: a pure function of its arguments.

    Tissue, slide and index choose a place; size and mpp choose the window on it, centred there. So half the mpp shows
    the middle of the same field twice as large, and structures keep their size in µm.

    Args:
        tissue: One of `TISSUES`; it fills the center and most of the tile.
        size: Side in pixels, 16 to 4096.
        mpp: µm per pixel, 0.1 to 8.
        seed: Seed of the collection, 0 to 2**63 - 1.
        slide: Number of the slide, which fixes stain and scanner (see `slide_stain`).
        index: Number of the field of this tissue on this slide.

    Raises:
        EosinError: An argument is out of its range; the message names it.
    """
    if tissue not in _PAINTERS:
        raise EosinError(f"tissue: {tissue!r} is not one of {', '.join(TISSUES)}")
    check_whole("size", size, 16, _LARGEST)
    check_mpp(mpp)
    for name, value in (("seed", seed), ("slide", slide), ("index", index)):
        check_whole(name, value, 0, 2**63 - 1)
    frame = _frame(tissue, int(size), mpp, int(seed), int(slide), int(index))
    drawn = draw_tissue(frame, tissue)
    stain = slide_stain(int(seed), int(slide))
    light = beer_lambert(drawn.hematoxylin, drawn.eosin, stain)
    image = scan(light, stain, frame.mpp, frame.child("sensor").key)
    return SyntheticTile(image, drawn.instances, drawn.types, tissue, int(slide), float(mpp))
