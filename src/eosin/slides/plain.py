"""Large plain images as slides of one level, through Pillow."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from eosin.slides.backend import MAXIMUM_PIXELS
from eosin.slides.errors import UnusableSlide
from eosin.slides.levels import Level
from eosin.slides.mpp import Reading, Scale, choose_scale
from eosin.slides.resample import UInt8Array

__all__ = ["PlainSlide"]

_ROWS = 512


class PlainSlide:
    """A PNG, JPEG, BMP, JPEG 2000 or such: decoded whole at the first read, and kept at 4 bytes per pixel.

    Args:
        path: The file.

    Raises:
        UnusableSlide: If it is no image, or has more pixels than `MAXIMUM_PIXELS`.
    """

    format = "plain"

    def __init__(self, path: Path) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._image: Image.Image | None = _opened(path)
        except UnusableSlide:
            raise
        except Image.UnidentifiedImageError:
            raise UnusableSlide("not an image of a known format") from None
        except Exception as error:
            raise UnusableSlide(_reason(error)) from None
        width, height = self._image.size
        if width * height > MAXIMUM_PIXELS:
            self._image.close()
            raise UnusableSlide(
                f"a plain image of {width:,} × {height:,} px, more than the {MAXIMUM_PIXELS:,} px that can be decoded "
                "at once; save it as a tiled TIFF"
            )
        self.levels: tuple[Level, ...] = (Level(width, height, (1.0, 1.0)),)
        self.scale: Scale = choose_scale([_dpi(self._image)])
        self._decoded = False

    def read(self, level: int, x: int, y: int, width: int, height: int) -> UInt8Array:
        """Read a region inside the image: uint8 [height, width, 3]."""
        if self._image is None:
            raise ValueError("the slide is closed")
        if not self._decoded:
            try:
                self._image = _rgb(self._image)
            except UnusableSlide:
                raise
            except Exception as error:
                raise UnusableSlide(_reason(error)) from None
            self._decoded = True
        return np.array(self._image.crop((x, y, x + width, y + height)))

    def keep(self, level: int) -> None:
        """The image is kept whole."""

    def origin(self, level: int, x: int, y: int) -> tuple[float, float]:
        """Return where a region read at (x, y) lies: there."""
        return float(x), float(y)

    def band(self, level: int) -> int:
        """Return a handy number of rows."""
        return _ROWS

    def reduced(self, level: int, factor: float) -> None:
        """The image is decoded whole."""
        return None

    def close(self) -> None:
        """Let go of the image."""
        if self._image is not None:
            self._image.close()
            self._image = None


def _opened(path: Path) -> Image.Image:
    limit = Image.MAX_IMAGE_PIXELS
    # Pillow's own bound is for images from strangers; ours is checked on the size that is returned.
    Image.MAX_IMAGE_PIXELS = None
    try:
        return Image.open(path)
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _rgb(image: Image.Image) -> Image.Image:
    """Decode to RGB: grey and palettes expanded, transparency over white, of 16 bits the upper 8."""
    image.load()
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        pixels = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), pixels).convert("RGB")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise UnusableSlide("32-bit pixels; save it with 8 or 16 bits per channel")
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise UnusableSlide("floating-point pixels; save it with 8 or 16 bits per channel")
    return image if image.mode == "RGB" else image.convert("RGB")


def _dpi(image: Image.Image) -> Reading | None:
    try:
        x, y = (float(value) for value in image.info["dpi"])
    except (KeyError, TypeError, ValueError):
        return None
    return Reading("its dpi", 25_400 / x, 25_400 / y) if x > 0 and y > 0 else None


def _reason(error: Exception) -> str:
    text = (str(error).splitlines() or [""])[0].strip() or type(error).__name__
    return f"cannot be decoded ({text}); copy or save the file again"
