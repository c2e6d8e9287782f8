"""What a reader of slide files offers, and the cache of decoded tiles that readers share."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Protocol

from eosin.slides.levels import Level
from eosin.slides.mpp import Scale
from eosin.slides.resample import UInt8Array

__all__ = ["MAXIMUM_BYTES", "Backend", "TileCache"]

MAXIMUM_BYTES = 1 << 30
"""Most memory that it may take to decode an image, or a strip of one, that can only be decoded as a whole. With all
else a process stays below 1.5 GB."""


class Backend(Protocol):
    """Reads the levels of one open slide."""

    format: str
    levels: tuple[Level, ...]
    scale: Scale

    def read(self, level: int, x: int, y: int, width: int, height: int) -> UInt8Array:
        """Read a region that lies wholly inside a level.

        Returns:
            uint8 [height, width, 3]; read-only where it is a view of what the reader keeps.
        """

    def keep(self, level: int) -> None:
        """Be told that all of a level is about to be read: it may be kept in one piece, if there is room."""

    def origin(self, level: int, x: int, y: int) -> tuple[float, float]:
        """Return where, in px of the level, the left upper corner of a region read at (x, y) really lies."""

    def band(self, level: int) -> int:
        """Return how many rows of a level are stored together, and so are best read together."""

    def reduced(self, level: int, factor: float) -> tuple[Backend, int] | None:
        """Offer a level reduced while it is decoded.

        Args:
            level: A level too large to keep.
            factor: How much coarser pixels are wanted.

        Returns:
            A reader with this one level, and how many times coarser its pixels are: a whole number of at most half of
            `factor`; None if the format has none.
        """

    def close(self) -> None:
        """Close the file."""


class TileCache:
    """The decoded tiles used last, up to a number of bytes; the newest is kept even if it is larger than that."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used = 0
        self._tiles: OrderedDict[Hashable, UInt8Array] = OrderedDict()

    def get(self, key: Hashable) -> UInt8Array | None:
        """Return a tile, or None if it is not kept."""
        tile = self._tiles.get(key)
        if tile is not None:
            self._tiles.move_to_end(key)
        return tile

    def put(self, key: Hashable, tile: UInt8Array) -> None:
        """Keep a tile; those unused for longest make room for it."""
        self._tiles[key] = tile
        self.used += tile.nbytes
        self._make_room()

    def reserve(self, size: int) -> bool:
        """Give up room for something kept elsewhere, if it is no more than half of what there is."""
        if size > self.capacity // 2:
            return False
        self.capacity -= size
        self._make_room()
        return True

    def _make_room(self) -> None:
        while self.used > self.capacity and len(self._tiles) > 1:
            self.used -= self._tiles.popitem(last=False)[1].nbytes

    def clear(self) -> None:
        """Let go of all tiles."""
        self._tiles.clear()
        self.used = 0
