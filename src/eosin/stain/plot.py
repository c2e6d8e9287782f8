"""The distribution of the stain, with the tiles it stands for and what is drawn from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from eosin.augment.spaces import CHANNELS, Space

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Cloud", "Density", "plot_distribution"]

Array = npt.NDArray[np.float64]
Density = Callable[[int, int, Array, Array], Array]
"""Maps two entries of the six (averages, then deviations) and a grid of their values to the joint density there."""

# Upper row: average against deviation of each channel; lower row: averages against each other.
_PANELS = ((0, 3), (1, 4), (2, 5), (0, 1), (0, 2), (1, 2))
_SHARES = (0.99, 0.9, 0.5)
_GRID = 160
_DPI = 100
_UNITS = {"lab": "0 to 255", "hsv": "0 to 255; hue 0 to 180", "hed": "optical density / ln 1,000,000"}


@dataclass(frozen=True, eq=False)
class Cloud:
    """Points of one kind.

    Attributes:
        name: As in the legend.
        values: float64 [n, 6].
    """

    name: str
    values: Array


def plot_distribution(
    title: str, space: Space, tiles: Cloud, others: Cloud, density: Density | None, width: int
) -> Image.Image:
    """Plot six panels: average against deviation of each channel, then the averages against each other.

    Args:
        title: The first line.
        space: Color space of all values.
        tiles: The source's tiles.
        others: What is drawn, or the views.
        density: Shaded where half, 90 % and 99 % of the distribution lie; None where there is none.
        width: Width in px.

    Returns:
        An RGB picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(width / _DPI, max(6.4, width / _DPI * 0.56)), dpi=_DPI, layout="constrained")
    figure.suptitle(f"{title} (units: {_UNITS[space]})", x=0.01, ha="left", fontsize=13)
    panels = figure.subplots(2, 3).ravel()
    names = [f"{channel} {kind}" for kind in ("average", "standard deviation") for channel in CHANNELS[space]]
    for axes, (across, up) in zip(panels, _PANELS, strict=True):
        _panel(axes, across, up, tiles, others, density)
        axes.set_xlabel(names[across])
        axes.set_ylabel(names[up])
    handles, labels = panels[0].get_legend_handles_labels()
    if density is not None:
        from matplotlib.patches import Patch

        handles += [Patch(color=color) for color in _shades()]
        labels += [f"{100 * share:g} % of what is drawn from" for share in _SHARES]
    figure.legend(handles, labels, loc="outside lower left", ncols=len(labels), frameon=False, markerscale=2)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _panel(axes: Any, across: int, up: int, tiles: Cloud, others: Cloud, density: Density | None) -> None:
    limits = [_limits(np.concatenate([tiles.values[:, entry], others.values[:, entry]])) for entry in (across, up)]
    if density is not None:
        x, y = np.meshgrid(*(np.linspace(*limit, _GRID) for limit in limits))
        heights = density(across, up, x, y)
        levels = _levels(heights)
        if len(set(levels)) == len(levels):
            axes.contourf(x, y, heights, levels=[*levels, np.inf], colors=_shades(), zorder=1)
    for cloud, color, mark in ((tiles, "#1f4e79", "o"), (others, "#d9541e", "x")):
        axes.scatter(
            cloud.values[:, across],
            cloud.values[:, up],
            s=12,
            linewidths=0.0 if mark == "o" else 0.8,
            color=color,
            marker=mark,
            alpha=0.65,
            label=cloud.name,
            zorder=2,
        )
    axes.set_xlim(*limits[0])
    axes.set_ylim(*limits[1])
    axes.spines[["top", "right"]].set_visible(False)


def _limits(values: Array) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    room = 0.06 * (high - low) or max(1e-3, 0.06 * abs(high))
    return low - room, high + room


def _levels(heights: Array) -> list[float]:
    """Return the heights above which 99 %, 90 % and half of the mass on the grid lie, ascending."""
    ordered = np.sort(heights.ravel())[::-1]
    mass = np.cumsum(ordered)
    return [float(ordered[min(np.searchsorted(mass, share * mass[-1]), len(ordered) - 1)]) for share in _SHARES]


def _shades() -> list[str]:
    return ["#efe3f3", "#d6b8e0", "#b583c6"]
