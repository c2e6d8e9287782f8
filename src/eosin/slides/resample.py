"""Resampling at any step and offset: exact coverage-weighted means, as products with banded matrices.

Output pixel i covers the interval [x0 + i·step, x0 + (i + 1)·step) of the source, where source pixel j covers
[j, j + 1). Its value is the mean of the source over that interval: Σ_j w_ij p_j with w_ij = |interval i ∩ pixel j| /
step. Rows and columns separate. A band of some output rows needs only a few source rows, so each band is a small dense
product.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = ["UInt8Array", "resample_area", "resample_linear"]

UInt8Array = npt.NDArray[np.uint8]
_Float32 = npt.NDArray[np.float32]
_Bands = tuple[npt.NDArray[np.int64], _Float32]

# Steps at which Pillow's reduction rounds halves up exactly, as the matrices do, and takes less time.
_HALVING = (1, 2, 4)

# What differs from a whole number by less than this fraction of a pixel is arithmetic, not geometry.
_ROUNDING = 1e-9


def resample_area(
    pixels: UInt8Array, x0: float, y0: float, step_x: float, step_y: float, width: int, height: int
) -> UInt8Array:
    """Take the exact mean of the source over each output pixel.

    What of an output pixel lies outside the source does not count: it is the mean over the part inside, and where there
    is none, the nearest source pixel.

    Args:
        pixels: uint8 [h, w, 3].
        x0: Left edge of the first output pixel in source px; fractions allowed.
        y0: Upper edge of the first output pixel in source px.
        step_x: Source px per output px, at least 1.
        step_y: The same downwards.
        width: Output px per row.
        height: Number of output rows.

    Returns:
        uint8 [height, width, 3]: means rounded to the nearest integer, halves up. Where steps or offsets are not whole,
        they are summed in float32, so that a mean within about 1e-4 of a half may round either way.
    """
    whole = _whole_steps(pixels.shape[:2], x0, y0, step_x, step_y, width, height)
    if whole is None:
        across = _area_bands(x0, step_x, width, pixels.shape[1], _block(step_x))
        down = _area_bands(y0, step_y, height, pixels.shape[0], _block(step_y))
        return _separable(pixels, across, down, width, height)
    left, top, kx, ky = whole
    region = pixels[top : top + height * ky, left : left + width * kx]
    if kx == ky == 1:
        return region.copy()
    if kx in _HALVING and ky in _HALVING:
        return np.array(Image.fromarray(region).reduce((kx, ky)))
    # Sums of whole weights are exact: halves are rounded up without fail.
    across = _area_bands(0, kx, width, width * kx, _block(kx), whole=True)
    down = _area_bands(0, ky, height, height * ky, _block(ky), whole=True)
    return _separable(region, across, down, width, height, kx * ky)


def resample_linear(
    pixels: UInt8Array, x0: float, y0: float, step_x: float, step_y: float, width: int, height: int
) -> UInt8Array:
    """Interpolate between the centers of the source's pixels where an axis has a step below 1, else take the mean.

    Args:
        pixels: uint8 [h, w, 3].
        x0: Left edge of the first output pixel in source px; its center lies at x0 + step_x / 2, the center of source
            pixel j at j + 1/2. Beyond the outermost centers the outermost pixels are repeated.
        y0: Upper edge of the first output pixel in source px.
        step_x: Source px per output px.
        step_y: The same downwards.
        width: Output px per row.
        height: Number of output rows.

    Returns:
        uint8 [height, width, 3], rounded to the nearest integer, halves up.
    """
    bands = [
        (_linear_bands if step < 1 else _area_bands)(start, step, count, size, _block(step))
        for start, step, count, size in (
            (x0, step_x, width, pixels.shape[1]),
            (y0, step_y, height, pixels.shape[0]),
        )
    ]
    return _separable(pixels, bands[0], bands[1], width, height)


def _whole_steps(
    shape: tuple[int, ...], x0: float, y0: float, step_x: float, step_y: float, width: int, height: int
) -> tuple[int, int, int, int] | None:
    """Return offsets and steps as integers where all are whole and the output lies inside the source."""
    values = [round(value) for value in (x0, y0, step_x, step_y)]
    if any(abs(whole - value) > _ROUNDING for whole, value in zip(values, (x0, y0, step_x, step_y), strict=True)):
        return None
    left, top, kx, ky = values
    inside = left >= 0 and top >= 0 and left + width * kx <= shape[1] and top + height * ky <= shape[0]
    return (left, top, kx, ky) if inside else None


def _block(step: float) -> int:
    """Output pixels per band: few enough that the matrix is mostly its band, enough for a product to be worth it."""
    return 8 if step < 3 else 4 if step < 8 else 2


def _area_bands(start: float, step: float, count: int, size: int, block: int, whole: bool = False) -> _Bands:
    """Return each band's first source pixel, int64 [n], and its weights, float32 [n, block, K].

    The weights of an output pixel sum to 1; if `whole`, they are 0 and 1.
    """
    low, high = _intervals(start, step, count, size, block)
    first, reach = _reach(np.floor(low + _ROUNDING), np.ceil(high - _ROUNDING), size)
    source = first[:, None, None] + np.arange(reach)
    weights = np.minimum(high[..., None], source + 1) - np.maximum(low[..., None], source)
    np.maximum(weights, 0, out=weights)
    if not whole:
        weights /= weights.sum(axis=2, keepdims=True)
    return first, weights.astype(np.float32)


def _intervals(start: float, step: float, count: int, size: int, block: int) -> tuple[npt.NDArray[np.float64], ...]:
    """Return the ends of the output pixels' intervals inside the source, float64 [n, block]; the last is repeated."""
    index = np.minimum(np.arange(-(-count // block) * block), count - 1).reshape(-1, block)
    low = np.clip(start + step * index, 0, size)
    high = np.clip(start + step * (index + 1), 0, size)
    # An interval wholly outside becomes a sliver of the outermost pixel.
    sliver = min(1e-3, step)
    low = np.minimum(low, size - sliver)
    return low, np.maximum(high, low + sliver)


def _linear_bands(start: float, step: float, count: int, size: int, block: int) -> _Bands:
    """Return each band's first source pixel, int64 [n], and its weights, float32 [n, block, K]."""
    index = np.minimum(np.arange(-(-count // block) * block), count - 1).reshape(-1, block)
    center = np.clip(start + step * (index + 0.5) - 0.5, 0, size - 1)
    first, reach = _reach(np.floor(center), np.minimum(np.floor(center) + 2, size), size)
    weights = 1 - np.abs(first[:, None, None] + np.arange(reach) - center[..., None])
    return first, np.maximum(weights, 0).astype(np.float32)


def _reach(low: npt.NDArray[np.float64], high: npt.NDArray[np.float64], size: int) -> tuple[npt.NDArray[np.int64], int]:
    """Return where each band's source pixels begin, and how many are enough for any band."""
    first = low.min(axis=1).astype(np.int64)
    reach = min(int((high.max(axis=1) - first).max()), size)
    return np.minimum(first, size - reach), reach


def _separable(
    pixels: UInt8Array, across: _Bands, down: _Bands, width: int, height: int, divisor: int = 1
) -> UInt8Array:
    first, weights = down
    block, reach = weights.shape[1:]
    reduced = np.empty((len(first) * block, pixels.shape[1] * 3), np.float32)
    for band, start in enumerate(first):
        # Converted band by band, the source's floats stay in the cache.
        source = pixels[start : start + reach].astype(np.float32, order="C").reshape(reach, -1)
        np.matmul(weights[band], source, out=reduced[band * block : (band + 1) * block])
    first, weights = across
    block, reach = weights.shape[1:]
    # The three channels lie side by side: each weight becomes a diagonal of three.
    spread = np.zeros((len(first), reach, 3, block, 3), np.float32)
    for channel in range(3):
        spread[:, :, channel, :, channel] = weights.transpose(0, 2, 1)
    matrices = spread.reshape(len(first), reach * 3, block * 3)
    out = np.empty((height, len(first) * block * 3), np.float32)
    for band, start in enumerate(first):
        source = reduced[:height, start * 3 : (start + reach) * 3]
        np.matmul(source, matrices[band], out=out[:, band * block * 3 : (band + 1) * block * 3])
    if divisor != 1:
        out /= divisor
    out += 0.5
    return out[:, : width * 3].astype(np.uint8).reshape(height, width, 3)
