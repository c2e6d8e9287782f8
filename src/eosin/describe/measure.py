"""What the pixels of a tile say: a few numbers each, measured by workers; nothing else is kept of a tile."""

from __future__ import annotations

import math
import sys
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.nn import functional

from eosin.augment.image_statistics import image_statistics
from eosin.core.console import progress_bar
from eosin.core.errors import EosinError
from eosin.data import Tiles, UnreadableImage, decode_image
from eosin.data.images import open_image
from eosin.data.tiles import digest
from eosin.data.workers import read_ahead
from eosin.describe.fingerprints import fingerprint
from eosin.describe.sharpness import detail_factor, sharpness
from eosin.stain.measure import one_thread

__all__ = ["Measured", "Unreadable", "measure"]

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]
UInt64Array = npt.NDArray[np.uint64]
UInt8Array = npt.NDArray[np.uint8]

_BATCH = 16
_NAMED = 8
# Stain is measured on at most the first side (px), as `eosin stain fit` does; sharpness and the rest on the central
# square of at most the second: a larger image says no more about focus, and costs as its area.
_STAIN_SIDE, _DETAIL_SIDE = 256, 1024
# A pixel none of whose channels is above this is black: a border or a hole in the scan, darker than any nucleus.
_BLACK = 20

_COLUMNS = ("width", "height", "bytes", "tissue", "black", "white", "sharpness", *("stain",) * 6, *("whole",) * 6)


@dataclass
class Unreadable:
    """Tiles of the sample that could not be read.

    Attributes:
        count: How many.
        reasons: How often each reason was given.
        first: Name and reason of the first few.
    """

    count: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    first: list[tuple[str, str]] = field(default_factory=list)

    def add(self, name: str, reason: str) -> None:
        """Count a tile."""
        self.count += 1
        if reason in self.reasons or len(self.reasons) < 1000:
            self.reasons[reason] += 1
        if len(self.first) < _NAMED:
            self.first.append((name, reason))


@dataclass(frozen=True, eq=False)
class Measured:
    """Numbers of the n tiles that could be read.

    Attributes:
        rows: int64 [n], rows in the source, ascending.
        table: float64 [n, 19], the columns that the properties name.
        kinds: File format and color mode of each, such as "JPEG" or "PNG, gray".
        fingerprints: uint64 [n], see `fingerprints.fingerprint`.
        digests: uint64 [n, 2], of the encoded bytes.
        unreadable: The others.
    """

    rows: Int64Array
    table: Float64Array
    kinds: list[str]
    fingerprints: UInt64Array
    digests: UInt64Array
    unreadable: Unreadable

    def column(self, name: str) -> Float64Array:
        """Return a column: [n], or [n, 6] for "stain" (tissue only) and "whole" (all pixels), in LAB.

        "width" and "height" are in px, "bytes" as encoded; "tissue", "black" and "white" (all channels at 255) are
        shares of the pixels, 0 to 1; "sharpness" is NaN where it cannot be told.
        """
        places = [place for place, known in enumerate(_COLUMNS) if known == name]
        return self.table[:, places[0]] if len(places) == 1 else self.table[:, places]

    def __len__(self) -> int:
        return len(self.rows)


def measure(tiles: Tiles, rows: Int64Array, workers: int) -> Measured:
    """Read and measure some tiles; the numbers depend on the tiles alone.

    Args:
        tiles: The source.
        rows: int64 [m], ascending.
        workers: Processes; 0 does it here.
    """
    chosen = tiles.select(rows)
    unreadable = Unreadable()
    tables, places, kinds, prints, digests = [np.empty((0, len(_COLUMNS)))], [], list[str](), list[int](), list[bytes]()
    starts = range(0, len(rows), _BATCH)
    with progress_bar() as progress:
        bar = progress.add_task("looking at tiles", total=len(rows))
        for start, part in zip(starts, read_ahead(_Reader(chosen), starts, workers), strict=True):
            tables.append(part.table)
            places += part.places
            kinds += part.kinds
            prints += part.fingerprints
            digests += part.digests
            for place, reason in part.bad.items():
                unreadable.add(chosen.names[place], reason)
            progress.update(bar, completed=min(start + _BATCH, len(rows)))
    return Measured(
        rows=rows[np.asarray(places, dtype=np.int64)],
        table=np.concatenate(tables),
        kinds=kinds,
        fingerprints=np.asarray(prints, dtype=np.uint64),
        digests=np.frombuffer(b"".join(digests), dtype=np.uint64).reshape(-1, 2),
        unreadable=unreadable,
    )


