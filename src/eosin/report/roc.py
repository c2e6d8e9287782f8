"""ROC curves from per-image predictions, thinned without changing the area under them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Roc", "area", "average", "one_vs_rest", "roc_of", "thin"]

Curve = npt.NDArray[np.float64]
"""float64 [m, 2]: false-positive and true-positive rate, both rising from (0, 0) to (1, 1)."""


@dataclass(frozen=True)
class Roc:
    """The curves of an encoder on a task under a protocol, averaged over its seeds.

    Attributes:
        classes: Classes that have a curve: those with images of theirs and of others. Of two classes the second only,
            because the curve of the first is its mirror image.
        curves: One against the rest, one curve a class.
        macro: Mean of `curves`; the area under it is the AUROC of our records where every seed tests every class.
        seeds: Number of seeds averaged.
    """

    classes: list[str]
    curves: list[Curve]
    macro: Curve
    seeds: int


def one_vs_rest(positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.float64]) -> Curve | None:
    """Compute the curve of one class; equal scores make one sloping step, so that a tied pair counts half.

    Args:
        positive: bool [n], whether each image is of the class.
        scores: float64 [n].

    Returns:
        The curve's corners; None unless there are images of the class and others.
    """
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if not positives or not negatives:
        return None
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)
    hits = np.cumsum(positive[order])[last]
    alarms = np.flatnonzero(last) + 1 - hits
    points = np.concatenate([[[0, 0]], np.stack([alarms, hits], axis=1)]).astype(np.int64)
    # Whole counts, so that points on a straight line are found exactly; the area stays as it is without them.
    steps = np.diff(points, axis=0)
    turns = steps[:-1, 0] * steps[1:, 1] != steps[1:, 0] * steps[:-1, 1]
    return points[np.concatenate([[True], turns, [True]])] / np.array([negatives, positives], dtype=np.float64)


def area(curve: Curve) -> float:
    """Return the area under a curve, by trapezoids."""
    return float(np.sum(np.diff(curve[:, 0]) * (curve[1:, 1] + curve[:-1, 1])) / 2)


def average(curves: Sequence[Curve]) -> Curve:
    """Average curves vertically: the mean true-positive rate at each false-positive rate.

    The area under the mean is the mean of the areas (Fawcett, Pattern Recognition Letters 2006, section 9.1).

    Args:
        curves: At least one.
    """
    if len(curves) == 1:
        return curves[0]
    at = np.unique(np.concatenate([curve[:, 0] for curve in curves]))
    lower, upper = np.zeros(len(at)), np.zeros(len(at))
    for curve in curves:
        low, high = _sides(curve, at)
        lower += low / len(curves)
        upper += high / len(curves)
    points = np.stack([np.repeat(at, 2), np.stack([lower, upper], axis=1).ravel()], axis=1)
    steps = np.diff(points, axis=0)
    moved = np.concatenate([[True], (np.abs(steps) > 1e-15).any(axis=1)])
    return np.asarray(points[moved])


def _sides(curve: Curve, at: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return a curve's height just before and just after each place; they differ where it rises straight up."""
    places, first = np.unique(curve[:, 0], return_index=True)
    final = np.append(first[1:], len(curve)) - 1
    before, after = curve[first, 1], curve[final, 1]
    right = np.minimum(np.searchsorted(places, at, side="left"), len(places) - 1)
    hit = places[right] == at
    left = np.maximum(right - 1, 0)
    width = np.where(right > left, places[right] - places[left], 1.0)
    between = after[left] + (before[right] - after[left]) * (at - places[left]) / width
    return np.where(hit, before[right], between), np.where(hit, after[right], between)


def thin(curve: Curve, points: int) -> Curve:
    """Reduce a curve to about so many points with the same area under it.

    Corners are kept at equal distances along the curve; between two of them one point takes the place of all others,
    on the diagonal of the rectangle that they span, where it leaves the area unchanged. So the curve still rises.

    Args:
        curve: Of any number of points.
        points: At most so many, if at least 5.
    """
    if len(curve) <= max(points, 5):
        return curve
    length = curve.sum(axis=1)
    wanted = np.linspace(0.0, length[-1], (max(points, 5) + 1) // 2)
    kept = np.unique(np.clip(np.searchsorted(length, wanted), 0, len(curve) - 1))
    kept[0], kept[-1] = 0, len(curve) - 1
    covered = np.concatenate([[0.0], np.cumsum(np.diff(curve[:, 0]) * (curve[1:, 1] + curve[:-1, 1]) / 2)])
    start, stop = curve[kept[:-1]], curve[kept[1:]]
    width, height = (stop - start).T
    chord = width * (start[:, 1] + stop[:, 1]) / 2
    excess = covered[kept[1:]] - covered[kept[:-1]] - chord
    half = width * height / 2
    share = np.clip(np.divide(excess, half, out=np.zeros_like(excess), where=half > 0), -1.0, 1.0)
    middle = (start + stop) / 2 + share[:, None] * np.stack([-width, height], axis=1) / 2
    thinned = np.empty((2 * len(kept) - 1, 2))
    thinned[0::2], thinned[1::2] = curve[kept], middle
    return thinned


def roc_of(
    classes: Sequence[str], seeds: Sequence[tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]], points: int
) -> Roc | None:
    """Compute the curves of a cell.

    Args:
        classes: C names.
        seeds: Truth int64 [n] and probabilities float64 [n, C] of each seed.
        points: A curve is thinned to about so many.

    Returns:
        None where no class has a curve.
    """
    shown, curves = [], []
    for number, name in enumerate(classes):
        if len(classes) == 2 and number == 0:
            continue
        of_seeds = [one_vs_rest(truth == number, scores[:, number]) for truth, scores in seeds]
        defined = [thin(curve, points) for curve in of_seeds if curve is not None]
        if defined:
            shown.append(name)
            curves.append(thin(average(defined), points))
    if not curves:
        return None
    return Roc(shown, curves, thin(average(curves), points), len(seeds))
