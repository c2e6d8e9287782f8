"""Synthetic whole slides as files: pyramids of JPEG tiles, written band by band."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from eosin.core.errors import EosinError
from eosin.core.files import storage_errors
from eosin.synthetic.collection import NOTICE
from eosin.synthetic.scene import SlideScene
from eosin.synthetic.tiles import check_whole

UInt8Array = NDArray[np.uint8]
Kind = Literal["tiff", "svs", "ome-tiff"]
Pattern = Callable[[int, int, int, int], UInt8Array]

_SOFTWARE = f"eosin.synthetic: {NOTICE}"
# Longest side of the thumbnail that an SVS holds, in px.
_THUMBNAIL = 1024


def write_slide(
    path: Path | str,
    *,
    width: int,
    height: int,
    mpp: float | tuple[float, float] | None = 0.5,
    levels: Sequence[int] = (1, 4, 16),
    tile: int = 256,
    seed: int = 0,
    kind: Kind = "tiff",
    quality: int | None = 80,
    tissue: float = 0.4,
    pen: Sequence[str] = (),
    border: int = 0,
    pattern: Pattern | None = None,
    cell: int = 512,
) -> Path:
    """Write a pyramidal slide of procedural H&E tissue. It is not real tissue.

    The slide is drawn and encoded a band of tiles at a time; what is held in memory is a band, and the compressed
    tiles of the smaller levels. A pixel of a level is the mean, rounded, of the square of level-0 px that it covers,
    before JPEG: pixel (i, j) of the level with factor f covers level-0 px [f·i, f·i + f) × [f·j, f·j + f). Margins
    narrower than a whole pixel are left out of a level, as Aperio's scanners do.

    Args:
        path: The file; it appears whole or not at all.
        width: Of level 0 in px.
        height: Of level 0 in px.
        mpp: µm/px of level 0, one number or x and y; None leaves it out of the metadata.
        levels: Whole factors of the levels, ascending, the first 1.
        tile: Side of the file's tiles in px, a multiple of 16.
        seed: Seed of tissue, stain and strokes.
        kind: `tiff` (a generic pyramid with resolution tags in cm), `svs` (as Aperio lays it out, a thumbnail as second
            page) or `ome-tiff` (levels as SubIFDs, PhysicalSizeX in the OME-XML).
        quality: Of the JPEG, 1 to 100; None compresses without loss (deflate).
        tissue: Share of the slide that is tissue, 0 to 1.
        pen: Colors of strokes over the slide, of `eosin.synthetic.scene.INKS`.
        border: Width in px of a black border.
        pattern: Draws other pixels instead: called with x, y, width, height in level-0 px, returns uint8
            [height, width, 3]. Windows lie wholly inside the slide.
        cell: See `SlideScene`.

    Returns:
        The path.

    Raises:
        EosinError: If an argument is out of its range, or the disk cannot be written.
    """
    path = Path(path)
    check_whole("width", width, 1, 10**6)
    check_whole("height", height, 1, 10**6)
    check_whole("tile", tile, 16, 4096)
    if tile % 16:
        raise EosinError(f"tile: {tile} is not a multiple of 16")
    if not levels or levels[0] != 1 or list(levels) != sorted(set(levels)) or levels[-1] > min(width, height):
        raise EosinError(f"levels: {tuple(levels)} are not ascending factors from 1 to the shorter side")
    if quality is not None:
        check_whole("quality", quality, 1, 100)
    pair = (mpp, mpp) if isinstance(mpp, int | float) else mpp
    if pair is not None and not all(math.isfinite(value) and value > 0 for value in pair):
        raise EosinError(f"mpp: {mpp!r} is not above 0 (µm per pixel)")
    if kind == "svs" and pair is not None and pair[0] != pair[1]:
        raise EosinError("mpp: an SVS holds one number for both axes; choose kind='ome-tiff' or 'tiff'")
    if kind not in ("tiff", "svs", "ome-tiff"):
        raise EosinError(f"kind: '{kind}' is not one of tiff, svs, ome-tiff")
    if pattern is None:
        drawn_at = pair[0] if pair else 0.5
        scene = SlideScene(
            width, height, mpp=drawn_at, seed=seed, tissue=tissue, pen=pen, border=border, cell=min(cell, 512)
        )
        pattern = scene.pixels
    pyramid = _Pyramid(pattern, (width, height), tuple(levels), tile, quality, thumbnail=kind == "svs")
    # tifffile wants a name, so this is `atomic_file` by hand.
    part = path.with_name(f".{path.name}.part")
    with storage_errors(path):
        try:
            _write(part, pyramid, kind, pair)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    return path


class _Pyramid:
    """Encoded tiles of all levels from one pass over the slide.

    Attributes:
        encoded: Tiles of each level below the finest, row by row; complete when `finest` is exhausted.
        thumbnail: The whole slide, uint8 [h, w, 3]; complete then too.
    """

    def __init__(
        self,
        pattern: Pattern,
        size: tuple[int, int],
        factors: tuple[int, ...],
        tile: int,
        quality: int | None,
        *,
        thumbnail: bool,
    ) -> None:
        self.size, self.factors, self.tile, self.quality = size, factors, tile, quality
        self._pattern = pattern
        self._band = math.lcm(tile, *factors)
        self.encoded: dict[int, list[bytes]] = {factor: [] for factor in factors[1:]}
        self._pending: dict[int, list[UInt8Array]] = {factor: [] for factor in factors[1:]}
        self._small = 1
        while thumbnail and max(size) > _THUMBNAIL * self._small and self._band % (2 * self._small) == 0:
            self._small *= 2
        self._thumbnail: list[UInt8Array] | None = [] if thumbnail else None

    @property
    def thumbnail(self) -> UInt8Array:
        return np.concatenate(self._thumbnail or [])

    def shape(self, factor: int) -> tuple[int, int, int]:
        """Height, width and channels of a level."""
        return self.size[1] // factor, self.size[0] // factor, 3

    def finest(self) -> Iterator[bytes]:
        """Yield the tiles of level 0, and fill the other levels on the way."""
        width, height = self.size
        for top in range(0, height, self._band):
            rows = min(self._band, height - top)
            band = np.ascontiguousarray(self._pattern(0, top, width, rows))
            picture = Image.fromarray(band)
            for factor in self.factors[1:]:
                self._add(factor, _reduced(picture, factor), last=top + rows >= height)
            if self._thumbnail is not None and min(rows, width) >= self._small:
                self._thumbnail.append(_reduced(picture, self._small))
            for start in range(0, rows, self.tile):
                yield from self._encode(band[start : start + self.tile])

    def _add(self, factor: int, rows: UInt8Array, *, last: bool) -> None:
        pending = self._pending[factor]
        pending.append(rows)
        if last or sum(len(part) for part in pending) >= self.tile:
            whole = np.concatenate(pending)
            full = len(whole) if last else len(whole) // self.tile * self.tile
            for start in range(0, full, self.tile):
                self.encoded[factor] += self._encode(whole[start : min(start + self.tile, full)])
            self._pending[factor] = [whole[full:].copy()]

    def _encode(self, rows: UInt8Array) -> Iterator[bytes]:
        """Encode one row of tiles, those at the edges filled up with their last pixels."""
        import imagecodecs

        for left in range(0, rows.shape[1], self.tile):
            pixels = rows[:, left : left + self.tile]
            short = self.tile - pixels.shape[0], self.tile - pixels.shape[1]
            if any(short):
                pixels = np.pad(pixels, ((0, short[0]), (0, short[1]), (0, 0)), mode="edge")
            pixels = np.ascontiguousarray(pixels)
            if self.quality is None:
                yield zlib.compress(pixels.tobytes(), 1)
            else:
                colors: Any = {"colorspace": "RGB", "outcolorspace": "YCBCR", "subsampling": "420"}
                yield bytes(imagecodecs.jpeg8_encode(pixels, level=self.quality, **colors))


def _reduced(picture: Image.Image, factor: int) -> UInt8Array:
    """Mean of squares of `factor` px, without the margins that fill none."""
    width, height = picture.width // factor, picture.height // factor
    if factor == 1:
        return np.asarray(picture)
    if width == 0 or height == 0:
        return np.zeros((height, width, 3), np.uint8)
    return np.asarray(picture.reduce(factor, box=(0, 0, width * factor, height * factor)))


def _write(file: Path, pyramid: _Pyramid, kind: Kind, mpp: tuple[float, float] | None) -> None:
    from tifffile import TiffWriter

    width, height = pyramid.size
    jpeg = pyramid.quality is not None
    common: dict[str, Any] = {
        "dtype": np.uint8,
        "photometric": "rgb",
        "tile": (pyramid.tile, pyramid.tile),
        "compression": "jpeg" if jpeg else "adobe_deflate",
        "software": _SOFTWARE,
    }
    if jpeg:
        common["subsampling"] = (2, 2)

    def resolution(factor: int) -> dict[str, Any]:
        if mpp is None or kind == "svs":
            return {}
        return {"resolution": (1e4 / mpp[0] / factor, 1e4 / mpp[1] / factor), "resolutionunit": "CENTIMETER"}

    options: dict[str, Any] = {"metadata": None}
    if kind == "svs":
        options["description"] = _aperio(pyramid, (width, height), mpp)
    elif kind == "ome-tiff":
        options = {"subifds": len(pyramid.factors) - 1, "metadata": {"axes": "YXS", **_physical_size(mpp)}}
    # More than 4 GiB do not fit a classic TIFF, and how well the tissue will compress is not known yet.
    with TiffWriter(file, bigtiff=width * height > 10**9, ome=kind == "ome-tiff") as tiff:
        tiff.write(pyramid.finest(), shape=pyramid.shape(1), **common, **options, **resolution(1))
        if kind == "svs":
            small = pyramid.thumbnail
            text = f"{_APERIO}{width}x{height} -> {small.shape[1]}x{small.shape[0]} - |AppMag = {_power(mpp):g}"
            tiff.write(small, compression="jpeg", rowsperstrip=16, metadata=None, description=text, software=_SOFTWARE)
        for factor in pyramid.factors[1:]:
            shape = pyramid.shape(factor)
            options = {"subfiletype": 0 if kind == "svs" else 1, "metadata": None, **resolution(factor)}
            if kind == "svs":
                options["description"] = _aperio(pyramid, (shape[1], shape[0]), mpp)
            tiff.write(iter(pyramid.encoded.pop(factor)), shape=shape, **common, **options)


_APERIO = "Aperio Image Library v12.0.15 \r\n"


def _power(mpp: tuple[float, float] | None) -> float:
    """Objective power that goes with a scale: 20 at 0.5 µm/px."""
    return 20.0 if mpp is None else min((2.5, 5.0, 10.0, 20.0, 40.0, 80.0), key=lambda power: abs(10 / mpp[0] - power))


def _aperio(pyramid: _Pyramid, size: tuple[int, int], mpp: tuple[float, float] | None) -> str:
    """The description of a level as Aperio words it."""
    (width, height), tile = pyramid.size, pyramid.tile
    text = f"{_APERIO}{width}x{height} [0,0 {width}x{height}] ({tile}x{tile})"
    if size != pyramid.size:
        text += f" -> {size[0]}x{size[1]}"
    text += f" JPEG/YCC Q={pyramid.quality}" if pyramid.quality else " Deflate"
    text += f"|AppMag = {_power(mpp):g}|User = {_SOFTWARE}"
    return text if mpp is None else f"{text}|MPP = {mpp[0]:.10g}"


def _physical_size(mpp: tuple[float, float] | None) -> dict[str, Any]:
    if mpp is None:
        return {}
    units = {"PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm"}
    return {"PhysicalSizeX": mpp[0], "PhysicalSizeY": mpp[1], **units}
