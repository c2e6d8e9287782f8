"""The stain of the sample: its distribution, how much of it lies between slides, and how far it is from what ships."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from eosin.augment.spaces import from_space
from eosin.augment.stain_statistics import load_statistics, shipped_statistics
from eosin.describe.columns import Coded, Columns
from eosin.describe.measure import Measured

__all__ = ["Comparison", "Group", "Stain", "describe_stain", "rgb_of"]

Array = npt.NDArray[np.float64]

# OpenCV's L runs to 255, that of CIE to 100; with it distances are those of CIE 1976.
_TO_CIE = np.array([100 / 255, 1.0, 1.0])
_DEVIATIONS = 2.0


@dataclass(frozen=True, eq=False)
class Group:
    """The stain of one slide, patient or label.

    Attributes:
        name: Its name.
        tiles: Stained tiles of the sample that it has.
        mean: float64 [3], mean of their LAB averages.
        away: CIE 1976 color difference of that from the median of all groups.
    """

    name: str
    tiles: int
    mean: Array
    away: float


@dataclass(frozen=True, eq=False)
class Comparison:
    """The sample beside a distribution that comes with eosin.

    Attributes:
        name: Of the file.
        away: float64 [3], mean LAB average of the sample less the distribution's, in its standard deviations.
        inside: Share of the tiles whose three averages all lie within 2 of its standard deviations.
    """

    name: str
    away: Array
    inside: float


@dataclass(frozen=True, eq=False)
class Stain:
    """The stain of the tiles that are not blank, over tissue alone, in LAB as OpenCV scales it to 8 bits.

    Attributes:
        values: float64 [n, 6], averages and standard deviations of L, A, B of each tile.
        mean: float64 [6], over tiles.
        std: float64 [6], over tiles; NaN of a single one.
        origin: What the groups are: "slide", "patient", "label", or "" where none is known.
        groups: In order of their distance, the farthest first.
        between: float64 [3], standard deviation of the averages between groups; None where it cannot be told.
        within: float64 [3], the same within a group.
        compared: With the shipped distributions of LAB.
    """

    values: Array
    mean: Array
    std: Array
    origin: str
    groups: tuple[Group, ...]
    between: Array | None
    within: Array | None
    compared: tuple[Comparison, ...]

    def __len__(self) -> int:
        return len(self.values)


def describe_stain(measured: Measured, stained: npt.NDArray[np.bool_], columns: Columns) -> Stain | None:
    """Summarize the stain of some tiles.

    Args:
        measured: n tiles.
        stained: bool [n], which are not blank.
        columns: Of the source.

    Returns:
        None where every tile is blank.
    """
    if not stained.any():
        return None
    values, whole = measured.column("stain")[stained], measured.column("whole")[stained]
    origin, column = _origin(columns)
    codes = np.full(len(values), -1) if column is None else column.codes[measured.rows[stained]]
    between, within = _components(values[codes >= 0, :3], codes[codes >= 0])
    return Stain(
        values=values,
        mean=values.mean(axis=0),
        std=values.std(axis=0, ddof=1) if len(values) > 1 else np.full(6, np.nan),
        origin=origin,
        groups=() if column is None else _groups(values[:, :3], codes, column),
        between=between,
        within=within,
        compared=_compared(values, whole),
    )


def _origin(columns: Columns) -> tuple[str, Coded | None]:
    for name in ("slide", "patient", "label"):
        column: Coded | None = getattr(columns, name)
        if column is not None:
            return name, column
    return "", None


def _groups(averages: Array, codes: npt.NDArray[np.int64], column: Coded) -> tuple[Group, ...]:
    known = codes >= 0
    here, which, counts = np.unique(codes[known], return_inverse=True, return_counts=True)
    if not len(here):
        return ()
    sums = np.stack([np.bincount(which.ravel(), averages[known, channel]) for channel in range(3)], axis=1)
    means = sums / counts[:, None]
    away = np.linalg.norm((means - np.median(means, axis=0)) * _TO_CIE, axis=1)
    return tuple(
        Group(column.names[here[place]], int(counts[place]), means[place], float(away[place]))
        for place in np.argsort(-away, kind="stable").tolist()
    )


def _components(averages: Array, codes: npt.NDArray[np.int64]) -> tuple[Array | None, Array | None]:
    """Split the variance of the averages by one-way analysis of variance with random groups of unequal size.

    Within: the pooled mean square. Between: (mean square between - within) / n0 with n0 = (n - sum of squared sizes /
    n) / (groups - 1), 0 where that is negative (Searle, Casella and McCulloch, Variance Components, 3.6).
    """
    _, which, sizes = np.unique(codes, return_inverse=True, return_counts=True)
    total, groups = len(codes), len(sizes)
    if groups < 2 or total == groups:
        return None, None
    which = which.ravel()
    means = np.stack([np.bincount(which, averages[:, channel]) for channel in range(3)], axis=1) / sizes[:, None]
    inner = np.square(averages - means[which]).sum(axis=0) / (total - groups)
    outer = (sizes[:, None] * np.square(means - averages.mean(axis=0))).sum(axis=0) / (groups - 1)
    usual = (total - np.square(sizes).sum() / total) / (groups - 1)
    return np.sqrt(np.maximum(outer - inner, 0) / usual), np.sqrt(inner)


def _compared(values: Array, whole: Array) -> tuple[Comparison, ...]:
    """Compare with each shipped distribution of LAB as that was measured: over tissue alone, or over all pixels."""
    found = []
    for name in shipped_statistics():
        statistics = load_statistics(name)
        if statistics.space != "lab":
            continue
        averages = (values if statistics.tissue_only else whole)[:, :3]
        mean, std = (np.asarray(numbers[:3]) for numbers in (statistics.independent.mean, statistics.independent.std))
        scores = (averages - mean) / np.maximum(std, 1e-9)
        inside = float((np.abs(scores) <= _DEVIATIONS).all(axis=1).mean())
        found.append(Comparison(name, scores.mean(axis=0), inside))
    return tuple(found)


def rgb_of(averages: Array) -> list[str]:
    """Return the color of LAB averages, float64 [n, 3], as a page writes it: "#rrggbb"."""
    colors = from_space(torch.from_numpy(np.asarray(averages, dtype=np.float32)).view(-1, 3, 1, 1), "lab")
    levels = colors.view(-1, 3).mul(255).round().to(torch.uint8).tolist()
    return [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in levels]
