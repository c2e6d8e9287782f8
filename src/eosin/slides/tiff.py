"""The fast way into pyramidal TIFFs: whole source tiles, each decoded once, kept while there is room."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from eosin.slides.backend import Backend, TileCache
from eosin.slides.errors import UnusableSlide
from eosin.slides.levels import Level, lay_levels
from eosin.slides.mpp import Scale
from eosin.slides.resample import UInt8Array
from eosin.slides.tiff_decode import NotFast, Pixels, quiet
from eosin.slides.tiff_pages import Directories, find_levels

__all__ = ["TiffSlide"]

_TileReader = Callable[[int, int], UInt8Array]


class TiffSlide:
    """A slide in a TIFF: Aperio, OME-TIFF, or any with its levels as pages or SubIFDs.

    Args:
        path: The file.
        cache_bytes: Most bytes of decoded tiles to keep.

    Raises:
        NotFast: If it is stored in a way that this reader does not read.
        UnusableSlide: If it is truncated or damaged.
    """

    def __init__(self, path: Path, cache_bytes: int) -> None:
        import tifffile

        self._file = os.open(path, os.O_RDONLY)
        try:
            size = os.fstat(self._file).st_size
            directories = Directories(self._file, size)
            directories.check_chain()
            with quiet():
                try:
                    with tifffile.TiffFile(path) as tif:
                        found = find_levels(tif, directories)
                        self._pixels = [Pixels(pages, self._file) for pages in found.levels]
                except (NotFast, UnusableSlide, OSError):
                    raise
                except Exception as error:
                    # What a damaged directory can make of tifffile is not to be listed.
                    raise NotFast((str(error).splitlines() or [type(error).__name__])[0]) from None
            for pixels in self._pixels:
                pixels.check_extent(size)
        except BaseException:
            os.close(self._file)
            raise
        self.format = found.format
        self.scale: Scale = replace(found.scale, notes=(*found.scale.notes, *found.notes))
        self.levels: tuple[Level, ...] = lay_levels([(pixels.width, pixels.height) for pixels in self._pixels])
        self._cache = TileCache(cache_bytes)
        self._kept: dict[int, _Kept] = {}

    def keep(self, level: int) -> None:
        """Keep a level in one piece, if it takes no more than half of the cache: no tile is copied twice then."""
        size = self.levels[level]
        if level not in self._kept and self._cache.reserve(size.width * size.height * 3):
            self._kept[level] = _Kept(self._pixels[level])

    def read(self, level: int, x: int, y: int, width: int, height: int) -> UInt8Array:
        """Read a region inside a level: uint8 [height, width, 3], read-only where the level is kept in one piece."""
        pixels = self._pixels[level]
        if level in self._kept:
            return self._kept[level].region(x, y, width, height)

        def tile(row: int, column: int) -> UInt8Array:
            key = (level, row, column)
            decoded = self._cache.get(key)
            if decoded is None:
                decoded = pixels.tile(row, column)
                self._cache.put(key, decoded)
            return decoded

        return _assembled(tile, (pixels.tile_width, pixels.tile_height), x, y, width, height)

    def origin(self, level: int, x: int, y: int) -> tuple[float, float]:
        """Return where a region read at (x, y) lies: there."""
        return float(x), float(y)

    def band(self, level: int) -> int:
        """Return the height of a source tile."""
        return self._pixels[level].tile_height

    def reduced(self, level: int, factor: float) -> tuple[Backend, int] | None:
        """Offer JPEG tiles reduced by 8, 4 or 2 while they are decoded, at most half of the factor wanted."""
        pixels = self._pixels[level]
        for whole in (8, 4, 2):
            if pixels.jpeg and 2 * whole <= factor and pixels.tile_width % whole == pixels.tile_height % whole == 0:
                return _Shrunk(self, pixels, self.levels[level], whole, self._cache.capacity // 8), whole
        return None

    def close(self) -> None:
        """Close the file and let go of the tiles."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        for pixels in self._pixels:
            pixels.close()
        self._cache.clear()
        self._kept.clear()


class _Kept:
    """A level in one piece, filled with the tiles that were asked for."""

    def __init__(self, pixels: Pixels) -> None:
        self._pixels = pixels
        # Memory is taken from the system as it is written to.
        self._image = np.empty((pixels.height, pixels.width, 3), np.uint8)
        self._filled = np.zeros((pixels.rows, pixels.columns), bool)

    def region(self, x: int, y: int, width: int, height: int) -> UInt8Array:
        wide, high = self._pixels.tile_width, self._pixels.tile_height
        top, left = y // high, x // wide
        wanted = self._filled[top : (y + height - 1) // high + 1, left : (x + width - 1) // wide + 1]
        for row, column in np.argwhere(~wanted):
            tile = self._pixels.tile(int(row) + top, int(column) + left)
            place = self._image[(row + top) * high :, (column + left) * wide :][:high, :wide]
            place[:] = tile[: place.shape[0], : place.shape[1]]
            wanted[row, column] = True
        view = self._image[y : y + height, x : x + width]
        view.flags.writeable = False
        return view


class _Shrunk:
    """One level of JPEG tiles, decoded at a fraction of its size; whole pixels of the fraction only."""

    def __init__(self, slide: TiffSlide, pixels: Pixels, level: Level, factor: int, cache_bytes: int) -> None:
        self.format, self.scale = slide.format, slide.scale
        self._pixels, self._factor = pixels, factor
        self._cache = TileCache(cache_bytes)
        x, y = level.downsample
        size = max(1, level.width // factor), max(1, level.height // factor)
        self.levels: tuple[Level, ...] = (Level(*size, (x * factor, y * factor)),)

    def read(self, level: int, x: int, y: int, width: int, height: int) -> UInt8Array:
        def tile(row: int, column: int) -> UInt8Array:
            decoded = self._cache.get((row, column))
            if decoded is None:
                decoded = self._pixels.shrunk_tile(row, column, self._factor)
                self._cache.put((row, column), decoded)
            return decoded

        size = self._pixels.tile_width // self._factor, self._pixels.tile_height // self._factor
        return _assembled(tile, size, x, y, width, height)

    def keep(self, level: int) -> None:
        pass

    def origin(self, level: int, x: int, y: int) -> tuple[float, float]:
        return float(x), float(y)

    def band(self, level: int) -> int:
        return self._pixels.tile_height // self._factor

    def reduced(self, level: int, factor: float) -> None:
        return None

    def close(self) -> None:
        self._cache.clear()


def _assembled(tile: _TileReader, size: tuple[int, int], x: int, y: int, width: int, height: int) -> UInt8Array:
    """Copy the parts of source tiles that a region touches into one array."""
    tile_width, tile_height = size
    out = np.empty((height, width, 3), np.uint8)
    for row in range(y // tile_height, (y + height - 1) // tile_height + 1):
        top = max(y, row * tile_height)
        bottom = min(y + height, (row + 1) * tile_height)
        for column in range(x // tile_width, (x + width - 1) // tile_width + 1):
            left = max(x, column * tile_width)
            right = min(x + width, (column + 1) * tile_width)
            down, across = row * tile_height, column * tile_width
            source = tile(row, column)[top - down : bottom - down, left - across : right - across]
            out[top - y : bottom - y, left - x : right - x] = source
    return out
