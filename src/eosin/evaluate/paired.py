"""Paired tests of two encoders on the same images, whose unit is the patient (or slide) wherever it is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from eosin.core.draws import stream_seed
from eosin.core.errors import EosinError
from eosin.evaluate.metrics import METRICS, Floats, Metric, Scored, prepare
from eosin.evaluate.statistics import BLOCK, Predicted, known_metric, percentile_interval, resampled_weights, spread

__all__ = ["Comparison", "holm", "paired_test", "sign_flips"]

_KEPT = 1 << 22
"""Values of flips that are kept for the next pair of encoders: 32 MiB."""


@dataclass(frozen=True)
class Comparison:
    """The first encoder against the second on the same images.

    Attributes:
        metric: Name of the metric compared.
        difference: First minus second, averaged over the seeds.
        low: Lower end of the 95 % percentile interval, None where it cannot be formed.
        high: Upper end.
        p: Two-sided p value of the paired sign-flip test.
        groups: Number of units resampled and flipped.
        seeds: Number of seeds pooled.
        exact: Whether all 2^groups flips were enumerated, rather than drawn.
    """

    metric: str
    difference: float
    low: float | None
    high: float | None
    p: float
    groups: int
    seeds: int
    exact: bool


@dataclass(frozen=True)
class _Pair:
    """Both encoders' predictions of one seed: rows [first; second] stacked, and each image's unit."""

    both: Scored
    first: Scored
    second: Scored
    unit: npt.NDArray[np.int64]


def paired_test(
    first: Sequence[Predicted],
    second: Sequence[Predicted],
    metric: str = "balanced_accuracy",
    *,
    seed: int = 0,
    resamples: int = 1000,
    permutations: int = 10_000,
) -> Comparison:
    """Compare two encoders on the same images, one pair of predictions per seed.

    The difference is metric(first) - metric(second), averaged over the seeds. Its interval draws groups; its p value
    exchanges the two encoders' predictions for whole groups, in all seeds at once (the paired randomization test:
    Fisher 1935; Noreen 1989, chapter 2), over all 2^groups exchanges when these are at most `permutations`, else over
    random ones, as (1 + extreme) / (1 + drawn). For AUROC the scores enter as ranks within each encoder, so that
    encoders of different calibration can be exchanged (Bandos, Rockette and Gur, Statistics in Medicine 2005).

    Args:
        first: Predictions of the first encoder, one entry per seed.
        second: Predictions of the second, in the same order of seeds.
        metric: A name in `METRICS`.
        seed: Of the resampling and of the exchanges.
        resamples: For the interval.
        permutations: For the p value.

    Raises:
        EosinError: If the two were not scored on the same images, or the metric is undefined there.
    """
    known = METRICS[known_metric(metric)]
    compute = known.compute
    pairs, groups = _pairs(first, second, ranks=metric == "auroc")
    ones = np.ones((1, groups))
    difference = float(_bootstrap_difference(pairs, compute, ones)[0])
    if np.isnan(difference):
        raise EosinError(f"{metric} is undefined: {METRICS[metric].undefined}; compare another metric")
    low: float | None = None
    high: float | None = None
    if groups > 1:
        rows = sum(len(pair.unit) for pair in pairs)
        blocks = resampled_weights(groups, seed, resamples, rows)
        low, high = percentile_interval(
            np.concatenate([_bootstrap_difference(pairs, compute, block) for block in blocks])
        )
    p, exact = _sign_flip(pairs, known, groups, difference, seed, permutations)
    return Comparison(metric, difference, low, high, p, groups, len(pairs), exact)


def _pairs(first: Sequence[Predicted], second: Sequence[Predicted], ranks: bool) -> tuple[list[_Pair], int]:
    if len(first) != len(second) or not first:
        raise EosinError(f"cannot compare {len(first)} seeds of one encoder with {len(second)} of the other")
    votes = {entry.votes for entry in (*first, *second)}
    if len(votes) > 1:
        raise EosinError("one side's probabilities are shares of votes and the other's are not; compare one protocol")
    aligned = [_aligned(a, b) for a, b in zip(first, second, strict=True)]
    unique, units = np.unique(np.concatenate([entry[3] for entry in aligned]), return_inverse=True)
    pairs, start = [], 0
    for truth, a, b, groups in aligned:
        unit = units[start : start + len(groups)].astype(np.int64)
        start += len(groups)
        one, two = prepare(truth, a, votes == {True}), prepare(truth, b, votes == {True})
        if ranks:
            one, two = _ranked(one), _ranked(two)
        both = Scored(
            np.concatenate([one.truth, two.truth]),
            np.concatenate([one.scores, two.scores]),
            np.concatenate([one.predicted, two.predicted]),
            one.votes,
        )
        pairs.append(_Pair(both, one, two, unit))
    return pairs, len(unique)


def _aligned(first: Predicted, second: Predicted) -> tuple[Any, Floats, Floats, npt.NDArray[np.str_]]:
    names, others = np.asarray(first.names).astype(str), np.asarray(second.names).astype(str)
    order, other_order = np.argsort(names, kind="stable"), np.argsort(others, kind="stable")
    truth = np.asarray(first.truth)[order]
    if not np.array_equal(names[order], others[other_order]):
        raise EosinError("the two encoders were not scored on the same images; evaluate both with the same split seed")
    if not np.array_equal(truth, np.asarray(second.truth)[other_order]):
        raise EosinError("the two encoders were scored with different labels; evaluate both on the same task")
    groups = names[order] if first.groups is None else np.asarray(first.groups).astype(str)[order]
    return truth, np.asarray(first.probabilities)[order], np.asarray(second.probabilities)[other_order], groups


def _ranked(images: Scored) -> Scored:
    from scipy.stats import rankdata

    return Scored(images.truth, rankdata(images.scores, axis=0), images.predicted, images.votes)


def _bootstrap_difference(pairs: list[_Pair], compute: Any, weights: Floats) -> Floats:
    """Difference for each row of group weights [R, groups], averaged over seeds; NaN if undefined in one of them."""
    differences = []
    for pair in pairs:
        mine = spread(weights, pair.unit)
        differences.append(compute(pair.first, mine) - compute(pair.second, mine))
    return np.asarray(np.mean(differences, axis=0))


def _exchanged_difference(pairs: list[_Pair], compute: Any, flips: Floats) -> Floats:
    """Difference after exchanging the encoders' predictions of the groups with flip 1: flips are 0/1 [R, groups]."""
    differences = []
    for pair in pairs:
        flip = spread(flips, pair.unit).T
        stay = 1.0 - flip
        one = compute(pair.both, np.concatenate([stay, flip]).T)
        differences.append(one - compute(pair.both, np.concatenate([flip, stay]).T))
    return np.asarray(np.mean(differences, axis=0))


