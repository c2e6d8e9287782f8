"""A paired test of metrics that are means over images, such as panoptic quality: the twin of `paired_test`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eosin.core.draws import stream_seed
from eosin.core.errors import EosinError
from eosin.evaluate.metrics import ratio
from eosin.evaluate.paired import Comparison, sign_flips
from eosin.evaluate.statistics import percentile_interval, resampled_weights

__all__ = ["PerImage", "paired_means_test"]

Floats = npt.NDArray[np.float64]

_ROWS = 1 << 18
"""Values of flips that are looked at together."""


@dataclass(frozen=True)
class PerImage:
    """What one encoder reached, with one seed, on each image of a test split.

    Attributes:
        names: str [n], the images.
        values: float [n], NaN where there is nothing to measure: the mean leaves such images out.
        groups: [n], the patient or slide of each image; the names where none is known.
    """

    names: npt.ArrayLike
    values: npt.ArrayLike
    groups: npt.ArrayLike


@dataclass(frozen=True)
class _Sums:
    """Sums and numbers of defined values of each group, float64 [G]: of the first encoder and of the second."""

    first: Floats
    first_count: Floats
    second: Floats
    second_count: Floats


def paired_means_test(
    first: Sequence[PerImage],
    second: Sequence[PerImage],
    metric: str,
    *,
    seed: int = 0,
    resamples: int = 1000,
    permutations: int = 10_000,
) -> Comparison:
    """Compare two encoders by the means of their images' values, one pair of measurements per seed.

    The difference is the mean of the first minus that of the second, averaged over the seeds. Its interval draws
    groups. Its p value exchanges the two encoders' values of whole groups, in all seeds at once; where all values are
    defined this turns the signs of the groups' differences (Fisher 1935). All 2^groups exchanges are made when these
    are at most `permutations`, else random ones, with p = (1 + extreme) / (1 + drawn).

    Args:
        first: Of the first encoder, one entry per seed.
        second: Of the second, in the same order of seeds.
        metric: Name of what was measured.
        seed: Of the resampling and of the exchanges.
        resamples: For the interval.
        permutations: For the p value.

    Raises:
        EosinError: If the two were not measured on the same images, or there is no defined value.
    """
    sums, groups, images = _sums(first, second)
    difference = float(_resampled(sums, np.ones((1, groups)))[0])
    if np.isnan(difference):
        raise EosinError(f"{metric} is undefined: no test image has a value; compare another metric")
    low: float | None = None
    high: float | None = None
    if groups > 1:
        blocks = resampled_weights(groups, seed, resamples, images)
        low, high = percentile_interval(np.concatenate([_resampled(sums, block) for block in blocks]))
    exact = groups < 63 and 2**groups <= permutations
    total = 2**groups if exact else permutations
    extreme = 0
    rows = max(1, _ROWS // groups)
    for flips in sign_flips(groups, total, exact, stream_seed(seed, "sign-flip"), rows):
        # A tie with the observed difference counts as extreme whatever the order of its sum, and so does an exchange
        # that leaves one side without a value.
        away = np.abs(_exchanged(sums, flips))
        extreme += int((~(away < abs(difference) - 1e-9)).sum())
    p = extreme / total if exact else (1 + extreme) / (1 + total)
    return Comparison(metric, difference, low, high, p, groups, len(first), exact)


def _sums(first: Sequence[PerImage], second: Sequence[PerImage]) -> tuple[list[_Sums], int, int]:
    """Sum values by group, seed by seed; return also the number of groups and of images of all seeds."""
    if len(first) != len(second) or not first:
        raise EosinError(f"cannot compare {len(first)} seeds of one encoder with {len(second)} of the other")
    aligned = [_aligned(a, b) for a, b in zip(first, second, strict=True)]
    unique, units = np.unique(np.concatenate([groups for _, _, groups in aligned]), return_inverse=True)
    parts = np.split(units.astype(np.int64), np.cumsum([len(groups) for _, _, groups in aligned])[:-1])

    def summed(unit: npt.NDArray[np.int64], values: Floats) -> tuple[Floats, Floats]:
        known = ~np.isnan(values)
        totals = np.bincount(unit, weights=np.where(known, values, 0.0), minlength=len(unique))
        return totals.astype(np.float64), np.bincount(unit[known], minlength=len(unique)).astype(np.float64)

    sums = [_Sums(*summed(unit, a), *summed(unit, b)) for unit, (a, b, _) in zip(parts, aligned, strict=True)]
    return sums, len(unique), len(units)


def _aligned(first: PerImage, second: PerImage) -> tuple[Floats, Floats, npt.NDArray[np.str_]]:
    names, others = np.asarray(first.names).astype(str), np.asarray(second.names).astype(str)
    order, other_order = np.argsort(names, kind="stable"), np.argsort(others, kind="stable")
    if not np.array_equal(names[order], others[other_order]):
        raise EosinError("the two encoders were not scored on the same images; score both on the same task")
    values = (np.asarray(side.values, dtype=np.float64) for side in (first, second))
    one, two = next(values)[order], next(values)[other_order]
    return one, two, np.asarray(first.groups).astype(str)[order]


def _resampled(sums: Sequence[_Sums], weights: Floats) -> Floats:
    """Difference for each row of group weights [R, G], averaged over seeds; NaN where a mean is of nothing."""
    return np.asarray(
        np.mean(
            [
                ratio(weights @ s.first, weights @ s.first_count) - ratio(weights @ s.second, weights @ s.second_count)
                for s in sums
            ],
            axis=0,
        )
    )


def _exchanged(sums: Sequence[_Sums], flips: Floats) -> Floats:
    """Difference after exchanging the values of the groups with flip 1: flips are 0/1 [R, G]."""
    stay = 1.0 - flips
    differences = []
    for s in sums:
        one = ratio(stay @ s.first + flips @ s.second, stay @ s.first_count + flips @ s.second_count)
        two = ratio(flips @ s.first + stay @ s.second, flips @ s.first_count + stay @ s.second_count)
        differences.append(one - two)
    return np.asarray(np.mean(differences, axis=0))
