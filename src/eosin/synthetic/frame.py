"""The plane synthetic tissue is drawn on: coordinates in µm, and randomness as a function of position.

Everything here is a pure function of a key and of a place in µm, never of the pixel grid. So one call at half the
µm/px is the same field seen at twice the magnification, and a tile twice as wide is the same field with more of its
surroundings.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.float32]

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
# Samples of the noise table per wavelength, and its period in wavelengths.
_TABLE_STEP, _TABLE_PERIOD = 8, 64
# Side of the table of independent nodes.
_NODES = 512


def mix(*values: int) -> int:
    """Hash whole numbers to one 64-bit key (the finalizer of SplitMix64, Steele et al. 2014)."""
    state = 0
    for value in values:
        state = ((state ^ (value & _MASK)) + _GOLDEN) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def _mix_array(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = state + np.uint64(_GOLDEN)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def uniforms(key: int, column: NDArray[np.int64], row: NDArray[np.int64], count: int) -> Array:
    """Numbers in [0, 1) that belong to a lattice cell.

    Args:
        key: Which lattice.
        column: Cell indices along x, any shape S (broadcast with `row`).
        row: Cell indices along y.
        count: How many independent numbers a cell gets.

    Returns:
        float32 [count, *S].
    """
    with np.errstate(over="ignore"):
        state = _mix_array(column.astype(np.uint64) ^ np.uint64(key))
        state = _mix_array(state ^ row.astype(np.uint64))
        steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
        state = _mix_array(state[None] + steps.reshape((-1,) + (1,) * state.ndim))
    return (state >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


@lru_cache(maxsize=1)
def _nodes() -> Array:
    """Independent numbers in [-1, 1), one fixed table for every process, float32 [_NODES, _NODES]."""
    index = np.arange(_NODES)
    return uniforms(mix(0x0DE5), index[None, :], index[:, None], 1)[0] * 2 - 1


@lru_cache(maxsize=1)
def _table() -> Array:
    """Smooth periodic noise in [-1, 1], one fixed table for every process, flat."""
    nodes = _nodes()[:_TABLE_PERIOD, :_TABLE_PERIOD]
    pad = 4
    wide = Image.fromarray(np.pad(nodes, pad, mode="wrap"))
    side = _TABLE_PERIOD * _TABLE_STEP
    box = (pad, pad, pad + _TABLE_PERIOD, pad + _TABLE_PERIOD)
    smooth = np.asarray(wide.resize((side, side), Image.Resampling.BICUBIC, box=box), dtype=np.float32)
    return np.ascontiguousarray(np.pad(smooth, ((0, 1), (0, 1)), mode="wrap").ravel())


def _whole_and_rest(place: Array, scale: float, shift: float) -> tuple[NDArray[np.int32], Array]:
    """Index into the table, wrapped, and what is left over of `place` scaled and shifted."""
    scaled = place * np.float32(scale)
    scaled += np.float32(shift)
    whole = np.floor(scaled)
    scaled -= whole
    return whole.astype(np.int32) & np.int32(_TABLE_STEP * _TABLE_PERIOD - 1), scaled


@dataclass(frozen=True)
class Waves:
    """A sum of plane waves: a smooth field that can be evaluated, with its slope, anywhere on the plane.

    Attributes:
        kx: Wave numbers along x in 1/µm, float32 [n].
        ky: Wave numbers along y in 1/µm, float32 [n].
        phase: Radians, float32 [n].
        amplitude: One amplitude for every wave; the field has unit variance times `scale` squared.
    """

    kx: Array
    ky: Array
    phase: Array
    amplitude: float

    def __call__(self, x: Array, y: Array) -> Array:
        """Value at x, y (µm, any shapes that broadcast), float32."""
        total: Array | None = None
        for kx, ky, phase in zip(self.kx, self.ky, self.phase, strict=True):
            wave = np.sin((kx * x + phase) + ky * y)
            total = wave if total is None else total + wave
        assert total is not None
        return total * np.float32(self.amplitude)

    def slope(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Derivatives along x and y at x, y, per µm."""
        gx, gy = np.zeros(np.broadcast(x, y).shape, np.float32), np.zeros(np.broadcast(x, y).shape, np.float32)
        for kx, ky, phase in zip(self.kx, self.ky, self.phase, strict=True):
            wave = np.cos((kx * x + phase) + ky * y)
            gx += kx * wave
            gy += ky * wave
        return gx * np.float32(self.amplitude), gy * np.float32(self.amplitude)


@dataclass(frozen=True)
class Points:
    """Scattered places: x, y in µm, float32 [n], and `traits` in [0, 1), float32 [count, n]."""

    x: Array
    y: Array
    traits: Array

    def take(self, keep: NDArray[np.bool_]) -> Points:
        """The places where `keep` holds."""
        return Points(self.x[keep], self.y[keep], self.traits[:, keep])


