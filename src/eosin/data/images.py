"""Encoded images to RGB pixels, by one stated rule for every kind of file."""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

__all__ = [
    "MAXIMUM_PIXELS",
    "MINIMUM_SIDE",
    "Interpolation",
    "UnreadableImage",
    "decode_image",
    "open_image",
    "square_image",
]

MAXIMUM_PIXELS = 178_956_970
"""Images with more pixels are refused: the size at which Pillow takes a file for a decompression bomb."""

MINIMUM_SIDE = 8
"""Images with a shorter side (px) are refused: they hold no tissue that could be seen."""

# Decoding to no less than twice the size leaves the antialiasing to the resize.
_GAP = 2

# Torchvision's decoder gives the same pixels as Pillow's, both being libjpeg-turbo, in two thirds of the time. Versions
# since 0.29 announce its removal; without it Pillow decodes.
try:
    import torchvision.io as torchvision_io
except ImportError:
    torchvision_io = None
warnings.filterwarnings("ignore", message="The image decoding and encoding capabilities", category=DeprecationWarning)

# The limit above is checked on every image; Pillow's warning at half of it would only puzzle.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

UInt8Array = npt.NDArray[np.uint8]
Interpolation = Literal["bilinear", "bicubic"]


class UnreadableImage(Exception):
    """An image that cannot be used; the message is the reason, without the image's name."""


def open_image(data: bytes) -> Image.Image:
    """Read an image's header and check its size; the pixels are not decoded yet.

    Raises:
        UnreadableImage: If the bytes are no image, or the image is too small or too large.
    """
    if not data:
        raise UnreadableImage("the file is empty")
    try:
        image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError:
        raise UnreadableImage(f"more than the {MAXIMUM_PIXELS:,} pixels that an image may have") from None
    except Exception as error:
        raise UnreadableImage(_reason(error)) from None
    width, height = image.size
    if width * height > MAXIMUM_PIXELS:
        raise UnreadableImage(f"{width}×{height} px: more than the {MAXIMUM_PIXELS:,} pixels that an image may have")
    if min(width, height) < MINIMUM_SIDE:
        raise UnreadableImage(f"{width}×{height} px: a side is shorter than {MINIMUM_SIDE} px")
    return image


def decode_image(data: bytes, name: str = "") -> UInt8Array:
    """Decode an image to RGB.

    Palette and grey images are expanded; transparency is laid over white, the colour of glass under the microscope;
    CMYK, YCbCr and the like go through Pillow's plain conversion; of 16 bits per channel the upper 8 are kept. Colour
    profiles and the EXIF orientation are not applied. Of a file with several pages the first is read.

    Args:
        data: The encoded bytes.
        name: The image's name, added to the exception as a note.

    Returns:
        uint8 [3, H, W], the channels of a pixel side by side in memory, as decoders give them.

    Raises:
        UnreadableImage: If the bytes are damaged, no image, or an image outside the limits of this module.
    """
    try:
        pixels: UInt8Array = _decoded(data, open_image(data)).numpy()
    except UnreadableImage as error:
        if name:
            error.add_note(name)
        raise
    return pixels


def square_image(data: bytes, size: int, interpolation: Interpolation = "bilinear") -> UInt8Array:
    """Decode an image, resize its short side to `size` (antialiased) and cut the central square.

    A JPEG at least four times as large as needed is shrunk by 2, 4 or 8 while it is decoded (libjpeg's scaled DCT) to
    no less than twice the size, and resized from there: much faster, repeats exactly, and differs from a resize of all
    pixels by about one grey level of 255 in the mean.

    Args:
        data: The encoded bytes.
        size: Side of the result in px.
        interpolation: Filter of the resize.

    Returns:
        uint8 [3, size, size], the channels of a pixel side by side in memory.

    Raises:
        UnreadableImage: As `decode_image`.
    """
    image = open_image(data)
    width, height = image.size
    short = min(width, height)
    if image.format == "JPEG" and short >= 2 * _GAP * size:
        image.draft(None, (width * _GAP * size // short, height * _GAP * size // short))
        pixels = _by_pillow(image)
    else:
        pixels = _decoded(data, image)
    height, width = pixels.shape[1:]
    short = min(width, height)
    if short != size:
        height, width = int(height * size / short), int(width * size / short)
        # On uint8 in channels-last order this is fixed-point arithmetic: the same on any number of threads.
        pixels = functional.interpolate(pixels[None], size=(height, width), mode=interpolation, antialias=True)[0]
    top, left = round((height - size) / 2), round((width - size) / 2)
    square: UInt8Array = pixels[:, top : top + size, left : left + size].numpy()
    return square


def _decoded(data: bytes, image: Image.Image) -> Tensor:
    """Return the pixels of an opened image: uint8 [3, H, W], the channels of a pixel side by side in memory."""
    if torchvision_io is not None and image.format == "JPEG" and image.mode == "RGB":
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        # Where this fails Pillow decides, and words the reason; a warning fails where warnings are errors.
        with contextlib.suppress(RuntimeError, DeprecationWarning):
            return torchvision_io.decode_jpeg(encoded, mode=torchvision_io.ImageReadMode.RGB)
    return _by_pillow(image)


def _by_pillow(image: Image.Image) -> Tensor:
    try:
        image.load()
        return torch.from_numpy(np.array(_rgb(image))).permute(2, 0, 1)
    except UnreadableImage:
        raise
    except Exception as error:
        # Pillow's readers raise OSError, ValueError, SyntaxError, struct.error and more on damaged files.
        raise UnreadableImage(_reason(error)) from None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        pixels = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), pixels).convert("RGB")
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise UnreadableImage("32-bit pixels; save it with 8 or 16 bits per channel")
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise UnreadableImage("floating-point pixels; save it with 8 or 16 bits per channel")
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image of a known format"
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return text.strip()
