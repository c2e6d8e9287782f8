"""A whole slide of synthetic tissue that can be drawn a window at a time, however large it is."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from eosin.core.errors import EosinError, nearest
from eosin.synthetic.frame import Array, Frame, mix
from eosin.synthetic.stain import beer_lambert, scan, slide_stain
from eosin.synthetic.tiles import draw_tissue

UInt8Array = NDArray[np.uint8]

INKS: dict[str, tuple[int, int, int]] = {
    "black": (38, 36, 44),
    "blue": (45, 75, 170),
    "green": (40, 150, 125),
    "red": (195, 34, 42),
}
"""Colors of pens: R, G, B of a full stroke on glass of 255."""

# In the order in which they lie beside each other; those at the ends are rare. From afar mucus is glass: left out.
_DRAWN = ("adipose", "stroma", "tumor", "glands", "lymphocytes", "muscle")
# Samples along the longer side of the field that shapes the islands.
_FIELD = 1280
# Width of an island's edge in px.
_EDGE = 4.0


class SlideScene:
    """Islands of synthetic tissue on glass: a pure function of its arguments, drawn window by window.

    A few fields of each tissue are drawn once; islands are paved with pieces of them, each cut at a random place and
    turned or mirrored at random, so that no two tiles are alike. The seams between pieces show. It is not real tissue.

    Args:
        width: In px.
        height: In px.
        mpp: µm/px at which tissue is drawn (held within 0.1 to 8).
        seed: Seed of everything random.
        tissue: Share of the slide that is tissue, 0 to 1.
        pen: Names of `INKS`; each draws one stroke, half of them loops.
        border: Width in px of a black border.
        cell: Side in px of the pieces: smaller ones are faster to prepare and repeat sooner.

    Raises:
        EosinError: If an ink is unknown or the share is no share.
    """

    def __init__(
        self,
        width: int,
        height: int,
        *,
        mpp: float = 0.5,
        seed: int = 0,
        tissue: float = 0.4,
        pen: Sequence[str] = (),
        border: int = 0,
        cell: int = 512,
    ) -> None:
        for ink in pen:
            if ink not in INKS:
                raise EosinError(f"pen: no ink is called '{ink}'; {nearest(ink, INKS)}")
        if not 0 <= tissue <= 1:
            raise EosinError(f"tissue: {tissue!r} is not a share from 0 to 1")
        self.width, self.height, self.border = width, height, border
        self._key, self._cell = mix(0x5C3E, seed), cell
        side = cell + cell // 4
        mpp = min(max(mpp, 0.1), 8.0)
        self._pieces = _stained(round(mpp, 6), side, 2 if cell >= 512 else 1, seed) if tissue > 0 else []
        self._glass = _glass(side, seed)
        # Bilinear between samples `step` px apart, positive in tissue.
        self.step = max(4, -(-max(width, height) // _FIELD))
        self._shape = (height // self.step + 2, width // self.step + 2)
        self._field = self._islands(tissue)
        down, across = np.gradient(self._field)
        self._slope = max(float(np.median(np.hypot(down, across))) / self.step, 1e-9)
        self._kind = self._noise(0.35, "kind")
        self._strokes = [(np.array(INKS[ink], np.float32) / 255, self._stroke(n)) for n, ink in enumerate(pen)]

    def pixels(self, x: int, y: int, width: int, height: int) -> UInt8Array:
        """Draw a window: uint8 [height, width, 3], R, G, B."""
        out = np.empty((height, width, 3), np.uint8)
        cell = self._cell
        for row in range(y // cell, -(-(y + height) // cell)):
            top, bottom = max(row * cell, y), min((row + 1) * cell, y + height)
            for column in range(x // cell, -(-(x + width) // cell)):
                left, right = max(column * cell, x), min((column + 1) * cell, x + width)
                part = out[top - y : bottom - y, left - x : right - x]
                self._draw(part, row, column, left, top)
        if self.border:
            edge = self.border
            out[: max(edge - y, 0)] = out[max(self.height - edge - y, 0) :] = 0
            out[:, : max(edge - x, 0)] = out[:, max(self.width - edge - x, 0) :] = 0
        return out

    def tissue_mask(self, shape: tuple[int, int]) -> NDArray[np.bool_]:
        """Where islands are, whether or not pen or border hides them: bool [h, w] spanning the slide."""
        return self._sampled(self._field, shape) > 0

    def pen_mask(self, shape: tuple[int, int]) -> NDArray[np.bool_]:
        """Where a stroke of a pen takes at least half of its full effect: bool [h, w] spanning the slide."""
        inked = np.zeros(shape, bool)
        for _, stroke in self._strokes:
            inked |= self._sampled(stroke, shape) >= 0.5
        return inked

    def _draw(self, part: UInt8Array, row: int, column: int, left: int, top: int) -> None:
        """Fill the part of one cell that a window shows."""
        height, width = part.shape[:2]
        low = top // self.step, left // self.step
        high = (top + height - 1) // self.step + 2, (left + width - 1) // self.step + 2
        near = self._field[low[0] : high[0], low[1] : high[1]]
        key = mix(self._key, row, column)
        where = (top - row * self._cell, left - column * self._cell, height, width)
        reach = _EDGE / 2 * self._slope
        if near.max() <= -reach:
            part[:] = _piece(self._glass, key, where, self._cell)
        else:
            part[:] = _piece(self._pieces[self._number(row, column, key)], key, where, self._cell)
            if near.min() < reach:
                rise = self._window(self._field, left, top, width, height)
                share = np.clip(rise / np.float32(_EDGE * self._slope) + np.float32(0.5), 0, 1)[:, :, None]
                glass = _piece(self._glass, key, where, self._cell)
                np.copyto(part, share * part + (1 - share) * glass + np.float32(0.5), casting="unsafe")
        for ink, stroke in self._strokes:
            if stroke[low[0] : high[0], low[1] : high[1]].any():
                amount = self._window(stroke, left, top, width, height)[:, :, None]
                # What passes the ink is its color to the power of its thickness (Beer-Lambert).
                np.copyto(part, part * ink**amount + np.float32(0.5), casting="unsafe")

    def _number(self, row: int, column: int, key: int) -> int:
        """Which field paves a cell: neighbors in the list lie side by side, and mingle by the random part."""
        count = len(self._pieces)
        at = self._kind[row * self._cell // self.step, column * self._cell // self.step]
        jitter = ((key >> 40) % 256 / 256 - 0.5) * count / len(_DRAWN)
        return int(np.clip((0.5 + 0.6 * at) * count + jitter, 0, count - 1))

    def _window(self, field: Array, left: int, top: int, width: int, height: int) -> Array:
        """Bilinear values of a field at the px of a window, float32 [height, width]."""
        rows, row_weights = _weights(top, height, self.step)
        columns, column_weights = _weights(left, width, self.step)
        near = field[rows : rows + row_weights.shape[1], columns : columns + column_weights.shape[1]]
        values = row_weights[:, : near.shape[0]] @ near @ column_weights[:, : near.shape[1]].T
        return np.asarray(values, np.float32)

    def _sampled(self, field: Array, shape: tuple[int, int]) -> Array:
        """Bilinear values of a field at the centers of a coarse raster that spans the slide."""
        from scipy.ndimage import map_coordinates

        rows = ((np.arange(shape[0]) + 0.5) * self.height / shape[0] - 0.5) / self.step
        columns = ((np.arange(shape[1]) + 0.5) * self.width / shape[1] - 0.5) / self.step
        places = np.meshgrid(rows, columns, indexing="ij")
        values: Array = map_coordinates(field, places, order=1, mode="nearest")
        return values

    def _noise(self, wavelength: float, name: str) -> Array:
        """Smooth noise in about [-1, 1] over the slide; `wavelength` is in shares of the longer side."""
        rng = np.random.Generator(np.random.Philox(key=mix(self._key, zlib.crc32(name.encode()))))
        length = wavelength * max(self._shape)
        nodes = [int(side / length) + 4 for side in self._shape]
        values = Image.fromarray(rng.uniform(-1, 1, nodes).astype(np.float32))
        box = (1.0, 1.0, 1 + self._shape[1] / length, 1 + self._shape[0] / length)
        smooth = values.resize(self._shape[::-1], Image.Resampling.BICUBIC, box=box)
        return np.asarray(smooth, np.float32)

    def _islands(self, share: float) -> Array:
        field = self._noise(0.3, "islands") + np.float32(0.4) * self._noise(0.07, "bays")
        field += np.float32(0.12) * self._noise(0.02, "coast")
        # Glass all around: the field falls off towards the edges of the slide.
        for axis, length in enumerate(self._shape):
            near = np.minimum(np.arange(length), np.arange(length)[::-1]) / (0.1 * length)
            fall = np.float32(1.5) * np.clip(1 - near, 0, 1).astype(np.float32) ** 2
            field -= fall[:, None] if axis == 0 else fall[None, :]
        if share in (0, 1):
            return np.full(self._shape, 1.0 if share else -1.0, np.float32)
        return field - np.float32(np.quantile(field, 1 - share))

    def _stroke(self, number: int) -> Array:
        """How strong a pen's stroke is at each sample of the field, 0 to 1: every other one a loop, else a line."""
        rng = np.random.Generator(np.random.Philox(key=mix(self._key, 0x9E2, number)))
        height, width = self._shape
        side = min(height, width)
        turn = np.linspace(0, 2 * np.pi, 60)
        center = rng.uniform(0.35, 0.65, 2) * (width, height)
        if number % 2 == 0:
            radius = side * rng.uniform(0.2, 0.3) * (1 + 0.12 * np.sin(3 * turn + rng.uniform(0, 6)))
            path = center[0] + radius * np.cos(turn), center[1] + radius * np.sin(turn)
        else:
            angle, along = rng.uniform(0, np.pi), np.linspace(-0.4, 0.4, 60) * side
            wave = 0.03 * side * np.sin(turn)
            path = (
                center[0] + along * np.cos(angle) - wave * np.sin(angle),
                center[1] + along * np.sin(angle) + wave * np.cos(angle),
            )
        thick = max(2, round(side * rng.uniform(0.025, 0.05)))
        picture = Image.new("L", (width, height))
        points = list(zip(*(values.tolist() for values in path), strict=True))
        brush = ImageDraw.Draw(picture)
        brush.line(points, fill=255, width=thick, joint="curve")
        for at in (points[0], points[-1]):
            brush.circle(at, thick / 2, fill=255)
        soft = picture.filter(ImageFilter.GaussianBlur(thick / 8))
        return np.asarray(np.asarray(soft) / 255, np.float32)


