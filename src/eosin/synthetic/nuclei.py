"""Nuclei: what each type looks like, and drawing them with their instance and type maps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eosin.synthetic.frame import Array, Frame, Points
from eosin.synthetic.shapes import Shapes, rasterize, shapes, thin

EPITHELIAL, TUMOR, LYMPHOCYTE, FIBROBLAST, MUSCLE = 1, 2, 3, 4, 5

NUCLEUS_TYPES: dict[int, str] = {
    EPITHELIAL: "epithelial",
    TUMOR: "tumor",
    LYMPHOCYTE: "lymphocyte",
    FIBROBLAST: "fibroblast",
    MUSCLE: "muscle",
}

# Above this many µm per pixel a nucleus is too small to be told apart, and the maps stay empty.
COARSEST_LABELED_MPP = 4.0


def lymphocytes(frame: Frame, places: Points, size: float = 1.0) -> Shapes:
    """Round, dark, about 7 µm, chromatin in coarse clumps. Uses 4 traits."""
    t = places.traits
    a = size * (2.95 + 0.75 * t[0])
    return shapes(
        places, a, a * (0.82 + 0.16 * t[1]), angle=6.3 * t[2], rough=0.035,
        dark=0.95 + 0.35 * t[3], vesicle=0.24, clump=0.5, kind=LYMPHOCYTE, scale=frame.lod,
    )  # fmt: skip


def spindles(frame: Frame, places: Points, angle: Array, size: float = 1.0) -> Shapes:
    """Fibroblasts: thin, wavy, pointed, 10 to 18 µm long. Uses 4 traits."""
    t = places.traits
    a = size * (4.8 + 4.0 * t[0])
    return shapes(
        places, a, size * (0.9 + 0.8 * t[1]), angle=angle, bend=2.4 * (t[2] - 0.5), taper=0.55,
        rough=0.05, dark=0.85 + 0.35 * t[3], vesicle=0.15, clump=0.3, kind=FIBROBLAST, scale=frame.lod,
    )  # fmt: skip


def cigars(frame: Frame, places: Points, angle: Array) -> Shapes:
    """Smooth muscle: straight, blunt-ended, 12 to 20 µm long, pale. Uses 4 traits."""
    t = places.traits
    return shapes(
        places, 5.5 + 3.8 * t[0], 1.25 + 0.6 * t[1], angle=angle, bend=1.0 * (t[2] - 0.5), taper=-0.3,
        rough=0.02, dark=0.75 + 0.25 * t[3], vesicle=0.3, clump=0.34, kind=MUSCLE, scale=frame.lod,
    )  # fmt: skip


def columnar(frame: Frame, places: Points, angle: Array, slender: float) -> Shapes:
    """Nuclei of a normal gland: oval, on end, 8 to 10 µm long. Uses 4 traits."""
    t = places.traits
    return shapes(
        places, 3.9 + 1.2 * t[0], (2.3 + 0.6 * t[1]) * slender, angle=angle + 0.35 * (t[2] - 0.5), rough=0.03,
        dark=0.85 + 0.25 * t[3], vesicle=0.35, clump=0.38, nucleolus=0.15, kind=EPITHELIAL, scale=frame.lod,
    )  # fmt: skip


def tumor_nuclei(frame: Frame, places: Points, angle: Array, size: float, slender: float, grade: float) -> Shapes:
    """Large, uneven, vesicular, with nucleoli, 9 to 15 µm. `grade` 0 to 1 spreads their sizes. Uses 6 traits."""
    t = places.traits
    mean = size * np.exp((0.16 + 0.26 * grade) * (t[0] + t[4] - 1)) * 4.7
    ratio = slender * (0.72 + 0.28 * t[1])
    dark = 0.82 + 0.34 * t[3]
    # A few are dense and shrunken (dying) or in division.
    dense = t[5] > 0.95
    long = np.where(dense, 0.62 * mean, mean / np.sqrt(ratio))
    wide = np.where(dense, 0.45 * mean, mean * np.sqrt(ratio))
    return shapes(
        places, long, wide,
        angle=angle + 0.8 * (t[2] - 0.5), rough=0.05 + 0.05 * grade, dark=np.where(dense, 1.5, dark),
        vesicle=np.where(dense, 0.0, 0.18 + 0.42 * grade + 0.15 * t[4]), clump=0.42,
        nucleolus=np.where(dense, 0.0, 0.35 + 0.5 * t[1]), kind=TUMOR, scale=frame.lod,
    )  # fmt: skip


def scatter(frame: Frame, pitch: float, name: str, *, keep: float = 1.0, jitter: float = 0.5, count: int = 4) -> Points:
    """Places with `count` traits, of which a share `keep` is occupied."""
    places = frame.points(pitch, name, count + 1, jitter=jitter)
    places = places.take(places.traits[count] < keep) if keep < 1 else places
    return Points(places.x, places.y, places.traits[:count])


@dataclass(frozen=True)
class Drawn:
    """A field with its nuclei.

    Attributes:
        hematoxylin: Amount of hematoxylin, float32 [h, w].
        eosin: Amount of eosin, float32 [h, w].
        instances: 0 outside nuclei, else 1 to n, int32 [h, w].
        types: Id in `NUCLEUS_TYPES` of each pixel's nucleus, else 0, uint8 [h, w].
    """

    hematoxylin: Array
    eosin: Array
    instances: NDArray[np.int32]
    types: NDArray[np.uint8]


def _chromatin(frame: Frame, bodies: Shapes, grain: Array) -> tuple[Array, Array, NDArray[np.int32]]:
    """Flat coverage, hematoxylin inside, and index + 1 of the body on top of each pixel."""
    total = frame.size * frame.size
    cover, inside = np.zeros(total, np.float32), np.zeros(total, np.float32)
    top = np.zeros(total, np.int32)
    for patch in rasterize(frame, bodies):
        who = patch.owner
        rim = np.exp(-np.square(patch.depth - np.float32(0.35)) * np.float32(2.2))
        value = 1 - bodies.vesicle[who] * (1 - rim)
        value += bodies.clump[who] * grain.take(patch.pixel)
        spot = np.float32(0.9) * bodies.phase[who] - np.float32(0.45)
        far = np.square((patch.u - spot) * bodies.a[who]) + np.square((patch.v + spot * 0.7) * bodies.b[who])
        value += bodies.nucleolus[who] * np.exp(far * np.float32(-0.9))
        value *= bodies.dark[who]
        np.maximum.at(cover, patch.pixel, patch.cover)
        inside[patch.pixel] = value
        solid = patch.cover >= 0.5
        top[patch.pixel[solid]] = who[solid] + 1
    return cover, inside, top


def draw_nuclei(frame: Frame, hematoxylin: Array, eosin: Array, bodies: Shapes) -> Drawn:
    """Put nuclei on a field; where two overlap the later is on top.

    Args:
        frame: The window.
        hematoxylin: What lies around them, float32 [h, w].
        eosin: What lies around them, float32 [h, w].
        bodies: The nuclei; `kind` is their type.
    """
    bodies = thin(bodies, 0.68)
    shape = hematoxylin.shape
    instances, types = np.zeros(shape, np.int32), np.zeros(shape, np.uint8)
    if not len(bodies):
        return Drawn(hematoxylin, eosin, instances, types)
    grain = frame.noise(1.5, "chromatin") + 0.6 * frame.noise(0.8, "chromatin fine")
    cover, inside, top = _chromatin(frame, bodies, grain.ravel())
    cover, inside = cover.reshape(shape), inside.reshape(shape)
    hematoxylin = hematoxylin + cover * (np.maximum(inside, 0.25) + 0.15 * hematoxylin - hematoxylin)
    eosin = eosin + cover * (0.22 + 0.35 * eosin - eosin)
    if frame.mpp <= COARSEST_LABELED_MPP:
        area = np.bincount(top, minlength=len(bodies) + 1)
        # A sliver of a nucleus under the border of the window or under another is no instance to learn from.
        seen = area >= 4
        seen[0] = False
        number = np.where(seen, np.cumsum(seen), 0).astype(np.int32)
        instances = number[top].reshape(shape)
        kinds = np.concatenate([np.zeros(1, np.uint8), bodies.kind])
        types = np.where(seen, kinds, 0).astype(np.uint8)[top].reshape(shape)
    return Drawn(hematoxylin, eosin, instances, types)
