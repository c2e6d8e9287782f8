"""Voronoi diagrams of jittered seeds: fat cells, glands, lumina (cellular noise, Worley 1996)."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eosin.synthetic.frame import Array, Frame, Points, mix, uniforms

# How far outside the window a diagram can be asked, µm.
_REACH = 80


@dataclass(frozen=True)
class Territory:
    """A diagram sampled at some places of shape S.

    Attributes:
        dx: x minus the x of the nearest seed, µm, float32 [S].
        dy: y minus the y of the nearest seed, µm, float32 [S].
        edge: Distance to the border with the territory of the next seed, µm, float32 [S].
        gap_x: x of the next seed minus x of the nearest, µm: a normal of that border, float32 [S].
        gap_y: The same along y.
        traits: Numbers in [0, 1) of the nearest seed, float32 [count, S].
    """

    dx: Array
    dy: Array
    edge: Array
    gap_x: Array
    gap_y: Array
    traits: Array


class Voronoi:
    """The diagram of one jittered seed a cell of a square lattice."""

    def __init__(
        self, frame: Frame, pitch: float, name: str, count: int, *, jitter: float = 0.35, corner: float = 0.5
    ) -> None:
        """Place the seeds.

        Args:
            frame: The window.
            pitch: Spacing of the seeds in µm.
            name: Which diagram.
            count: Random traits a seed.
            jitter: Largest move of a seed along each axis, in pitches (at most 0.5).
            corner: 0 puts a seed near the middle of the window, 0.5 a place where four territories meet.
        """
        column, row = frame.lattice(pitch, pitch + _REACH)
        key = mix(frame.key, zlib.crc32(name.encode()))
        traits = uniforms(key, column, row, count + 2)
        # A cell of the lattice begins at its seed's mean place less half a pitch.
        self._shift_x = corner - 0.5 + 0.6 * ((key & 0xFFFF) / 0xFFFF - 0.5)
        self._shift_y = corner - 0.5 + 0.6 * ((key >> 16 & 0xFFFF) / 0xFFFF - 0.5)
        self._first, self._width, self._pitch = int(column[0, 0]), column.size, pitch
        x = (column + 0.5 + self._shift_x + jitter * (2 * traits[0] - 1)) * pitch
        y = (row + 0.5 + self._shift_y + jitter * (2 * traits[1] - 1)) * pitch
        self.seeds = Points(x.astype(np.float32).ravel(), y.astype(np.float32).ravel(), traits[2:].reshape(count, -1))

    def _lattice_index(self, place: Array, shift: float) -> NDArray[np.int32]:
        scaled = place * np.float32(1 / self._pitch) - np.float32(shift + self._first)
        return np.floor(scaled).astype(np.int32)

    def at(self, x: Array, y: Array) -> Territory:
        """Sample the diagram.

        Args:
            x: µm, within 80 µm of the window, any shape that broadcasts with `y` to S.
            y: µm.
        """
        seed_x, seed_y = self.seeds.x, self.seeds.y
        home = self._lattice_index(y, self._shift_y) * np.int32(self._width) + self._lattice_index(x, self._shift_x)
        steps = np.array([r * self._width + c for r in (-1, 0, 1) for c in (-1, 0, 1)], np.int32)
        near = np.full(home.shape, np.iinfo(np.int32).max, np.int32)
        next_ = near.copy()
        for number, step in enumerate(steps):
            index = home + step
            far = np.square(x - seed_x.take(index))
            far += np.square(y - seed_y.take(index))
            # Positive floats sort like their bits, so the lowest four can carry which seed it was.
            bits = far.view(np.int32)
            bits &= np.int32(~15)
            bits |= np.int32(number)
            np.minimum(next_, np.maximum(near, bits), out=next_)
            np.minimum(near, bits, out=near)
        who, who_next = home + steps.take(near & 15), home + steps.take(next_ & 15)
        near_x, near_y = seed_x.take(who), seed_y.take(who)
        dx, dy = x - near_x, y - near_y
        gap_x, gap_y = seed_x.take(who_next) - near_x, seed_y.take(who_next) - near_y
        # Of the point's way towards the next seed, half the way between the seeds is left.
        wide = np.sqrt(gap_x * gap_x + gap_y * gap_y) + np.float32(1e-6)
        edge = np.maximum(wide / 2 - (dx * gap_x + dy * gap_y) / wide, 0)
        return Territory(dx, dy, edge, gap_x, gap_y, self.seeds.traits[:, who])
