"""How well nuclei are found and typed: F_d and F_c (Graham et al., Medical Image Analysis 2019, section 4.2).

Nuclei of the truth and of the prediction are paired by their centers, so that the outline does not matter; pairs more
than 12 px apart (3 µm at 0.25 µm/px) do not count. Over all images together,

    F_d = 2 TP / (2 TP + FP + FN)

with TP pairs, FP predicted and FN true nuclei in none. For a type c, over pairs in which either side is c,

    F_c = 2 (TP_c + TN_c) / (2 (TP_c + TN_c) + 2 FP_c + 2 FN_c + FP_d + FN_d),

where TP_c has c on both sides, FP_c only in the prediction, FN_c only in the truth, and FP_d and FN_d are the unpaired
nuclei of type c. TN_c, pairs in which neither side is c, is 0 by that selection, as it is in the authors' code.

The authors pair all nuclei so that the sum of distances is least and then drop pairs that are too far apart: a nucleus
that nobody is near to can pull a near pair asunder. `pairing="official"` does so, and takes the square of the number
of nuclei in memory; `"within"` counts every distance above the radius as the radius, so that pairs that do not count
pull at nothing and each cluster of near nuclei is paired by itself: a whole slide is no larger than its clusters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from eosin.core.errors import EosinError
from eosin.nuclei.labels import Labels

__all__ = ["RADIUS", "Detection", "Pairing", "TypeCounts", "centers", "detect", "f_d", "f_type", "pair_centers"]

RADIUS = 12.0
"""Largest distance of a pair, in pixels at 0.25 µm/px."""

_MOST = 1e8
"""Distances between all of one and all of the other that are paired at once: 0.8 GB, minutes."""

_EDGES = 2e7
"""Near pairs that are held at once: 0.5 GB."""

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Pairing = Literal["official", "within"]


@dataclass(frozen=True)
class TypeCounts:
    """Of one type in one image, or summed over images.

    Attributes:
        tp: Pairs with the type on both sides.
        fp: Pairs with the type in the prediction alone.
        fn: Pairs with it in the truth alone.
        fp_d: Predicted nuclei of the type that are in no pair.
        fn_d: True ones.
    """

    tp: int
    fp: int
    fn: int
    fp_d: int
    fn_d: int


@dataclass(frozen=True)
class Detection:
    """Pairs of one image.

    Attributes:
        pairs: Number of pairs.
        fp: Predicted nuclei in none.
        fn: True nuclei in none.
        same: Pairs of the same type; None without types.
        types: Counts of each type asked for; empty without types.
    """

    pairs: int
    fp: int
    fn: int
    same: int | None
    types: tuple[TypeCounts, ...]


def centers(labels: Labels) -> Floats:
    """Measure centers of mass: float64 [n, 2], (x, y) in pixels, in the order of the ids; pixel (0, 0) lies at (0, 0).

    Args:
        labels: Integer [H, W], no id below 0.
    """
    from eosin.nuclei.labels import relabel

    instances = relabel(labels)
    pixels = np.flatnonzero(instances)
    owner = instances.ravel()[pixels]
    areas = np.bincount(owner)[1:]
    rows, columns = np.divmod(pixels, labels.shape[1])
    sums = [np.bincount(owner, weights=places)[1:] for places in (columns, rows)]
    return np.stack(sums, axis=1) / areas[:, None]


def pair_centers(
    truth: Floats, predicted: Floats, radius: float = RADIUS, pairing: Pairing = "official"
) -> tuple[Ints, Ints]:
    """Pair two sets of points, each point once (Hungarian method).

    Args:
        truth: [T, 2].
        predicted: [P, 2].
        radius: Largest distance of a pair.
        pairing: See the module.

    Returns:
        Places in `truth` and in `predicted`, int64 [K] each, K at most min(T, P).

    Raises:
        EosinError: If the radius is no distance, or the nuclei are too many for the official pairing.
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    if not radius > 0:
        raise EosinError(f"radius {radius}: centers are paired up to a distance above 0 px")
    truth, predicted = (np.asarray(points, dtype=np.float64).reshape(-1, 2) for points in (truth, predicted))
    if pairing == "within":
        return _pair_clusters(truth, predicted, radius)
    if len(truth) * len(predicted) > _MOST:
        raise EosinError(
            f"{len(truth):,} true and {len(predicted):,} predicted nuclei in one image are too many to pair all with "
            "all; use --pairing within"
        )
    distance = cdist(truth, predicted)
    first, second = linear_sum_assignment(distance)
    near = distance[first, second] <= radius
    return first[near].astype(np.int64), second[near].astype(np.int64)


