"""Numbers as a reader wants them; what is not known is a dash."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = [
    "DASH",
    "bytes_of",
    "decimal",
    "listed",
    "number",
    "percent",
    "share",
    "signed",
    "significant",
    "spread",
    "tiles_of",
]

DASH = "–"

_FEW = 4


def number(count: int) -> str:
    """Write a count."""
    return f"{count:,}"


def tiles_of(count: int) -> str:
    """Write a count of tiles."""
    return f"{count:,} tile{'' if count == 1 else 's'}"


def decimal(value: float, digits: int = 1) -> str:
    """Write a number; a dash for what is none."""
    if not math.isfinite(value):
        return DASH
    text = f"{value:,.{digits}f}".replace("-", "−")
    return text.removeprefix("−") if float(f"{value:.{digits}f}") == 0 else text


def significant(value: float) -> str:
    """Write four significant digits, never in powers of ten; a dash for what is no number."""
    if not math.isfinite(value):
        return DASH
    whole = len(f"{abs(value):.0f}") if abs(value) >= 1 else 0
    if whole >= 4:
        return decimal(value, 0)
    return str(np.format_float_positional(value, precision=4, unique=False, fractional=False, trim="-"))


def signed(value: float) -> str:
    """Write a difference with its sign."""
    text = decimal(value)
    return text if text == DASH or text.startswith("−") else f"+{text}"


def percent(fraction: float) -> str:
    """Write a share, 0 to 1; only none at all is 0 %, only all of it 100 %."""
    if not math.isfinite(fraction):
        return DASH
    if 0 < fraction < 0.001:
        return "< 0.1 %"
    if 0.999 < fraction < 1:
        return "> 99.9 %"
    text = f"{100 * fraction:.1f}".removesuffix(".0")
    return f"{text} %"


def share(part: int, whole: int) -> str:
    """Write the share of a count in another; a dash where there is nothing to share."""
    return percent(part / whole) if whole else DASH


def bytes_of(count: float) -> str:
    """Write a number of bytes, in powers of 1,000."""
    if not math.isfinite(count):
        return DASH
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 999.5 * size else f"{count / size:,.0f} {unit}"
    return f"{count:.0f} bytes"


def listed(entries: Sequence[tuple[str, int]], most: int = _FEW) -> str:
    """Write values with their counts, the most frequent first: "224 x 224 px (90), 256 x 256 px (10)"."""
    if not entries:
        return DASH
    if len(entries) == 1:
        return entries[0][0]
    shown = [f"{text} ({count:,})" for text, count in entries[:most]]
    more = len(entries) - most
    return ", ".join(shown) + (f" and {more:,} more" if more > 0 else "")


def spread(values: npt.NDArray[np.float64], unit: str) -> str:
    """Write where many numbers lie: "median 224, 90 % within 210 to 250, all within 200 to 256 px"."""
    known = values[np.isfinite(values)]
    if not len(known):
        return DASH
    low, lower, middle, upper, high = (significant(value) for value in np.quantile(known, [0, 0.05, 0.5, 0.95, 1]))
    if low == high:
        return f"{middle} {unit}"
    return f"median {middle}, 90 % within {lower} to {upper}, all within {low} to {high} {unit}"
