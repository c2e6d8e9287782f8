"""Slides of the scanners' own formats, through OpenSlide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eosin.slides.errors import InterruptedSlide, UnusableSlide
from eosin.slides.levels import Level, lay_levels
from eosin.slides.mpp import Scale, openslide_scale
from eosin.slides.resample import UInt8Array

__all__ = ["OpenSlideSlide", "detect"]

# OpenSlide's caches hold whole tiles of 4 bytes per pixel.
_WHOLE = 1e-6


def detect(path: Path) -> str | None:
    """Return OpenSlide's name of a file's format, such as `hamamatsu`, or None if it knows none."""
    import openslide

    vendor: str | None = openslide.OpenSlide.detect_format(path)
    return vendor


class OpenSlideSlide:
    """A slide opened by OpenSlide.

    Args:
        path: The file.
        cache_bytes: Most bytes of decoded tiles that OpenSlide may keep.

    Raises:
        UnusableSlide: If OpenSlide cannot open it.
    """

    def __init__(self, path: Path, cache_bytes: int) -> None:
        import openslide

        self._error = openslide.OpenSlideError
        self._path, self._cache_bytes = path, cache_bytes
        try:
            self._slide: Any = self._opened()
            properties = dict(self._slide.properties)
            sizes = self._slide.level_dimensions
            self._addressed = tuple(float(value) for value in self._slide.level_downsamples)
        except (openslide.OpenSlideError, OSError) as error:
            raise UnusableSlide(_reason(error)) from None
        self.format = f"openslide:{properties.get('openslide.vendor', 'unknown')}"
        self.scale: Scale = openslide_scale(properties)
        self.levels = self._laid(sizes)
        self._bands = [
            int(properties.get(f"openslide.level[{level}].tile-height", "512")) for level in range(len(self.levels))
        ]
        color = properties.get("openslide.background-color", "FFFFFF")
        self._background = tuple(int(color[at : at + 2], 16) for at in (0, 2, 4))

    def _opened(self) -> Any:
        import openslide

        slide = openslide.OpenSlide(self._path)
        slide.set_cache(openslide.OpenSlideCache(self._cache_bytes))
        return slide

    def _laid(self, sizes: tuple[tuple[int, int], ...]) -> tuple[Level, ...]:
        """Find the levels' downsamples: OpenSlide's where whole (it knows levels padded at the edge), else by size."""
        laid = []
        for level, addressed in zip(lay_levels(sizes), self._addressed, strict=True):
            whole = round(addressed)
            known = abs(addressed - whole) < _WHOLE
            laid.append(Level(level.width, level.height, (float(whole), float(whole))) if known else level)
        return tuple(laid)

    def read(self, level: int, x: int, y: int, width: int, height: int) -> UInt8Array:
        """Read a region inside a level: uint8 [height, width, 3]; transparency is laid over the background color."""
        scale = self._addressed[level]
        try:
            image = self._slide.read_region((round(x * scale), round(y * scale)), level, (width, height))
        except self._error as error:
            # After an error OpenSlide refuses whatever it is asked: another place must not suffer for this one.
            self._slide.close()
            try:
                self._slide = self._opened()
            except (self._error, OSError) as again:
                raise InterruptedSlide(_reason(again)) from None
            raise UnusableSlide(_reason(error)) from None
        pixels = np.asarray(image)
        if pixels[..., 3].min() == 255:
            return np.ascontiguousarray(pixels[..., :3])
        ground = Image.new("RGBA", image.size, (*self._background, 255))
        return np.ascontiguousarray(np.asarray(Image.alpha_composite(ground, image))[..., :3])

    def keep(self, level: int) -> None:
        """OpenSlide keeps tiles only."""

    def origin(self, level: int, x: int, y: int) -> tuple[float, float]:
        """Return where a region read at (x, y) lies: OpenSlide is told whole px of level 0, which may fall between."""
        scale = self._addressed[level]
        return round(x * scale) / scale, round(y * scale) / scale

    def band(self, level: int) -> int:
        """Return the height of a source tile, where OpenSlide knows it."""
        return self._bands[level]

    def reduced(self, level: int, factor: float) -> None:
        """OpenSlide decodes whole tiles only."""
        return None

    def close(self) -> None:
        """Close the slide."""
        self._slide.close()


def _reason(error: Exception) -> str:
    text = (str(error).splitlines() or [""])[0].strip() or type(error).__name__
    return f"OpenSlide cannot read it ({text}); copy the file again, or export it as a tiled TIFF"