def _weights(start: int, length: int, step: int) -> tuple[int, Array]:
    """First sample that a run of px needs, and the linear weight of each sample in each px."""
    first = start // step
    place = (np.arange(start, start + length) / step - first).astype(np.float32)
    samples = np.arange(int(place[-1]) + 2, dtype=np.float32)
    return first, np.maximum(np.float32(1) - np.abs(place[:, None] - samples[None, :]), np.float32(0))


def _piece(patch: UInt8Array, key: int, where: tuple[int, int, int, int], cell: int) -> UInt8Array:
    """A view of a patch, cut at a random place and turned: the rows and columns `where` of a cell."""
    room = patch.shape[0] - cell
    top, left = key % (room + 1), (key >> 16) % (room + 1)
    piece = patch[top : top + cell, left : left + cell]
    if key >> 32 & 1:
        piece = piece.swapaxes(0, 1)
    piece = piece[:: -1 if key >> 33 & 1 else 1, :: -1 if key >> 34 & 1 else 1]
    row, column, height, width = where
    return piece[row : row + height, column : column + width]


@lru_cache(maxsize=6)
def _dyes(mpp: float, side: int, fields: int) -> tuple[tuple[Array, Array], ...]:
    """Hematoxylin and eosin of a few fields of each tissue, each float32 [side, side]."""
    drawn = []
    for name in _DRAWN:
        for number in range(fields):
            field = draw_tissue(Frame(side, mpp, mix(0xF1E1D, zlib.crc32(name.encode()), number)), name)
            drawn.append((field.hematoxylin.astype(np.float32), field.eosin.astype(np.float32)))
    return tuple(drawn)


def _stained(mpp: float, side: int, fields: int, seed: int) -> list[UInt8Array]:
    """The fields in the colors of one slide, uint8 [side, side, 3] each."""
    stain = slide_stain(seed, 0)
    pieces = []
    for number, (hematoxylin, eosin) in enumerate(_dyes(mpp, side, fields)):
        image = scan(beer_lambert(hematoxylin, eosin, stain), stain, mpp, mix(seed, number))
        pieces.append(np.ascontiguousarray(image.transpose(1, 2, 0)))
    return pieces


def _glass(side: int, seed: int) -> UInt8Array:
    """Empty glass with the sensor's noise, uint8 [side, side, 3]."""
    stain = slide_stain(seed, 0)
    empty = np.broadcast_to(np.array(stain.white, np.float32)[:, None, None], (3, side, side)).copy()
    return np.ascontiguousarray(scan(empty, stain, 0.5, mix(seed, 0x61A55)).transpose(1, 2, 0))