def _pair_clusters(truth: Floats, predicted: Floats, radius: float) -> tuple[Ints, Ints]:
    """Pair within each set of points that are near to one another, over any number of steps."""
    from scipy.optimize import linear_sum_assignment
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import KDTree
    from scipy.spatial.distance import cdist

    trees = KDTree(truth), KDTree(predicted)
    edges = int(trees[0].count_neighbors(trees[1], radius))
    if edges > _EDGES:
        raise EosinError(f"{edges:,} pairs of nuclei are at most {radius:g} px apart, too many; use a smaller --radius")
    near = trees[0].sparse_distance_matrix(trees[1], radius, output_type="ndarray")
    count = len(truth) + len(predicted)
    graph = coo_array((np.ones(len(near)), (near["i"], near["j"] + len(truth))), shape=(count, count))
    cluster = connected_components(graph, directed=False)[1][near["i"]]
    order = np.argsort(cluster, kind="stable")
    pairs: list[tuple[Ints, Ints]] = [(np.empty(0, np.int64), np.empty(0, np.int64))]
    for together in np.split(near[order], np.flatnonzero(np.diff(cluster[order])) + 1):
        rows, columns = np.unique(together["i"]), np.unique(together["j"])
        if len(together) > 1:
            if len(rows) * len(columns) > _MOST:
                raise EosinError(
                    f"{len(rows):,} true and {len(columns):,} predicted nuclei hang together by steps of {radius:g} "
                    "px; use a smaller --radius"
                )
            distance = cdist(truth[rows], predicted[columns])
            first, second = linear_sum_assignment(np.minimum(distance, radius))
            kept = distance[first, second] <= radius
            rows, columns = rows[first[kept]], columns[second[kept]]
        pairs.append((rows, columns))
    found, said = (np.concatenate(side).astype(np.int64) for side in zip(*pairs, strict=True))
    sequence = np.argsort(found)
    return found[sequence], said[sequence]


def detect(
    truth: Floats,
    predicted: Floats,
    truth_types: Ints | None = None,
    predicted_types: Ints | None = None,
    types: Sequence[int] = (),
    *,
    radius: float = RADIUS,
    pairing: Pairing = "official",
) -> Detection:
    """Pair the nuclei of one image and count.

    Args:
        truth: [T, 2], centers.
        predicted: [P, 2].
        truth_types: int [T].
        predicted_types: int [P].
        types: Which types to count.
        radius: Largest distance of a pair.
        pairing: See the module.

    Raises:
        EosinError: If there are not as many types as nuclei.
    """
    first, second = pair_centers(truth, predicted, radius, pairing)
    fp, fn = len(predicted) - len(first), len(truth) - len(first)
    if truth_types is None or predicted_types is None:
        return Detection(len(first), fp, fn, None, ())
    true, said = np.asarray(truth_types), np.asarray(predicted_types)
    if len(true) != len(truth) or len(said) != len(predicted):
        raise EosinError(
            f"{len(true)} and {len(said)} types for {len(truth)} true and {len(predicted)} predicted nuclei; "
            "give each nucleus one type"
        )
    lone_true, lone_said = np.delete(true, first), np.delete(said, second)
    a, b = true[first], said[second]
    counts = tuple(
        TypeCounts(
            int(((a == kind) & (b == kind)).sum()),
            int(((a != kind) & (b == kind)).sum()),
            int(((a == kind) & (b != kind)).sum()),
            int((lone_said == kind).sum()),
            int((lone_true == kind).sum()),
        )
        for kind in types
    )
    return Detection(len(first), fp, fn, int((a == b).sum()), counts)


def f_d(pairs: float, fp: float, fn: float) -> float:
    """Compute F_d of counts summed over images; NaN without any nucleus."""
    nuclei = 2 * pairs + fp + fn
    return 2 * pairs / nuclei if nuclei else math.nan


def f_type(counts: TypeCounts) -> float:
    """Compute F_c of counts summed over images; NaN where no nucleus is or is called of the type."""
    whole = 2 * counts.tp + 2 * counts.fp + 2 * counts.fn + counts.fp_d + counts.fn_d
    return 2 * counts.tp / whole if whole else math.nan