@dataclass
class _Part:
    """What a worker hands over of a batch: `places` are those, in the sample, of the tiles that could be read."""

    table: Float64Array
    places: list[int] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    fingerprints: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    bad: dict[int, str] = field(default_factory=dict)


class _Reader:
    """Measures a batch of consecutive rows, given the first."""

    def __init__(self, tiles: Tiles) -> None:
        self.mpp = tiles.mpp
        self.tiles = tiles.without_columns()

    def __call__(self, first: int, /) -> _Part:
        part, lines = _Part(np.empty((0, len(_COLUMNS)))), []
        with one_thread():
            for place in range(first, min(first + _BATCH, len(self.tiles))):
                try:
                    data = self.tiles.read(place)
                    kind = _kind(open_image(data))
                    pixels = decode_image(data)
                # A damaged shard of a store is an EosinError; the tiles of the other shards can still be described.
                except (UnreadableImage, EosinError) as error:
                    part.bad[place] = str(error)
                    continue
                gray = np.asarray(Image.fromarray(pixels.transpose(1, 2, 0)).convert("L"))
                mpp = math.nan if self.mpp is None else float(self.mpp[place])
                lines.append([pixels.shape[2], pixels.shape[1], len(data), *_numbers(pixels, gray, mpp)])
                part.places.append(place)
                part.kinds.append(kind)
                part.fingerprints.append(fingerprint(gray))
                part.digests.append(digest(data))
        if lines:
            part.table = np.array(lines)
        return part


def _kind(image: Image.Image) -> str:
    mode = {"RGB": "", "L": ", gray", "P": ", palette", "1": ", black and white", "I;16": ", 16-bit gray"}
    return sys.intern(f"{image.format}{mode.get(image.mode, f', {image.mode}')}")


def _numbers(pixels: UInt8Array, gray: UInt8Array, mpp: float) -> list[float]:
    """Measure a tile: the columns from "tissue" on.

    Args:
        pixels: uint8 [3, h, w].
        gray: uint8 [h, w].
        mpp: µm/px, NaN where unknown.
    """
    colors = _stain_square(pixels)
    values, tissue = image_statistics(colors, "lab", True)
    whole, _ = image_statistics(colors, "lab", False)
    square = _center(pixels, _DETAIL_SIDE)
    black = float((square.max(axis=0) <= _BLACK).mean())
    white = float((square.min(axis=0) == 255).mean())
    inner = _center(gray, _DETAIL_SIDE)
    detail = sharpness(inner, detail_factor(mpp, min(inner.shape)))
    return [float(tissue[0]), black, white, detail, *values[0].tolist(), *whole[0].tolist()]


def _stain_square(pixels: UInt8Array) -> torch.Tensor:
    """Return the central square at its own size, or at 256 px if it is larger: float32 [1, 3, s, s] in 0..1."""
    images = torch.from_numpy(_center(pixels, min(pixels.shape[1:])))[None]
    if images.shape[-1] > _STAIN_SIDE:
        images = functional.interpolate(images, size=(_STAIN_SIDE,) * 2, mode="bilinear", antialias=True)
    return images.to(torch.float32).mul_(1 / 255)


def _center(pixels: UInt8Array, side: int) -> UInt8Array:
    height, width = pixels.shape[-2:]
    top, left = max(0, (height - side) // 2), max(0, (width - side) // 2)
    return np.ascontiguousarray(pixels[..., top : top + side, left : left + side])