def _sign_flip(
    pairs: list[_Pair], metric: Metric, groups: int, observed: float, seed: int, permutations: int
) -> tuple[float, bool]:
    exact = groups < 63 and 2**groups <= permutations
    total = 2**groups if exact else permutations
    if metric.credit is not None:
        # Where a metric is a sum over images, exchanging a group turns the sign of its part of the difference.
        parts = _group_differences(pairs, metric.credit, groups)
        rows = max(1, _KEPT // groups)
    else:
        rows = max(1, BLOCK // (2 * sum(len(pair.unit) for pair in pairs)))
    extreme = 0
    for flips in sign_flips(groups, total, exact, stream_seed(seed, "sign-flip"), rows):
        if metric.credit is not None:
            differences = parts.sum() - 2.0 * (flips @ parts)
        else:
            differences = _exchanged_difference(pairs, metric.compute, flips)
        # A tie with the observed difference counts as extreme whatever the order of its sum.
        extreme += int((np.abs(differences) >= abs(observed) - 1e-9).sum())
    return (extreme / total, True) if exact else ((1 + extreme) / (1 + total), False)


def _group_differences(pairs: list[_Pair], credit: Callable[[Scored], Floats], groups: int) -> Floats:
    """What each group adds to the difference, float64 [groups], averaged over the seeds."""
    each = [
        np.bincount(pair.unit, weights=credit(pair.first) - credit(pair.second), minlength=groups) for pair in pairs
    ]
    return np.asarray(np.mean(each, axis=0))


def sign_flips(groups: int, total: int, exact: bool, seed: int, rows: int) -> Iterator[Floats]:
    """Yield blocks of 0 and 1, float64 [r, groups]: all 2^groups, or `total` random ones."""
    if groups * total <= _KEPT:
        kept = _few_flips(groups, total, exact, seed)
        yield from (kept[start : start + rows] for start in range(0, total, rows))
        return
    generator = np.random.default_rng(seed)
    for start in range(0, total, rows):
        count = min(rows, total - start)
        yield _enumerated(groups, start, count) if exact else (generator.random((count, groups)) < 0.5).astype(float)


@lru_cache(maxsize=2)
def _few_flips(groups: int, total: int, exact: bool, seed: int) -> Floats:
    """The same flips serve every pair of encoders on a task."""
    if exact:
        return _enumerated(groups, 0, total)
    return (np.random.default_rng(seed).random((total, groups)) < 0.5).astype(float)


def _enumerated(groups: int, start: int, count: int) -> Floats:
    return ((np.arange(start, start + count)[:, None] >> np.arange(groups)) & 1).astype(np.float64)


def holm(p_values: npt.ArrayLike) -> Floats:
    """Adjust p values for the number of comparisons (Holm, Scandinavian Journal of Statistics 1979).

    Args:
        p_values: float [m], each in 0..1.

    Returns:
        float64 [m], adjusted values in the order given: reject those at or below the level.
    """
    values = np.asarray(p_values, dtype=np.float64)
    if values.ndim != 1 or np.isnan(values).any() or (len(values) and (values.min() < 0 or values.max() > 1)):
        raise ValueError("p values must be a list of numbers in 0..1")
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)) if len(values) else values
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted
