"""Figures as SVG that takes its colors from the page, so that it needs no script and follows light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape

__all__ = ["Ellipse", "histogram", "scatter"]

Array = npt.NDArray[np.float64]

# In px where a figure stands alone in a narrow window; elsewhere it is scaled.
_WIDTH, _HEIGHT = 360, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 18, 10, 38
_BINS = 40
_TICKS = 5


@dataclass(frozen=True)
class Ellipse:
    """A distribution drawn at one standard deviation.

    Attributes:
        x: Center.
        y: Center.
        width: Standard deviation along x.
        height: Standard deviation along y.
        color: Number of the page's colors, 0 to 7.
    """

    x: float
    y: float
    width: float
    height: float
    color: int


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """Return where a value is drawn, in px."""
        low, high, value = (math.log(x) if self.logarithmic else x for x in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self) -> list[float]:
        """Return round values inside the axis."""
        if self.logarithmic:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            values = [step * 10.0**decade for decade in decades for step in (1, 2, 5)]
            return [value for value in values if self.low * 0.999 <= value <= self.high * 1.001]
        rough = (self.high - self.low) / _TICKS
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(step * power for step in (1, 2, 5, 10) if step * power >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [round(number * step, 12) for number in range(first, math.floor(self.high / step + 1e-9) + 1)]


def histogram(
    values: Array, low: float, high: float, *, mark: float, title: str, form: Callable[[float], str], logarithmic: bool
) -> Markup:
    """Draw how many tiles have which value, with a line at a threshold.

    Args:
        values: float64 [n], n at least 1; what lies outside counts at the ends.
        low: Left end.
        high: Right end.
        mark: The threshold; bars below it have the warning color.
        title: Of the horizontal axis.
        form: Writes its ticks.
        logarithmic: Whether it is.
    """
    across = _Axis(low, high, _LEFT, _WIDTH - _RIGHT, logarithmic)
    edges = _edges(low, high, mark, logarithmic)
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    up = _Axis(0.0, max(float(counts.max()), 5.0) * 1.05, _HEIGHT - _BOTTOM, _TOP)
    parts = [*_frame(across, up, title, "tiles", form, lambda value: f"{value:,.0f}")]
    for left, right, count in zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True):
        if count:
            x, end, y = across.place(left), across.place(right), up.place(count)
            kind = "bad" if right <= mark * (1 + 1e-9) else "good"
            parts.append(
                f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{max(end - x - 1, 0.5):.1f}" '
                f'height="{_HEIGHT - _BOTTOM - y:.1f}"><title>{escape(form(left))} to {escape(form(right))}: {count:,}'
                "</title></rect>"
            )
    at = across.place(mark)
    parts.append(f'<line class="threshold" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
    return _svg(parts, f"Histogram of {title}")


def scatter(
    x: Array, y: Array, colors: Sequence[str], ellipses: Sequence[Ellipse], x_title: str, y_title: str
) -> Markup:
    """Draw tiles as points of their own color, with distributions around.

    Args:
        x: float64 [n], n at least 1.
        y: float64 [n].
        colors: Of each point, "#rrggbb".
        ellipses: Distributions.
        x_title: Of the horizontal axis.
        y_title: Of the vertical axis.
    """
    across = _Axis(*_limits(x, [(e.x, e.width) for e in ellipses]), _LEFT, _WIDTH - _RIGHT)
    up = _Axis(*_limits(y, [(e.y, e.height) for e in ellipses]), _HEIGHT - _BOTTOM, _TOP)
    parts = [*_frame(across, up, x_title, y_title, _plain, _plain)]
    parts += [
        f'<circle cx="{across.place(a):.1f}" cy="{up.place(b):.1f}" r="2.6" fill="{color}"/>'
        for a, b, color in zip(x.tolist(), y.tolist(), colors, strict=True)
    ]
    for e in ellipses:
        width, height = (abs(axis.place(size) - axis.place(0.0)) for axis, size in ((across, e.width), (up, e.height)))
        parts.append(
            f'<ellipse class="c{e.color}" cx="{across.place(e.x):.1f}" cy="{up.place(e.y):.1f}" rx="{width:.1f}" '
            f'ry="{height:.1f}"/>'
        )
    return _svg(parts, f"{y_title} against {x_title} of {len(x):,} tiles", "points")


def _edges(low: float, high: float, mark: float, logarithmic: bool) -> Array:
    """Return the edges of about 40 bars, the first and last within the axis; one of them is the threshold."""
    if logarithmic:
        return np.asarray(np.exp(_edges(math.log(low), math.log(high), math.log(mark), False)), dtype=np.float64)
    step = (high - low) / _BINS
    before, after = math.floor((mark - low) / step + 1e-9), math.floor((high - mark) / step + 1e-9)
    return mark + step * np.arange(-before, after + 1, dtype=np.float64)


def _limits(values: Array, distributions: Sequence[tuple[float, float]]) -> tuple[float, float]:
    low = min([float(values.min()), *(center - size for center, size in distributions)])
    high = max([float(values.max()), *(center + size for center, size in distributions)])
    room = 0.05 * (high - low) or 1.0
    return low - room, high + room


def _plain(value: float) -> str:
    return f"{value:g}".replace("-", "−")


def _frame(
    across: _Axis, up: _Axis, x_title: str, y_title: str, x_form: Callable[[float], str], y_form: Callable[[float], str]
) -> list[str]:
    """Return the grid, the ticks and the titles."""
    floor, parts = _HEIGHT - _BOTTOM, []
    for value in up.ticks():
        y = up.place(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(y_form(value))}</text>')
    for value in across.ticks():
        text = (
            f'<text x="{across.place(value):.1f}" y="{floor + 15}" text-anchor="middle">{escape(x_form(value))}</text>'
        )
        parts.append(text)
    parts.append(f'<line class="axis-line" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{floor}" y2="{floor}"/>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(
        f'<text class="title" x="{middle:.0f}" y="{_HEIGHT - 5}" text-anchor="middle">{escape(x_title)}</text>'
    )
    height = (_TOP + floor) / 2
    parts.append(
        f'<text class="title" transform="translate(11 {height:.0f}) rotate(-90)" text-anchor="middle">{escape(y_title)}'
        "</text>"
    )
    return parts


def _svg(parts: Sequence[str], label: str, kind: str = "bars") -> Markup:
    # Every text above is escaped where it is put in.
    return Markup(  # noqa: S704
        f'<svg class="plot {kind}" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">'
        + "".join(parts)
        + "</svg>"
    )
