"""Loops over the pixels of one image after another, compiled by numba for the processor at hand.

What PyTorch does in some sixty passes over an image, these do in five. The laws are those of the operations' own
modules, which remain the reference and the path taken without numba; `eosin.augment.kernels` chooses. Importing this
module imports numba.

Every loop is over contiguous float32 without a branch, so that the compiler makes vectors of it: `_least` and `_most`
are selections, in which NaN loses. The compiler may join a product and a sum and reorder sums, always in the same way
for images of one size, and may not assume that NaN and inf do not occur.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from numba import njit

from eosin.augment.spaces import LEAST_CHROMA

__all__ = ["SIGNATURES", "hed_jitter", "jitter", "restain", "without_cache"]

_OPTIONS: dict[str, Any] = {
    "nogil": True,
    # Division by 0 as NumPy has it: Python's would be a branch for each pixel.
    "error_model": "numpy",
    "fastmath": {"contract", "nsz", "arcp", "reassoc"},
}

SIGNATURES = {
    "restain": "void(float32[:,:,::1], float32[:,::1], float32, boolean, boolean, int64, float32[:,::1],"
    "float32[:,::1], float32[:,::1], float32, float32, float32)",
    "jitter": "void(float32[:,:,::1], int64[:,::1], float32[:,::1])",
    "hed_jitter": "void(float32[:,:,::1], float32[:,:,::1], float32[:,::1], float32)",
}
"""Types of the arguments of each kernel."""

F: TypeAlias = np.float32
Int: TypeAlias = np.int32
Floats = npt.NDArray[np.float32]

# Places in `spaces.CHANNELS`.
_LAB, _HSV = 0, 1

# Pixels whose float32 sums are added up before they go into a float64 total.
_RUN = 1024


def _kernel(function: Callable[..., None]) -> Any:
    try:
        return njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # no folder that can be written to keep the machine code in
        return njit(**_OPTIONS)(function)


def without_cache(kernel: Any) -> Any:
    """Return the same kernel, which is compiled in every process anew and touches no file."""
    return njit(**_OPTIONS)(kernel.py_func)


_part = njit(**_OPTIONS)


@_part
def _least(a: F, b: F) -> F:
    return a if a < b else b


@_part
def _most(a: F, b: F) -> F:
    return a if a > b else b


@_part
def _within(value: F, low: F, high: F) -> F:
    return _least(_most(value, low), high)


@_part
def _weigh(red: Floats, green: Floats, blue: Floats, weight: Floats) -> None:
    """`spaces.tissue_weight`."""
    for i in range(weight.size):
        largest = _most(_most(red[i], green[i]), blue[i])
        smallest = _least(_least(red[i], green[i]), blue[i])
        weight[i] = _within(F(40 * 0.945) * largest - F(40) * smallest - F(0.2), F(0), F(1))


@_part
def _to_lab(red: Floats, green: Floats, blue: Floats, m: Floats) -> None:
    """`spaces.to_planes_` of L*a*b*: sRGB curve, matrix to Y, X, Z, cube root; then Y, X - Y, Y - Z."""
    for i in range(red.size):
        r, g, b = _to_linear(red[i]), _to_linear(green[i]), _to_linear(blue[i])
        y = _cube_root(m[0, 0] * r + m[0, 1] * g + m[0, 2] * b)
        red[i] = y
        green[i] = _cube_root(m[1, 0] * r + m[1, 1] * g + m[1, 2] * b) - y
        blue[i] = y - _cube_root(m[2, 0] * r + m[2, 1] * g + m[2, 2] * b)


@_part
def _from_lab(red: Floats, green: Floats, blue: Floats, m: Floats) -> None:
    for i in range(red.size):
        y = red[i]
        x, z = _cube(y + green[i]), _cube(y - blue[i])
        y = _cube(y)
        red[i] = _from_linear(m[0, 0] * y + m[0, 1] * x + m[0, 2] * z)
        green[i] = _from_linear(m[1, 0] * y + m[1, 1] * x + m[1, 2] * z)
        blue[i] = _from_linear(m[2, 0] * y + m[2, 1] * x + m[2, 2] * z)


@_part
def _to_hsv(red: Floats, green: Floats, blue: Floats, least: F) -> None:
    """Turn RGB into hue in sixths, saturation and value; below a chroma of `least` the hue goes to 0."""
    for i in range(red.size):
        r, g, b = red[i], green[i], blue[i]
        value = _most(_most(r, g), b)
        smallest = _least(_least(r, g), b)
        chroma = value - smallest
        hue = (g + b - r + chroma - smallest) / _most(chroma, least)
        red[i] = F(6) - hue if (g < b) & (chroma >= least) else hue
        green[i] = chroma / _most(value, F(1e-12))
        blue[i] = value


@_part
def _from_hsv(red: Floats, green: Floats, blue: Floats, turn: F) -> None:
    """Back, with the hue turned by sixths of the circle."""
    for i in range(red.size):
        hue, saturation, value = red[i] + turn, _within(green[i], F(0), F(1)), _within(blue[i], F(0), F(1))
        hue -= F(6) * np.floor(hue * F(1 / 6))
        chroma = saturation * value
        smallest = value - chroma
        red[i] = smallest + chroma * (_within(abs(hue - F(3)), F(1), F(2)) - F(1))
        green[i] = smallest + chroma * (F(2) - _within(abs(hue - F(2)), F(1), F(2)))
        blue[i] = smallest + chroma * (F(2) - _within(abs(hue - F(4)), F(1), F(2)))


@_part
def _to_hed(red: Floats, green: Floats, blue: Floats, m: Floats) -> None:
    darkest = F(1e-6)
    for i in range(red.size):
        r, g, b = (
            _log2(_within(red[i], darkest, F(1))),
            _log2(_within(green[i], darkest, F(1))),
            _log2(_within(blue[i], darkest, F(1))),
        )
        red[i] = m[0, 0] * r + m[0, 1] * g + m[0, 2] * b
        green[i] = m[1, 0] * r + m[1, 1] * g + m[1, 2] * b
        blue[i] = m[2, 0] * r + m[2, 1] * g + m[2, 2] * b


@_part
def _from_hed(red: Floats, green: Floats, blue: Floats, m: Floats) -> None:
    for i in range(red.size):
        h, e, d = red[i], green[i], blue[i]
        red[i] = _least(_exp2(m[0, 0] * h + m[0, 1] * e + m[0, 2] * d), F(1))
        green[i] = _least(_exp2(m[1, 0] * h + m[1, 1] * e + m[1, 2] * d), F(1))
        blue[i] = _least(_exp2(m[2, 0] * h + m[2, 1] * e + m[2, 2] * d), F(1))


@_part
def _log2(x: F) -> F:
    """Binary logarithm of a positive normal number: exponent plus t·P(t) of the mantissa 1 + t in 2/3..4/3; 3e-7."""
    bits = F(x).view(Int)
    exponent = Int(Int(bits - Int(0x3F2AAAAB)) >> Int(23))
    t = Int(bits - Int(exponent << Int(23))).view(F) - F(1)
    series = F(0.257088982) * t + F(-0.284251244)
    series = series * t + F(0.283653245)
    series = series * t + F(-0.357728835)
    series = series * t + F(0.481066763)
    series = series * t + F(-0.721402700)
    series = series * t + F(1.442693586)
    return F(exponent) + t * series


@_part
def _exp2(x: F) -> F:
    """2 to the power of a number, which is clamped to -126..126; 2e-7 of the value."""
    x = _within(x, F(-126), F(126))
    whole = np.floor(x + F(0.5))
    f = x - whole
    series = F(0.001327646719) * f + F(0.009675541682)
    series = series * f + F(0.055507132917)
    series = series * f + F(0.240221197177)
    series = series * f + F(0.693146967052)
    return (series * f + F(1)) * Int(Int(Int(whole) + Int(127)) << Int(23)).view(F)


# The curves of `curves`, with its constants: a line up to the knee, plus a power from there.
_SLOPE = 12.92
_KNEE = 6 / 29
_STEEP = 1 / (3 * _KNEE**2)


@_part
def _to_linear(x: F) -> F:
    """Power: a polynomial with the least largest error, 4e-7 of a displayed value."""
    knee = F(0.04045)
    line, x = _most(_least(x, knee), F(0)) - knee, _within(x, knee, F(1))
    series = F(-3.791907573) * x + F(20.53811986)
    series = series * x + F(-48.72433642)
    series = series * x + F(67.04839579)
    series = series * x + F(-60.18365095)
    series = series * x + F(38.33246506)
    series = series * x + F(-19.69601374)
    series = series * x + F(12.84061287)
    series = series * x + F(6.078564303)
    series = series * x + F(0.4669286267)
    return line + (series * x + F(0.01081619443))


@_part
def _from_linear(x: F) -> F:
    """Power: a quotient of polynomials with the least largest error, 1.5e-6."""
    knee = F(_SLOPE * 0.0031308)
    line, x = _within(x, F(0), knee) - (knee + F(0.055)), _within(x, knee, F(_SLOPE))
    above = F(0.03844708982) * x + F(5.853225861)
    above = above * x + F(68.20245656)
    above = above * x + F(141.6242405)
    above = above * x + F(59.71143305)
    above = above * x + F(4.484599527)
    above = above * x + F(0.03038568324)
    below = F(3.056640078) * x + F(84.87418584)
    below = below * x + F(349.3320617)
    below = below * x + F(286.6252714)
    below = below * x + F(45.73951255)
    below = below * x + F(1)
    return _within(line + above / below, F(0), F(1))


@_part
def _cube_root(x: F) -> F:
    """Root: r ≈ x^(-1/3) from the bits, then x·r²·(1 - e)^(-2/3) as a series in e = 1 - x·r³; 2e-7 of the value."""
    knee = F(_KNEE**3)
    line, x = _least(x, knee) - knee, _most(x, knee)
    guess = Int(F(1.4199005e9) - F(1 / 3) * F(F(x).view(Int))).view(F)
    root = x * guess * guess
    e = F(1) - root * guess
    series = F(0.4293819910) * e + F(0.4592420003)
    series = series * e + F(0.4937930787)
    series = series * e + F(0.5555287462)
    series = series * e + F(0.6666667052)
    return line + F(1 / _STEEP) * root * (series * e + F(1))


@_part
def _cube(x: F) -> F:
    knee = F(_KNEE / _STEEP)
    power = _within(x, knee, F(1))
    return _within(x, F(-1), knee) - knee + F(_STEEP**3) * power * power * power


@_part
def _mean(values: Floats, weight: Floats, slope: F, offset: F) -> tuple[float, float]:
    """Return the mean of values that count by slope · weight + offset, and the sum of these."""
    total, count = 0.0, 0.0
    for start in range(0, values.size, _RUN):
        value, share = values[start : start + _RUN], weight[start : start + _RUN]
        run, counted = F(0), F(0)
        for i in range(value.size):
            counts = slope * share[i] + offset
            run += counts * value[i]
            counted += counts
        total += float(run)
        count += float(counted)
    return total / count, count


@_part
def _average(values: Floats) -> float:
    return _mean(values, values, F(0), F(1))[0]


@_part
def _deviation(values: Floats, mean: F, weight: Floats, slope: F, offset: F) -> float:
    """Return the sum of the squared differences from the mean, counted likewise."""
    total = 0.0
    for start in range(0, values.size, _RUN):
        value, share = values[start : start + _RUN], weight[start : start + _RUN]
        run = F(0)
        for i in range(value.size):
            difference = value[i] - mean
            run += (slope * share[i] + offset) * difference * difference
        total += float(run)
    return total


@_part
def _move(values: Floats, mean: F, gain: F, shift: F, weight: Floats, keep: F, ends: Floats, most: F) -> None:
    """Add ((x - mean) · gain + shift) · weight, down to at least min(x, most) and within the ends, in place."""
    for i in range(values.size):
        before = values[i]
        moved = before + ((before - mean) * gain + shift) * (keep * weight[i] + (F(1) - keep))
        values[i] = _within(_most(moved, _least(before, most)), ends[0], ends[1])


@_kernel
def restain(
    images: Floats,
    wanted: Floats,
    strength: F,
    tissue_only: bool,
    keep_background: bool,
    space: int,
    to_space: Floats,
    from_space: Floats,
    ends: Floats,
    least_weight: F,
    least_tissue: F,
    most_gain: F,
) -> None:
    """`randstainna.restain` in place.

    Args:
        images: float32 [B, 3, N] RGB in 0..1.
        wanted: float32 [B, 6], averages and deviations, in planes.
        strength: 0..1.
        tissue_only: Whether statistics are taken over tissue.
        keep_background: Whether glass stays as it is.
        space: Place of the color space in `spaces.CHANNELS`.
        to_space: Matrix to the color space, [3, 3].
        from_space: Matrix from it.
        ends: Least and largest value of each plane, [3, 2].
        least_weight: `image_statistics.LEAST_WEIGHT`.
        least_tissue: `randstainna.LEAST_TISSUE`.
        most_gain: `randstainna.MOST_GAIN`.
    """
    pixels = images.shape[2]
    weight = np.empty(pixels, dtype=F)
    slope, offset = (F(1), F(least_weight)) if tissue_only else (F(0), F(1))
    keep = F(1) if keep_background else F(0)
    for image in range(images.shape[0]):
        red, green, blue = images[image, 0], images[image, 1], images[image, 2]
        _weigh(red, green, blue, weight)
        blend = F(strength) if _average(weight) >= least_tissue else F(0)
        if space == _LAB:
            _to_lab(red, green, blue, to_space)
        elif space == _HSV:
            _to_hsv(red, green, blue, F(LEAST_CHROMA))
        else:
            _to_hed(red, green, blue, to_space)
        for channel in range(3):
            values = images[image, channel]
            mean, count = _mean(values, weight, slope, offset)
            std = np.sqrt(_deviation(values, F(mean), weight, slope, offset) / count)
            gain = min(wanted[image, 3 + channel] / max(std, 1e-9), most_gain) - 1.0
            shift = wanted[image, channel] - mean
            # L*a*b* of tissue must not turn green, see `randstainna.restain`.
            most = F(0) if space == _LAB and channel == 1 and keep_background else F(-3e38)
            _move(values, F(mean), F(gain * blend), F(shift * blend), weight, keep, ends[channel], most)
        if space == _LAB:
            _from_lab(red, green, blue, from_space)
        elif space == _HSV:
            _from_hsv(red, green, blue, F(0))
        else:
            _from_hed(red, green, blue, from_space)


@_part
def _blend(values: Floats, other: F, factor: F) -> None:
    for i in range(values.size):
        values[i] = _within(other + factor * (values[i] - other), F(0), F(1))


@_part
def _saturate(red: Floats, green: Floats, blue: Floats, factor: F) -> None:
    for i in range(red.size):
        r, g, b = red[i], green[i], blue[i]
        luma = _luma(r, g, b)
        red[i] = _within(luma + factor * (r - luma), F(0), F(1))
        green[i] = _within(luma + factor * (g - luma), F(0), F(1))
        blue[i] = _within(luma + factor * (b - luma), F(0), F(1))


@_part
def _luma(red: F, green: F, blue: F) -> F:
    return F(0.2989) * red + F(0.587) * green + F(0.114) * blue


@_kernel
def jitter(images: Floats, steps: npt.NDArray[np.int64], values: Floats) -> None:
    """`color.ColorJitter` in place.

    Args:
        images: float32 [B, 3, N] RGB in 0..1.
        steps: int64 [B, 4], what is adjusted first, second, …: brightness (0), contrast (1), saturation (2), hue (3),
            nothing (-1).
        values: float32 [B, 4], factors of the first three, and turns of the color circle.
    """
    for image in range(images.shape[0]):
        red, green, blue = images[image, 0], images[image, 1], images[image, 2]
        for place in range(4):
            step = steps[image, place]
            value = values[image, step]
            if step == 0:
                for channel in range(3):
                    _blend(images[image, channel], F(0), value)
            elif step == 1:
                mean = _luma(F(_average(red)), F(_average(green)), F(_average(blue)))
                for channel in range(3):
                    _blend(images[image, channel], mean, value)
            elif step == 2:
                _saturate(red, green, blue, value)
            elif step == 3:
                _to_hsv(red, green, blue, F(1e-12))
                _from_hsv(red, green, blue, F(6) * value)


@_kernel
def hed_jitter(images: Floats, slopes: Floats, offsets: Floats, darkest: F) -> None:
    """`hed.hed_jitter` in place: RGB · 2^(log2(max(RGB, darkest)) @ slope + offset), clamped to 0..1.

    Args:
        images: float32 [B, 3, N] RGB in 0..1.
        slopes: float32 [B, 3, 3].
        offsets: float32 [B, 3].
        darkest: `hed.DARKEST`.
    """
    for image in range(images.shape[0]):
        red, green, blue = images[image, 0], images[image, 1], images[image, 2]
        m, offset = slopes[image], offsets[image]
        for i in range(red.size):
            r, g, b = _within(red[i], F(0), F(1)), _within(green[i], F(0), F(1)), _within(blue[i], F(0), F(1))
            log_r, log_g, log_b = _log2(_most(r, darkest)), _log2(_most(g, darkest)), _log2(_most(b, darkest))
            exponent = m[0, 0] * log_r + m[1, 0] * log_g + m[2, 0] * log_b + offset[0]
            red[i] = _least(r * _exp2(exponent), F(1))
            exponent = m[0, 1] * log_r + m[1, 1] * log_g + m[2, 1] * log_b + offset[1]
            green[i] = _least(g * _exp2(exponent), F(1))
            exponent = m[0, 2] * log_r + m[1, 2] * log_g + m[2, 2] * log_b + offset[2]
            blue[i] = _least(b * _exp2(exponent), F(1))
