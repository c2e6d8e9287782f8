"""An open whole-slide image, read by level or at a physical scale."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NoReturn, Self

import numpy as np

from eosin.slides.backend import Backend
from eosin.slides.errors import UnusableSlide
from eosin.slides.levels import coarsest_serving
from eosin.slides.mpp import given_scale, missing_scale
from eosin.slides.resample import UInt8Array
from eosin.slides.sampling import FINER, sample

__all__ = ["Slide"]

# A level serves as it is where no pixel of the region would move by more than a quarter of a pixel.
_STEP_TOLERANCE = 1e-3
_SHIFT_TOLERANCE = 0.25

# Levels of more decoded bytes than this are reduced while they are decoded where a thumbnail is much coarser.
_LARGE = 1 << 28


class Slide:
    """A slide, opened by `open_slide`; a context manager. Each process opens its own.

    Memory stays below the cache, the region asked for and one band of source tiles.

    Attributes:
        path: The file.
        format: `aperio`, `ome-tiff`, `tiff`, `openslide:hamamatsu` and the like, `plain`.
        width, height: px of level 0.
        levels: Finest first.
        mpp: µm/px of level 0 along x and y; None where neither the file nor the caller says.
        mpp_source: Where that is from: `aperio.MPP`, `openslide.mpp-x`, `OME PhysicalSizeX`, `TIFF resolution`,
            `given`; empty without one.
        objective: Power of the objective, where recorded. It is never turned into µm/px.
        notes: What a user should know, such as two statements of scale that disagree.
    """

    def __init__(self, path: Path, backend: Backend, source_mpp: float | None) -> None:
        self.path = path
        self.format = backend.format
        self.levels = backend.levels
        self.width, self.height = self.levels[0].width, self.levels[0].height
        self._backend = backend
        self._scale = given_scale(backend.scale, source_mpp)
        self.mpp = self._scale.mpp
        self.mpp_source = self._scale.source
        self.objective = self._scale.objective
        self.notes = self._scale.notes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a slide is not pickled: open it in each process")

    def __repr__(self) -> str:
        return f"Slide({str(self.path)!r}, {self.format}, {self.width}x{self.height}, mpp={self.mpp})"

    def close(self) -> None:
        """Close the file."""
        self._backend.close()

    def require_mpp(self) -> tuple[float, float]:
        """Return µm/px of level 0 along x and y.

        Raises:
            UnusableSlide: If there is none, with the fix.
        """
        if self.mpp is None:
            raise UnusableSlide(missing_scale(self._scale))
        return self.mpp

    def read_level(self, level: int, x: int, y: int, width: int, height: int) -> UInt8Array:
        """Read a region of a level as it is stored.

        Args:
            level: Index into `levels`.
            x: Left edge in px of that level; may lie outside.
            y: Upper edge in px of that level.
            width: px.
            height: px.

        Returns:
            uint8 [height, width, 3]; outside the slide white (255).

        Raises:
            UnusableSlide: If the file is damaged there.
        """
        size = self.levels[level]
        left, top = max(x, 0), max(y, 0)
        right, bottom = min(x + width, size.width), min(y + height, size.height)
        if (left, top, right, bottom) == (x, y, x + width, y + height):
            pixels = self._backend.read(level, x, y, width, height)
            return pixels if pixels.flags.writeable else pixels.copy()
        out = np.full((height, width, 3), 255, np.uint8)
        if left < right and top < bottom:
            inside = self._backend.read(level, left, top, right - left, bottom - top)
            out[top - y : bottom - y, left - x : right - x] = inside
        return out

    def read(self, x: float, y: float, mpp: float, width: int, height: int) -> UInt8Array:
        """Read a region at a physical scale.

        The pixels come from the coarsest level that is no coarser than wanted (by 0.1 % at most). Each is the exact
        mean of what it covers there (`resample_area`), wherever the region starts. A level within 0.1 % of the scale is
        taken as it is where no pixel moves by a quarter of a pixel. A scale up to 5 % finer than level 0 is
        interpolated, so that slides of 0.2527 µm/px serve 0.25.

        Args:
            x: Left edge in px of level 0; fractions allowed.
            y: Upper edge in px of level 0.
            mpp: µm/px of the result, along both axes.
            width: px of the result.
            height: px of the result.

        Returns:
            uint8 [height, width, 3]; white where a pixel lies wholly outside the slide. Of one that lies partly
            outside, the part inside counts.

        Raises:
            UnusableSlide: If the slide has no scale, or a coarser one than that, or is damaged there.
        """
        own = self.require_mpp()
        step = mpp / own[0], mpp / own[1]
        if min(step) < 1 - FINER:
            finest = max(own)
            raise UnusableSlide(
                f"{mpp:g} µm/px is finer than its pixels of {finest:.4g} µm ({self.mpp_source}); ask for {finest:.4g} "
                "or coarser"
            )
        index = coarsest_serving(self.levels, step)
        level = self.levels[index]
        start = x / level.downsample[0], y / level.downsample[1]
        step = step[0] / level.downsample[0], step[1] / level.downsample[1]
        corner = self._as_it_is(index, start, step, (width, height))
        if corner is not None:
            return self.read_level(index, *corner, width, height)
        return sample(self._backend, index, start, step, self._extent(index), (width, height))

    def _as_it_is(
        self, index: int, start: tuple[float, float], step: tuple[float, float], size: tuple[int, int]
    ) -> tuple[int, int] | None:
        """Return the pixel of the level to start from where it serves without resampling."""
        whole = round(start[0]), round(start[1])
        for axis in (0, 1):
            difference = abs(step[axis] - 1)
            shift = abs(start[axis] - whole[axis]) + difference * size[axis]
            if difference > _STEP_TOLERANCE or shift >= _SHIFT_TOLERANCE:
                return None
        # Where reading falls between pixels, resampling must know.
        return whole if self._backend.origin(index, *whole) == whole else None

    def _extent(self, index: int) -> tuple[float, float]:
        """Return where the slide ends in px of a level."""
        across, down = self.levels[index].downsample
        return self.width / across, self.height / down

    def thumbnail(self, mpp: float) -> UInt8Array:
        """Read the whole slide at a coarse physical scale.

        Args:
            mpp: µm/px of the result, along both axes.

        Returns:
            uint8 [h, w, 3] with h = ceil(height · mpp_y / mpp) and w likewise; see `thumbnail_by`.

        Raises:
            UnusableSlide: If the slide has no scale or is damaged.
        """
        own = self.require_mpp()
        return self._thumbnail((mpp / own[0], mpp / own[1]))

    def thumbnail_by(self, downsample: float) -> UInt8Array:
        """Read the whole slide reduced, for slides without a scale.

        It streams: a band of source tiles after the other. A level of more than 256 MiB whose JPEG tiles must be
        reduced at least fourfold is reduced by 2, 4 or 8 while it is decoded, to no less than twice the size, which is
        faster and differs by about a grey level; all other pixels are exact means.

        Args:
            downsample: px of level 0 per px of the result. Below 1 it is interpolated.

        Returns:
            uint8 [h, w, 3] with h = ceil(height / downsample) and w likewise.

        Raises:
            UnusableSlide: If the slide is damaged.
        """
        return self._thumbnail((downsample, downsample))

    def _thumbnail(self, step: tuple[float, float]) -> UInt8Array:
        size = _ceil(self.width / step[0]), _ceil(self.height / step[1])
        index = coarsest_serving(self.levels, step)
        level, extent = self.levels[index], self._extent(index)
        step = step[0] / level.downsample[0], step[1] / level.downsample[1]
        if level.width * level.height * 3 > _LARGE:
            reduced = self._backend.reduced(index, min(step))
            if reduced is not None:
                backend, factor = reduced
                smaller = (step[0] / factor, step[1] / factor), (extent[0] / factor, extent[1] / factor)
                return sample(backend, 0, (0.0, 0.0), *smaller, size)
        self._backend.keep(index)
        return sample(self._backend, index, (0.0, 0.0), step, extent, size)


def _ceil(value: float) -> int:
    """Round up, except what the rounding of arithmetic put above a whole number."""
    return max(1, math.ceil(value - 1e-9 * max(1.0, value)))
