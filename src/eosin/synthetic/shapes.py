"""Ellipse-like bodies (nuclei, goblets, red cells) and how they are put on the pixel grid, all of a tile at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from eosin.synthetic.frame import Array, Frame, Points

_CHUNK = 4096


@dataclass(frozen=True)
class Shapes:
    """Bodies as columns, each float32 [n] but `kind`.

    Attributes:
        x: Center in µm.
        y: Center in µm.
        a: Half the length in µm.
        b: Half the width in µm.
        angle: Direction of the length in radians.
        bend: How far the ends bow sideways, µm.
        taper: 0 an ellipse, towards 1 a spindle with pointed ends, below 0 a cigar with blunt ends.
        rough: Relative irregularity of the outline.
        dark: Hematoxylin of the body, in units of a typical nucleus.
        vesicle: How empty the inside is against the rim, 0 to 1.
        clump: Contrast of the chromatin.
        nucleolus: Strength of the nucleolus, 0 for none.
        phase: A free random number in [0, 1).
        kind: Nucleus type, uint8 [n].
    """

    x: Array
    y: Array
    a: Array
    b: Array
    angle: Array
    bend: Array
    taper: Array
    rough: Array
    dark: Array
    vesicle: Array
    clump: Array
    nucleolus: Array
    phase: Array
    kind: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.x)

    def take(self, keep: NDArray[np.bool_] | slice) -> Shapes:
        """The bodies where `keep` holds."""
        return Shapes(**{field.name: getattr(self, field.name)[keep] for field in fields(self)})


def shapes(
    places: Points,
    a: Array | float,
    b: Array | float,
    *,
    angle: Array | float = 0.0,
    bend: Array | float = 0.0,
    taper: Array | float = 0.0,
    rough: Array | float = 0.0,
    dark: Array | float = 1.0,
    vesicle: Array | float = 0.0,
    clump: Array | float = 0.0,
    nucleolus: Array | float = 0.0,
    kind: int = 0,
    scale: float = 1.0,
) -> Shapes:
    """Bodies at `places`; single numbers hold for all of them. `scale` multiplies a and b (see `Frame.lod`)."""
    shape = places.x.shape

    def column(value: Array | float) -> Array:
        return np.ascontiguousarray(np.broadcast_to(np.asarray(value, np.float32), shape))

    phase = np.modf(places.x * np.float32(0.7548777) + places.y * np.float32(0.5698403))[0]
    return Shapes(
        places.x,
        places.y,
        column(a) * np.float32(scale),
        column(b) * np.float32(scale),
        column(angle),
        column(bend),
        column(taper),
        column(rough),
        column(dark),
        column(vesicle),
        column(clump),
        column(nucleolus),
        np.abs(phase),
        np.full(shape, kind, np.uint8),
    )


def join(groups: list[Shapes]) -> Shapes:
    """All bodies of the groups, in order: later ones lie on top."""
    return Shapes(
        **{field.name: np.concatenate([getattr(group, field.name) for group in groups]) for field in fields(Shapes)}
    )


def thin(bodies: Shapes, spacing: float) -> Shapes:
    """Drop bodies that come too near to another (Matérn's second hard-core process, so it is local).

    Args:
        bodies: What to thin.
        spacing: Two bodies are too near when closer than this times the sum of their mean radii.
    """
    if len(bodies) < 2:
        return bodies
    from scipy.spatial import cKDTree

    radius = np.sqrt(bodies.a * bodies.b)
    places = np.stack([bodies.x, bodies.y], axis=1)
    pairs = cKDTree(places).query_pairs(2 * spacing * float(radius.max()), output_type="ndarray")
    one, two = pairs[:, 0], pairs[:, 1]
    far = np.hypot(bodies.x[one] - bodies.x[two], bodies.y[one] - bodies.y[two])
    near = far < spacing * (radius[one] + radius[two])
    one, two = one[near], two[near]
    loser = np.where(bodies.phase[one] < bodies.phase[two], one, two)
    keep = np.ones(len(bodies), bool)
    keep[loser] = False
    return bodies.take(keep)


@dataclass(frozen=True)
class Patch:
    """The pixels some bodies may touch, one entry a pixel and body, flat.

    Attributes:
        pixel: Flat pixel index, int64 [t].
        owner: Index of the body in the whole set, int64 [t].
        u: Place along the body's length, in half lengths, float32 [t].
        v: Place across it, in half widths.
        depth: Distance inside the outline in µm (negative outside).
        cover: Share of the pixel inside the outline, 0 to 1.
    """

    pixel: NDArray[np.int64]
    owner: NDArray[np.int64]
    u: Array
    v: Array
    depth: Array
    cover: Array


def rasterize(frame: Frame, bodies: Shapes) -> Iterator[Patch]:
    """Walk the pixels of all bodies, in order, a few thousand bodies at a time."""
    for start in range(0, len(bodies), _CHUNK):
        part = bodies.take(slice(start, start + _CHUNK))
        patch = _patch(frame, part)
        if len(patch.pixel):
            yield Patch(patch.pixel, patch.owner + start, patch.u, patch.v, patch.depth, patch.cover)


def _boxes(
    frame: Frame, s: Shapes
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """First column, first row, width and height of each body's pixels."""
    cos, sin = np.abs(np.cos(s.angle)), np.abs(np.sin(s.angle))
    grow = 1 + 2 * s.rough
    length, width = s.a * grow, s.b * grow * np.where(s.taper < 0, 1 - s.taper, 1) + np.abs(s.bend)
    reach_x = np.hypot(length * cos, width * sin) + frame.mpp
    reach_y = np.hypot(length * sin, width * cos) + frame.mpp
    low = [np.floor((at - r + frame.half) / frame.mpp) for at, r in ((s.x, reach_x), (s.y, reach_y))]
    high = [np.ceil((at + r + frame.half) / frame.mpp) for at, r in ((s.x, reach_x), (s.y, reach_y))]
    left, top = (np.clip(v, 0, frame.size).astype(np.int64) for v in low)
    right, bottom = (np.clip(v, 0, frame.size).astype(np.int64) for v in high)
    return left, top, np.maximum(right - left, 0), np.maximum(bottom - top, 0)


def _patch(frame: Frame, s: Shapes) -> Patch:
    left, top, width, height = _boxes(frame, s)
    count = width * height
    owner = np.repeat(np.arange(len(s), dtype=np.int32), count)
    step = np.arange(len(owner), dtype=np.int32) - np.repeat((np.cumsum(count) - count).astype(np.int32), count)
    wide = width.astype(np.int32).take(owner)
    row = step // wide
    column = step - row * wide
    column += left.astype(np.int32).take(owner)
    row += top.astype(np.int32).take(owner)
    dx = frame.x[0].take(column) - s.x.take(owner)
    dy = frame.x[0].take(row) - s.y.take(owner)
    cos, sin = np.cos(s.angle).take(owner), np.sin(s.angle).take(owner)
    u = (dx * cos + dy * sin) / s.a.take(owner)
    square = np.minimum(u * u, 1)
    v = dy * cos - dx * sin
    v += s.bend.take(owner) * (square - np.float32(0.4))
    v /= s.b.take(owner) * (1 - s.taper.take(owner) * square)
    q = np.sqrt(u * u + v * v) + np.float32(1e-4)
    # Most pixels of a box lie well outside; the rest is worth the exact outline.
    reach = 1 + 2 * s.rough + frame.mpp / np.minimum(s.a, s.b)
    keep = np.flatnonzero(q < reach.astype(np.float32).take(owner))
    owner, u, v, q = owner.take(keep), u.take(keep), v.take(keep), q.take(keep)
    turn = np.float32(2 * np.pi) * s.phase
    cu, cv = u / q, v / q
    lobes = (cu * cu - cv * cv) * np.cos(turn).take(owner) + cu * (4 * cu * cu - 3) * np.sin(turn * 3).take(owner)
    lobes += cv * (3 - 4 * cv * cv) * np.cos(turn * 5).take(owner)
    q /= 1 + s.rough.take(owner) * lobes
    # Along a ray from the center the outline lies at distance r / q.
    far = np.hypot(dx.take(keep), dy.take(keep))
    depth = np.where(q < 0.3, np.minimum(s.a, s.b).take(owner) * (1 - q), far / q - far)
    cover = np.clip(np.float32(0.5) + depth * np.float32(1 / frame.mpp), 0, 1)
    pixel = row.take(keep).astype(np.int64) * frame.size + column.take(keep)
    return Patch(pixel, owner.astype(np.int64), u, v, depth, cover)


def coverage(frame: Frame, bodies: Shapes) -> Array:
    """How much of each pixel the bodies cover, float32 [size, size] in 0 to 1."""
    covered = np.zeros(frame.size * frame.size, np.float32)
    for patch in rasterize(frame, bodies):
        np.maximum.at(covered, patch.pixel, patch.cover)
    return covered.reshape(frame.size, frame.size)