@dataclass(frozen=True)
class Frame:
    """A square window on the plane, centred on its origin.

    Attributes:
        size: Side in pixels.
        mpp: µm per pixel.
        key: 64-bit key of everything random drawn through this frame.
    """

    size: int
    mpp: float
    key: int

    @property
    def half(self) -> float:
        """Half the side in µm."""
        return self.size * self.mpp / 2

    @property
    def lod(self) -> float:
        """How much larger nuclei are drawn, and how much wider apart: 1 up to 4 µm/px, where a nucleus is 2 px."""
        return max(1.0, self.mpp / 4)

    @cached_property
    def x(self) -> Array:
        """Column positions: x of the pixel centers in µm, float32 [1, size]."""
        return ((np.arange(self.size) + 0.5) * self.mpp - self.half).astype(np.float32)[None, :]

    @cached_property
    def y(self) -> Array:
        """Row positions: y of the pixel centers in µm, float32 [size, 1]."""
        return np.ascontiguousarray(self.x.T)

    def child(self, name: str) -> Frame:
        """The same window with a key of its own for `name`."""
        return Frame(self.size, self.mpp, mix(self.key, zlib.crc32(name.encode())))

    def rng(self) -> np.random.Generator:
        """A generator for what holds for the whole plane (angles, densities)."""
        return np.random.Generator(np.random.Philox(key=self.key))

    def full(self, value: float) -> Array:
        """A float32 [size, size] of one value."""
        return np.full((self.size, self.size), value, np.float32)

    def noise(self, wavelength: float, name: str) -> Array:
        """Band-limited value noise in about [-1, 1], zero where the pixels are too coarse to show it.

        Args:
            wavelength: Spacing of the lattice in µm.
            name: Which field.

        Returns:
            float32 [size, size].
        """
        if wavelength < 0.75 * self.mpp:
            return self.full(0.0)
        pad = 3 + int(2 * self.mpp / wavelength)
        first = int(np.floor(-self.half / wavelength)) - pad
        # The nodes are a cut from one table that repeats after a few hundred wavelengths, further than an eye compares.
        index = np.arange(first, -first + 1)
        key = mix(self.key, zlib.crc32(name.encode()))
        row, column = (index + (key & 0xFFFF)) % _NODES, (index + (key >> 16 & 0xFFFF)) % _NODES
        nodes = _nodes()[row[:, None], column]
        # Pillow puts the center of its first pixel at 0.5.
        low = -self.half / wavelength - first + 0.5
        high = self.half / wavelength - first + 0.5
        shape = (self.size, self.size)
        drawn = Image.fromarray(nodes).resize(shape, Image.Resampling.BICUBIC, box=(low, low, high, high))
        return np.asarray(drawn, dtype=np.float32)

    def streaks(self, along: Array, across: Array, length: float, width: float, name: str) -> Array:
        """Noise drawn out along one coordinate, in about [-1, 1].

        Args:
            along: Coordinate along the fibres in µm, float32 [size, size].
            across: Coordinate across them.
            length: Wavelength along, µm.
            width: Wavelength across, µm. Fades out where the pixels are too coarse for it.
            name: Which field.

        Returns:
            float32 [size, size].
        """
        visible = min(1.0, (width / self.mpp - 0.6) / 1.4)
        if visible <= 0:
            return self.full(0.0)
        key = mix(self.key, zlib.crc32(name.encode()))
        shift = (key & 0xFFFF) / 7.0, (key >> 16 & 0xFFFF) / 7.0
        row, down = _whole_and_rest(along, _TABLE_STEP / length, shift[0])
        column, right = _whole_and_rest(across, _TABLE_STEP / width, shift[1])
        # The table is wider than its period by one, and flat: one step right is + 1, one down is + its width.
        table, side = _table(), _TABLE_STEP * _TABLE_PERIOD + 1
        corner = row * np.int32(side)
        corner += column
        upper, lower = table.take(corner), table.take(corner + np.int32(side))
        upper += (table.take(corner + np.int32(1)) - upper) * right
        lower += (table.take(corner + np.int32(side + 1)) - lower) * right
        lower -= upper
        lower *= down
        upper += lower
        upper *= np.float32(visible)
        return upper

    def waves(self, wavelength: float, name: str, count: int = 5) -> Waves:
        """A smooth random field of unit variance with features of about `wavelength` µm."""
        rng = self.child(name).rng()
        turn = (np.arange(count) + rng.random(count)) * np.pi / count
        number = 2 * np.pi / (wavelength * rng.uniform(0.7, 1.5, count))
        phase = rng.uniform(0, 2 * np.pi, count)
        columns = np.stack([number * np.cos(turn), number * np.sin(turn), phase]).astype(np.float32)
        return Waves(columns[0], columns[1], columns[2], float(np.sqrt(2 / count)))

    def lattice(self, pitch: float, reach: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Columns [1, n] and rows [n, 1] of the square cells that cover the window and `reach` µm around it."""
        last = int(np.ceil((self.half + reach) / pitch)) + 1
        index = np.arange(-last, last + 1)
        return index[None, :], index[:, None]

    def points(self, pitch: float, name: str, count: int, *, jitter: float = 0.5, reach: float = 25.0) -> Points:
        """One place a cell of a hexagonal lattice, moved at random.

        Args:
            pitch: Spacing in µm (times `lod`).
            name: Which set.
            count: Random traits a place.
            jitter: Largest move along each axis, in pitches.
            reach: How far outside the window places are kept, µm.
        """
        pitch = pitch * self.lod
        # Rows are closer than columns, so it takes more of them.
        column, row = self.lattice(0.87 * pitch, reach)
        traits = uniforms(mix(self.key, zlib.crc32(name.encode())), column, row, count + 2)
        x = (column + 0.5 * (row % 2) + jitter * (2 * traits[0] - 1)) * pitch
        y = (row + jitter * (2 * traits[1] - 1)) * pitch * 0.87
        inside = (np.abs(x) < self.half + reach) & (np.abs(y) < self.half + reach)
        return Points(x[inside].astype(np.float32), y[inside].astype(np.float32), traits[2:, inside])
