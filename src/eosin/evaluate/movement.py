"""How far embeddings move when the images change and what they show does not.

With u the features scaled to length 1, the cosine distance of two images is ½|u - v|² = 1 - cos(u, v). A distance
means little by itself: a network whose embeddings all point the same way moves nothing far. So it is divided by the
mean distance between different images, and each changed image is looked up among all unchanged ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eosin.evaluate.metrics import Floats, ratio
from eosin.evaluate.statistics import Interval, bootstrap_statistic

__all__ = ["Movement", "cosine_distances", "measure_movement"]

# Distances of a block of images to all others: 4 M values, 32 MiB.
_BLOCK = 1 << 22

# Mean distance below which embeddings are alike up to the rounding of float32 features.
_ALIKE = 1e-12

# Two images are equally near when their distances differ by less than this share of the mean distance.
_TIE = 1e-6


@dataclass(frozen=True, eq=False)
class Movement:
    """Distances of n images to their changed selves.

    Attributes:
        distance: float64 [n], cosine distance of each image to itself changed, in 0..2.
        recognized: float64 [n], 1 where the nearest unchanged image of a changed one is itself, 1/k where k are equally
            near and it is one of them, else 0.
        metrics: ``{name: {"value", "low", "high"}}`` of "distance" (mean), "between" (mean cosine distance of different
            unchanged images), "movement" (distance / between) and "recognized" (mean).
    """

    distance: Floats
    recognized: Floats
    metrics: dict[str, Interval]


def cosine_distances(before: npt.NDArray[np.float32], after: npt.NDArray[np.float32]) -> Floats:
    """Compute the cosine distance of each image to itself changed: float32 [n, D] twice to float64 [n], in 0..2."""
    if before.shape != after.shape or before.ndim != 2:
        raise ValueError(f"features {before.shape} and {after.shape} are not of the same images")
    return np.asarray(0.5 * np.square(_unit_length(before) - _unit_length(after)).sum(axis=1))


def measure_movement(
    before: npt.NDArray[np.float32],
    after: npt.NDArray[np.float32],
    groups: npt.ArrayLike | None = None,
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> Movement:
    """Compare features of images with those of the same images changed.

    The intervals draw groups with replacement. A resample's mean over pairs leaves out the pairs of an image with its
    own copies. A feature vector of length 0 is at distance ½ from all that have a length.

    Args:
        before: float32 [n, D].
        after: float32 [n, D], row by row the same images.
        groups: [n], patient or slide of each image; None to draw images.
        seed: Of the resampling.
        resamples: For the intervals.
    """
    if before.shape != after.shape or before.ndim != 2:
        raise ValueError(f"features {before.shape} and {after.shape} are not of the same images")
    # Taking the mean off changes no difference, and keeps the digits of embeddings that are nearly alike.
    unit, changed = _unit_length(before), _unit_length(after)
    center = unit.mean(axis=0)
    unit, changed = unit - center, changed - center
    distance = 0.5 * np.square(unit - changed).sum(axis=1)
    squares = np.square(unit).sum(axis=1)
    count = len(unit)
    units = np.arange(count) if groups is None else groups

    def between(weights: Floats) -> Floats:
        total = weights.sum(axis=1)
        pairs = total * (weights @ squares) - np.square(weights @ unit).sum(axis=1)
        mean = ratio(pairs, total**2 - np.square(weights).sum(axis=1))
        return np.where(mean > _ALIKE, mean, np.nan)

    spread = float(between(np.ones((1, count)))[0])
    recognized = _recognized(unit, changed, 0.0 if np.isnan(spread) else spread)

    def mean_of(values: Floats) -> Interval:
        return interval(lambda weights: ratio(weights @ values, weights.sum(axis=1)))

    def interval(compute: Callable[[Floats], Floats]) -> Interval:
        reason = "the embeddings of all images are alike" if count > 1 else "there is a single image"
        return bootstrap_statistic([(units, compute)], seed, resamples, reason)

    metrics = {
        "distance": mean_of(distance),
        "between": interval(between),
        "movement": interval(lambda weights: ratio(weights @ distance, weights.sum(axis=1) * between(weights))),
        "recognized": mean_of(recognized),
    }
    return Movement(distance, recognized, metrics)


def _unit_length(features: npt.NDArray[np.float32]) -> Floats:
    values = features.astype(np.float64)
    # Dividing by the largest magnitude first keeps the squares of very large or small features in range.
    peak = np.abs(values).max(axis=1, keepdims=True)
    values = values / np.where(peak > 0, peak, 1.0)
    length = np.sqrt(np.square(values).sum(axis=1, keepdims=True))
    return np.asarray(values / np.where(length > 0, length, 1.0))


def _recognized(unit: Floats, changed: Floats, spread: float) -> Floats:
    squares = np.square(unit).sum(axis=1)
    tie = max(_TIE * spread, _ALIKE)
    shares = np.zeros(len(unit))
    step = max(1, _BLOCK // len(unit))
    for start in range(0, len(unit), step):
        part = changed[start : start + step]
        # Without the changed image's own square, which is the same for all it is compared with.
        distances = 0.5 * squares - part @ unit.T
        near = distances <= distances.min(axis=1, keepdims=True) + tie
        itself = near[np.arange(len(part)), start + np.arange(len(part))]
        shares[start : start + step] = itself / near.sum(axis=1)
    return shares
