"""Source tiles of a TIFF page, decoded to 8-bit RGB."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from eosin.slides.backend import MAXIMUM_BYTES
from eosin.slides.errors import InterruptedSlide, UnusableSlide
from eosin.slides.resample import UInt8Array

__all__ = ["NotFast", "Pixels", "quiet"]

_NONE, _JPEG = 1, 7
_JPEG_2000 = (33003, 33005, 34712)
_APERIO_YCBCR = 33003
_COMPRESSIONS = (_NONE, 5, _JPEG, 8, 32946, 32773, 50000, 50001, 34925, *_JPEG_2000)
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6
_CONTIGUOUS = 1

# libjpeg's numbers of color spaces.
_JPEG_RGB, _JPEG_YCBCR = 2, 3

# Rows of an uncompressed image stored in one piece are read in strips of about this many bytes.
_STRIP_BYTES = 1 << 20


class NotFast(Exception):
    """A file that this reader does not read; the message is the reason."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep tifffile from logging: what is wrong with a file is raised, in one line."""
    logger = logging.getLogger("tifffile")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


class Pixels:
    """The pixels of one image of a TIFF, in source tiles (a strip is a tile as wide as the image).

    Args:
        pages: The tifffile page; or three, of one channel each.
        file: An open descriptor of the file.

    Attributes:
        width, height: Size in px.
        tile_width, tile_height: Size of a source tile.

    Raises:
        NotFast: If the pixels are stored in a way that is not read here.
        UnusableSlide: If tiles lie beyond the end of the file.
    """

    def __init__(self, pages: list[Any], file: int) -> None:
        page = self._page = pages[0]
        self._pages = pages
        self._file = file
        self.width, self.height = int(page.imagewidth), int(page.imagelength)
        self._check(page, len(pages))
        tiled = bool(page.is_tiled)
        self.tile_width = int(page.tilewidth) if tiled else self.width
        self.tile_height = int(page.tilelength) if tiled else max(1, min(int(page.rowsperstrip), self.height))
        if min(self.width, self.height, self.tile_width, self.tile_height) < 1:
            raise UnusableSlide("damaged: an image or tile without pixels; copy the file again")
        self._offsets = np.concatenate([np.asarray(one.dataoffsets, np.int64) for one in pages])
        self._counts = np.concatenate([np.asarray(one.databytecounts, np.int64) for one in pages])
        self._raw = page.compression == _NONE and page.bitspersample in (8, 16) and page.fillorder == 1
        self._raw &= page.planarconfig == _CONTIGUOUS and page.predictor == 1
        if self._raw and not tiled:
            self._cut_strips()
        self.columns = -(-self.width // self.tile_width)
        self.rows = -(-self.height // self.tile_height)
        self._planes = len(pages) if len(pages) > 1 else 1 if page.planarconfig == _CONTIGUOUS else page.samplesperpixel
        if len(self._offsets) != self.columns * self.rows * self._planes or len(self._counts) != len(self._offsets):
            raise UnusableSlide("its list of tiles is damaged: copy the file again")
        # As stored, which may be hardly less, and decoded.
        most = MAXIMUM_BYTES // (2 * page.samplesperpixel * (1 if page.bitspersample == 8 else 2))
        if self.tile_width * self.tile_height > most:
            raise UnusableSlide(
                f"stored in one piece of {self.tile_width} × {self.tile_height} px, more than the {most:,} px that can "
                "be decoded at once; save it as a tiled TIFF"
            )
        # Read now: tifffile closes the file.
        self._tables: bytes | None = page.jpegtables
        self._colors = np.asarray(page.colormap) >> 8 if page.photometric == _PALETTE else None
        self._jpeg = page.compression == _JPEG and page.bitspersample == 8 and self._planes == 1
        self.jpeg = self._jpeg and tiled and page.samplesperpixel == 3
        if page.compression in _JPEG_2000 and _subsampled(self._first_bytes()):
            raise NotFast("JPEG 2000 with subsampled colors")
        self._colorspaces = self._jpeg_colors() if self._jpeg else (None, None)

    @staticmethod
    def _check(page: Any, channels: int) -> None:
        if page.compression not in _COMPRESSIONS:
            raise NotFast(f"compression {getattr(page.compression, 'name', page.compression)}")
        if page.sampleformat != 1 or not isinstance(page.bitspersample, int) or not 8 <= page.bitspersample <= 16:
            raise NotFast(f"{page.bitspersample}-bit pixels of kind {getattr(page.dtype, 'name', '?')}")
        colors = {_WHITE_IS_ZERO: (1, 2), _BLACK_IS_ZERO: (1, 2), _RGB: (3, 4), _PALETTE: (1,), _YCBCR: (3,)}
        samples = page.samplesperpixel
        if channels > 1 and samples != 1:
            raise NotFast(f"{channels} images of {samples} channels each")
        if int(page.photometric) in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB) and samples > 4:
            raise UnusableSlide(f"has {samples} channels; only brightfield RGB slides are read")
        if samples not in colors.get(int(page.photometric), ()):
            raise NotFast(f"{samples} channels of {getattr(page.photometric, 'name', page.photometric)}")
        coded = page.compression == _JPEG or page.compression in _JPEG_2000
        if page.photometric == _YCBCR and not coded:
            raise NotFast("YCbCr pixels that are not JPEG")

    def _cut_strips(self) -> None:
        """Cut the strips of an uncompressed image into shorter ones, which can be read one at a time."""
        row = self.width * self._page.samplesperpixel * self._page.bitspersample // 8
        short = max(1, _STRIP_BYTES // row)
        starts = np.arange(len(self._offsets)) * self.tile_height
        if np.any(self._counts < np.minimum(self.tile_height, self.height - starts) * row):
            # A strip shorter than its rows: damaged, or absent. Left whole, it is found when it is read.
            return
        if self.tile_height <= short or (
            len(self._offsets) > 1 and np.any(np.diff(self._offsets) != self._counts[:-1])
        ):
            return
        tops = np.arange(0, self.height, short)
        self._offsets = self._offsets[0] + tops * row
        self._counts = np.minimum(short, self.height - tops) * row
        self.tile_height = short

    def _jpeg_colors(self) -> tuple[int | None, int | None]:
        """Return the color space to assume and the one to decode to.

        Aperio stores RGB without telling the JPEG decoder, which would take it for YCbCr; a JFIF header tells it.
        """
        if self._page.samplesperpixel == 1:
            return None, None
        if self._page.photometric == _YCBCR:
            return _JPEG_YCBCR, _JPEG_RGB
        return (None if self._first_bytes()[6:10] == b"JFIF" else _JPEG_RGB), _JPEG_RGB

    def _first_bytes(self) -> bytes:
        """Return the stored bytes of the first tile that has any."""
        present = np.flatnonzero(self._counts)
        return self.encoded(int(present[0])) if len(present) else b""

    def check_extent(self, size: int) -> None:
        """Make sure that all tiles lie inside the file.

        Raises:
            UnusableSlide: If not, as in a file copied in part.
        """
        beyond = int(np.count_nonzero((self._offsets + self._counts > size) & (self._counts > 0)))
        if beyond:
            raise UnusableSlide(
                f"truncated: {beyond:,} of {len(self._offsets):,} source tiles lie beyond the end of the file "
                f"({size:,} bytes); copy it again"
            )

    def encoded(self, index: int) -> bytes:
        """Return the stored bytes of a tile.

        Raises:
            UnusableSlide: If the disk does not give them.
        """
        if self._file < 0:
            raise ValueError("the slide is closed")
        try:
            return os.pread(self._file, int(self._counts[index]), int(self._offsets[index]))
        except OverflowError as error:
            raise UnusableSlide(f"its list of tiles is damaged ({error}): copy the file again") from None
        except OSError as error:
            reason = error.strerror or error
            raise InterruptedSlide(f"cannot be read any further ({reason}); check its disk or network") from None

    def close(self) -> None:
        """Forget the file: its descriptor may soon be another's."""
        self._file = -1

    def tile(self, row: int, column: int) -> UInt8Array:
        """Decode a source tile.

        Returns:
            uint8 [h, w, 3], at least as large as the part of the tile inside the image; white where the file has no
            bytes for it.

        Raises:
            UnusableSlide: If it is damaged.
        """
        height = min(self.tile_height, self.height - row * self.tile_height)
        width = min(self.tile_width, self.width - column * self.tile_width)
        index = row * self.columns + column
        try:
            planes = []
            for plane in range(self._planes):
                decoded = self._decoded(index + plane * self.columns * self.rows, row)
                if decoded is not None:
                    planes.append(decoded)
            if len(planes) < self._planes:
                return np.full((height, width, 3), 255, np.uint8)
            samples = planes[0] if self._planes == 1 else np.concatenate(planes, axis=2)
            if samples.shape[0] < height or samples.shape[1] < width:
                raise ValueError(f"{samples.shape[1]} × {samples.shape[0]} px instead of {width} × {height}")
            return self._rgb(samples)
        except UnusableSlide:
            raise
        except Exception as error:
            # Each codec has its own exceptions.
            raise UnusableSlide(_damaged(row, column, error)) from None

    def shrunk_tile(self, row: int, column: int, factor: int) -> UInt8Array:
        """Decode a JPEG tile reduced by 2, 4 or 8, by libjpeg's scaled inverse transform.

        Raises:
            UnusableSlide: If it is damaged.
        """
        size = (self.tile_width // factor, self.tile_height // factor)
        data = self.encoded(row * self.columns + column)
        if not data:
            return np.full((size[1], size[0], 3), 255, np.uint8)
        try:
            _require_end(data)
            image = Image.open(io.BytesIO(self._whole_jpeg(data)))
            image.draft("RGB", size)
            pixels = np.asarray(image.convert("RGB"))
            if pixels.shape[:2] != size[::-1]:
                raise ValueError(f"{image.size[0]} × {image.size[1]} px instead of {size[0]} × {size[1]}")
            return pixels
        except Exception as error:
            raise UnusableSlide(_damaged(row, column, error)) from None

    def _whole_jpeg(self, data: bytes) -> bytes:
        """Put the tables that the page keeps apart, and the color space, into a tile's own header."""
        assumed = self._colorspaces[0]
        adobe = b""
        if assumed is not None:
            adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + (b"\x01" if assumed == _JPEG_YCBCR else b"\x00")
        tables = self._tables
        return b"\xff\xd8" + adobe + (tables[2:-2] if tables else b"") + data[2:]

    def _decoded(self, index: int, row: int) -> npt.NDArray[Any] | None:
        """Return the samples of a tile as stored, [h, w, channels], or None where the file has no bytes for it."""
        data = self.encoded(index)
        if not data:
            return None
        if self._jpeg:
            import imagecodecs

            _require_end(data)
            assumed, wanted = self._colorspaces
            pixels = imagecodecs.jpeg8_decode(data, tables=self._tables, colorspace=assumed, outcolorspace=wanted)
            return pixels if pixels.ndim == 3 else pixels[..., None]
        if self._raw:
            return self._unpacked(data, row)
        if self._page.compression in _JPEG_2000:
            _require_end(data)
        # Among pages of one channel each, a page counts its own tiles.
        page = self._pages[index // (self.columns * self.rows)] if len(self._pages) > 1 else self._page
        if len(self._pages) > 1:
            index %= self.columns * self.rows
        with quiet():
            pixels = page.decode(data, index, jpegtables=page.jpegtables)[0]
        if pixels is None:
            return None
        decoded: npt.NDArray[Any] = pixels[0]
        return decoded

    def _unpacked(self, data: bytes, row: int) -> npt.NDArray[Any]:
        samples = self._page.samplesperpixel
        kind = np.dtype(np.uint8) if self._page.bitspersample == 8 else np.dtype(self._page.parent.byteorder + "u2")
        line = self.tile_width * samples * kind.itemsize
        height = self.tile_height
        if not self._page.is_tiled:
            height = min(height, self.height - row * height)
        if len(data) < height * line:
            raise ValueError(f"{len(data)} bytes instead of {height * line}")
        return np.frombuffer(data, kind, height * self.tile_width * samples).reshape(height, self.tile_width, samples)

    def _rgb(self, samples: npt.NDArray[Any]) -> UInt8Array:
        page = self._page
        if self._colors is not None:
            return np.ascontiguousarray(self._colors.T[samples[..., 0]].astype(np.uint8))
        if samples.dtype != np.uint8:
            samples = _upper_bits(samples, page.bitspersample)
        if page.compression == _APERIO_YCBCR:
            samples = _from_ycbcr(samples)
        if page.photometric == _WHITE_IS_ZERO:
            samples = np.concatenate([255 - samples[..., :1], samples[..., 1:]], axis=2)
        if self._planes > 1 and len(self._pages) > 1:
            return np.ascontiguousarray(samples)
        if samples.shape[2] in (2, 4):
            samples = _over_white(samples, page.extrasamples)
        if samples.shape[2] == 1:
            samples = np.repeat(samples, 3, axis=2)
        return np.ascontiguousarray(samples)


def _require_end(data: bytes) -> None:
    """Refuse a JPEG or JPEG 2000 stream without its end marker: the decoders would fill in grey and say nothing."""
    if b"\xff\xd9" not in data[-64:] and not data.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise ValueError("its data end too early")


def _subsampled(stream: bytes) -> bool:
    """Whether a JPEG 2000 stream stores components at different resolutions (SIZ marker, ISO/IEC 15444-1 A.5.1)."""
    start = stream.find(b"\xff\x51")
    if start < 0:
        return False
    components = int.from_bytes(stream[start + 38 : start + 40], "big")
    steps = stream[start + 40 : start + 40 + 3 * components]
    return any(steps[at] != 1 for at in range(len(steps)) if at % 3)


def _damaged(row: int, column: int, error: Exception) -> str:
    reason = (str(error).splitlines() or [""])[0].strip() or type(error).__name__
    return f"a source tile is damaged (row {row + 1}, column {column + 1}: {reason}); copy the file again"


def _upper_bits(samples: npt.NDArray[Any], bits: int) -> npt.NDArray[np.uint8]:
    """Return the upper 8 of the bits of 16-bit samples."""
    if bits < 16 or samples.dtype.itemsize != 2 or not samples.flags.c_contiguous:
        return (samples >> (bits - 8)).astype(np.uint8)
    # A view of the upper bytes: a large strip is not copied once more.
    little = samples.dtype.newbyteorder("<") == samples.dtype
    return samples.view(np.uint8).reshape(*samples.shape, 2)[..., 1 if little else 0]


def _over_white(samples: npt.NDArray[np.uint8], kinds: tuple[int, ...]) -> UInt8Array:
    """Lay the colors over white by their last channel, if that is an opacity (1: they are multiplied by it; 2: not)."""
    colors, kind = samples[..., :-1], int(kinds[0]) if kinds else 0
    if kind not in (1, 2):
        return colors
    opacity = samples[..., -1:].astype(np.uint16)
    seen = colors.astype(np.uint16) if kind == 1 else (colors * opacity + 127) // 255
    return np.minimum(seen + (255 - opacity), 255).astype(np.uint8)


def _from_ycbcr(samples: npt.NDArray[np.uint8]) -> UInt8Array:
    """Convert full-range YCbCr (ITU-T T.871) to RGB."""
    y, blue, red = (samples[..., channel].astype(np.float32) for channel in range(3))
    blue -= 128
    red -= 128
    colors = np.stack([y + 1.402 * red, y - 0.344136 * blue - 0.714136 * red, y + 1.772 * blue], axis=2)
    return np.clip(colors + 0.5, 0, 255).astype(np.uint8)
