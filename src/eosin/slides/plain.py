"""Large plain images as slides of one level, through Pillow."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from eosin.slides.backend import MAXIMUM_BYTES
from eosin.slides.errors import UnusableSlide
from eosin.slides.levels import Level
from eosin.slides.mpp import Reading, Scale, choose_scale
from eosin.slides.resample import UInt8Array

__all__ = ["PlainSlide"]

_ROWS = 512


class PlainSlide:
    """A PNG, JPEG, BMP, JPEG 2000 or such: decoded whole at the first read, and kept as it is stored.

    Args:
        path: The file.

    Raises:
        UnusableSlide: If it is no image, or takes more than `MAXIMUM_BYTES` to decode.
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
        most = MAXIMUM_BYTES // _bytes_a_pixel(self._image)
        if width * height > most:
            self._image.close()
            raise UnusableSlide(
                f"a plain image of {width:,} × {height:,} px, more than the {most:,} px that can be decoded at once; "
                "save it as a tiled TIFF"
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
                self._image.load()
            except Exception as error:
                raise UnusableSlide(_reason(error)) from None
            _check_range(self._image)
            self._decoded = True
        # Converted by regions: a second image of that size might not fit into memory.
        return np.array(_rgb(self._image.crop((x, y, x + width, y + height))))

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


def _bytes_a_pixel(image: Image.Image) -> int:
    """Return what Pillow takes to decode an image, in bytes per pixel."""
    kept = 2 if image.mode.startswith("I;16") else 1 if image.mode in ("1", "L", "P") else 4
    if image.format == "JPEG2000":
        # OpenJPEG decodes a whole image to 32 bits a channel, twice.
        return kept + 16
    if image.info.get("progressive"):
        # All coefficients, of 16 bits a channel, are kept until the last scan.
        return kept + 6
    return kept


def _check_range(image: Image.Image) -> None:
    if image.mode == "F":
        raise UnusableSlide("floating-point pixels; save it with 8 or 16 bits per channel")
    if image.mode == "I":
        values = np.ravel(image.getextrema())
        if values.min() < 0 or values.max() > 65535:
            raise UnusableSlide("32-bit pixels; save it with 8 or 16 bits per channel")


def _rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB: grey and palettes expanded, transparency over white, of 16 bits the upper 8."""
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        pixels = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), pixels).convert("RGB")
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.int32) >> 8).astype(np.uint8)).convert("RGB")
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
