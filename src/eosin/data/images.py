"""Encoded images to RGB pixels, by one stated rule for every kind of file."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from typing import Literal

import imagecodecs
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

# A JPEG that ends otherwise was cut short. imagecodecs would fill up what is missing; Pillow says so.
_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
# Markers of baseline and progressive frames, and of what may stand before them: tables, application data, comments.
_FRAMES = frozenset((0xC0, 0xC1, 0xC2))
_TABLES = frozenset((0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)))

# Raw pixels as HDF5 sources hand them over: no other form of PPM, which Pillow reads.
_PPM = re.compile(rb"P6\n(\d{1,5}) (\d{1,5})\n255\n")

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
        plain = _plain_ppm(data) if data.startswith(b"P6") else _plain_jpeg(data)
        pixels: UInt8Array = (_by_pillow(open_image(data)) if plain is None else plain).numpy()
    except UnreadableImage as error:
        if name:
            error.add_note(name)
        raise
    return pixels


def square_image(
    data: bytes, size: int, interpolation: Interpolation = "bilinear", out: UInt8Array | None = None
) -> UInt8Array:
    """Decode an image, resize its short side to `size` (antialiased) and cut the central square.

    A JPEG at least four times as large as needed is shrunk by 2, 4 or 8 while it is decoded (libjpeg's scaled DCT) to
    no less than twice the size, and resized from there: much faster, repeats exactly, and differs from a resize of all
    pixels by about one grey level of 255 in the mean.

    Args:
        data: The encoded bytes.
        size: Side of the result in px.
        interpolation: Filter of the resize.
        out: Where the result is put, uint8 [3, size, size], its channels side by side in memory.

    Returns:
        uint8 [3, size, size], the channels of a pixel side by side in memory.

    Raises:
        UnreadableImage: As `decode_image`.
    """
    if out is not None and _put_jpeg(data, out):
        return out
    pixels = _plain_ppm(data) if data.startswith(b"P6") else _plain_jpeg(data, below=2 * _GAP * size)
    if pixels is None:
        image = open_image(data)
        width, height = image.size
        short = min(width, height)
        if image.format == "JPEG" and short >= 2 * _GAP * size:
            image.draft(None, (width * _GAP * size // short, height * _GAP * size // short))
        pixels = _by_pillow(image)
    height, width = pixels.shape[1:]
    short = min(width, height)
    if short != size:
        height, width = int(height * size / short), int(width * size / short)
        # On uint8 in channels-last order this is fixed-point arithmetic: the same on any number of threads.
        pixels = functional.interpolate(pixels[None], size=(height, width), mode=interpolation, antialias=True)[0]
    top, left = round((height - size) / 2), round((width - size) / 2)
    square: UInt8Array = pixels[:, top : top + size, left : left + size].numpy()
    if out is None:
        return square
    out[...] = square
    return out


def _plain_jpeg(data: bytes, below: int | None = None) -> Tensor | None:
    """Decode an ordinary color JPEG by imagecodecs: the pixels of libjpeg-turbo, and so of Pillow, in less time.

    Args:
        data: The encoded bytes.
        below: Leave images whose shorter side is at least this to Pillow, which shrinks them while it decodes.

    Returns:
        uint8 [3, H, W], the channels of a pixel side by side in memory; None for all that Pillow is to read or refuse.
    """
    size = _jpeg_size(data)
    if size is None or min(size) < MINIMUM_SIDE or size[0] * size[1] > MAXIMUM_PIXELS:
        return None
    if below is not None and min(size) >= below:
        return None
    with contextlib.suppress(RuntimeError, ValueError):
        return torch.from_numpy(imagecodecs.jpeg8_decode(data)).permute(2, 0, 1)
    return None


def _plain_ppm(data: bytes) -> Tensor | None:
    """Take raw pixels as they are, uint8 [3, H, W]; None for all that Pillow is to read or refuse."""
    match = _PPM.match(data)
    if match is None:
        return None
    width, height = int(match[1]), int(match[2])
    if (
        min(width, height) < MINIMUM_SIDE
        or width * height > MAXIMUM_PIXELS
        or len(data) - match.end() != 3 * width * height
    ):
        return None
    pixels = np.frombuffer(data, dtype=np.uint8, offset=match.end()).reshape(height, width, 3)
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def _put_jpeg(data: bytes, out: UInt8Array) -> bool:
    """Decode an ordinary color JPEG right into its place, uint8 [3, H, W], if it has that size and nothing is wrong."""
    if _jpeg_size(data) != (out.shape[2], out.shape[1]):
        return False
    try:
        imagecodecs.jpeg8_decode(data, out=out.transpose(1, 2, 0))
    except (RuntimeError, ValueError):
        return False
    return True


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height of a whole JPEG of three 8-bit components from its frame header (ITU-T T.81, B.2.2)."""
    if not data.startswith(_JPEG_START) or not data.endswith(_JPEG_END):
        return None
    at = 2
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _FRAMES:
            height, width = int.from_bytes(data[at + 5 : at + 7]), int.from_bytes(data[at + 7 : at + 9])
            return (width, height) if data[at + 4] == 8 and data[at + 9] == 3 and height else None
        if marker not in _TABLES:
            return None
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return None


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
