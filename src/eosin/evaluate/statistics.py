"""Intervals and paired tests whose unit is the patient (or slide) wherever it is known.

Tiles of one patient resemble each other, so resampling tiles would give intervals that are too narrow; whole groups
are drawn instead (the cluster bootstrap: Field and Welsh, JRSS B 2007).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from eosin.core.draws import stream_seed
from eosin.core.errors import EosinError, nearest
from eosin.evaluate.metrics import METRICS, Floats, Scored, metric_value, prepare

__all__ = [
    "METRICS",
    "Comparison",
    "Interval",
    "Predicted",
    "bootstrap_interval",
    "bootstrap_statistic",
    "holm",
    "metric_value",
    "paired_test",
]

# Weights of a block of resamples: 4 M values, 32 MiB, so that memory does not grow with the number of resamples.
_BLOCK = 1 << 22

Interval = dict[str, float | str | None]


@dataclass(frozen=True)
class Predicted:
    """What one encoder said, with one seed, about the images of a test split.

    Attributes:
        names: str [n], the images.
        truth: int [n], class indices.
        probabilities: float [n, C].
        groups: [n], the patient or slide of each image; None when unknown: each image stands for itself.
    """

    names: npt.ArrayLike
    truth: npt.ArrayLike
    probabilities: npt.ArrayLike
    groups: npt.ArrayLike | None = None


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


def bootstrap_interval(
    truth: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    groups: npt.ArrayLike | None = None,
    seed: int = 0,
    resamples: int = 1000,
    metrics: Sequence[str] | None = None,
) -> dict[str, Interval]:
    """Compute metrics with 95 % percentile bootstrap intervals (Efron and Tibshirani, 1993, chapter 13).

    Groups are drawn with replacement, as many as there are, each bringing all of its images. A resample in which a
    metric is undefined (AUROC without a second class) is left out of that metric's interval; a class that a resample
    lacks is left out of that resample's mean over classes.

    Args:
        truth: int [n], class indices.
        probabilities: float [n, C].
        groups: [n], patient or slide of each image; None to draw images.
        seed: Of the resampling.
        resamples: Number of resamples.
        metrics: Names from `METRICS`; all by default.

    Returns:
        ``{metric: {"value", "low", "high"}}``, with "reason" beside a value or an interval that is None.
    """
    images = prepare(truth, probabilities)
    names = list(METRICS) if metrics is None else [_known_metric(name) for name in metrics]
    unit, count = _units(groups, len(images.truth))
    draws: dict[str, list[Floats]] = {name: [] for name in names}
    if count > 1:
        for weights in _resampled_weights(count, seed, resamples, len(unit)):
            spread = weights[:, unit]
            for name in names:
                draws[name].append(METRICS[name].compute(images, spread))
    ones = np.ones((1, len(images.truth)))
    undefined = "the test split has images of one class only"
    return {name: _interval(METRICS[name].compute(images, ones), draws[name], undefined) for name in names}


def bootstrap_statistic(
    parts: Sequence[tuple[npt.ArrayLike, Callable[[Floats], Floats]]],
    seed: int = 0,
    resamples: int = 1000,
    undefined: str = "it cannot be computed",
) -> Interval:
    """Compute any statistic of weighted images, averaged over parts, with an interval like `bootstrap_interval`'s.

    A part is a set of images, such as the test images of one seed; a group met in several parts is drawn once for all.

    Args:
        parts: Of each, the unit of its images, [n] (patient, slide, or a name where each image stands for itself), and
            the statistic: weights of the images, float64 [R, n], to values [R], NaN where undefined.
        seed: Of the resampling.
        resamples: Number of resamples.
        undefined: Reason to give where the value itself is NaN.
    """
    labels = [np.asarray(units).astype(str) for units, _ in parts]
    unique, joined = np.unique(np.concatenate(labels), return_inverse=True)
    rows = np.split(joined.astype(np.int64), np.cumsum([len(part) for part in labels])[:-1])

    def average(weights: Floats) -> Floats:
        values = [compute(weights[:, unit]) for (_, compute), unit in zip(parts, rows, strict=True)]
        return np.asarray(np.mean(values, axis=0))

    draws: list[Floats] = []
    if len(unique) > 1:
        draws = [average(weights) for weights in _resampled_weights(len(unique), seed, resamples, len(joined))]
    return _interval(average(np.ones((1, len(unique)))), draws, undefined)


def _interval(values: Floats, draws: list[Floats], undefined: str) -> Interval:
    value = float(values[0])
    if np.isnan(value):
        reason = f"undefined: {undefined}"
        return {"value": None, "low": None, "high": None, "reason": reason}
    low, high = _percentiles(np.concatenate(draws) if draws else np.empty(0))
    if low is None:
        reason = "no interval: the test split holds a single group" if not draws else "no interval: undefined"
        return {"value": value, "low": None, "high": None, "reason": reason}
    return {"value": value, "low": low, "high": high}


def _percentiles(values: Floats) -> tuple[float | None, float | None]:
    defined = values[~np.isnan(values)]
    if not len(defined):
        return None, None
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)


def _units(groups: npt.ArrayLike | None, images: int) -> tuple[npt.NDArray[np.int64], int]:
    """Number the groups: int64 [n] and their count."""
    if groups is None:
        return np.arange(images), images
    values = np.asarray(groups).astype(str)
    if len(values) != images:
        raise ValueError(f"{len(values)} groups for {images} images")
    unique, unit = np.unique(values, return_inverse=True)
    return unit.astype(np.int64), len(unique)


def _resampled_weights(groups: int, seed: int, resamples: int, images: int) -> Iterator[Floats]:
    """Yield blocks [r, groups] of how often each group was drawn; the block size does not change the draws."""
    generator = np.random.default_rng(stream_seed(seed, "bootstrap"))
    block = max(1, _BLOCK // max(groups, images))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = generator.integers(0, groups, size=(rows, groups))
        drawn += np.arange(rows)[:, None] * groups
        yield np.bincount(drawn.ravel(), minlength=rows * groups).reshape(rows, groups).astype(np.float64)


def _known_metric(name: str) -> str:
    if name not in METRICS:
        raise EosinError(f"unknown metric '{name}'; {nearest(name, METRICS)}")
    return name


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
    compute = METRICS[_known_metric(metric)].compute
    pairs, groups = _pairs(first, second, ranks=metric == "auroc")
    ones = np.ones((1, groups))
    difference = float(_bootstrap_difference(pairs, compute, ones)[0])
    if np.isnan(difference):
        raise EosinError(f"{metric} is undefined on these images: they are of one class; compare another metric")
    low: float | None = None
    high: float | None = None
    if groups > 1:
        rows = sum(len(pair.unit) for pair in pairs)
        blocks = _resampled_weights(groups, seed, resamples, rows)
        low, high = _percentiles(np.concatenate([_bootstrap_difference(pairs, compute, block) for block in blocks]))
    p, exact = _sign_flip(pairs, compute, groups, difference, seed, permutations)
    return Comparison(metric, difference, low, high, p, groups, len(pairs), exact)


def _pairs(first: Sequence[Predicted], second: Sequence[Predicted], ranks: bool) -> tuple[list[_Pair], int]:
    if len(first) != len(second) or not first:
        raise EosinError(f"cannot compare {len(first)} seeds of one encoder with {len(second)} of the other")
    aligned = [_aligned(a, b) for a, b in zip(first, second, strict=True)]
    unique, units = np.unique(np.concatenate([entry[3] for entry in aligned]), return_inverse=True)
    pairs, start = [], 0
    for truth, a, b, groups in aligned:
        unit = units[start : start + len(groups)].astype(np.int64)
        start += len(groups)
        one, two = prepare(truth, a), prepare(truth, b)
        if ranks:
            one, two = _ranked(one), _ranked(two)
        both = Scored(
            np.concatenate([one.truth, two.truth]),
            np.concatenate([one.scores, two.scores]),
            np.concatenate([one.predicted, two.predicted]),
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

    return Scored(images.truth, rankdata(images.scores, axis=0), images.predicted)


def _bootstrap_difference(pairs: list[_Pair], compute: Any, weights: Floats) -> Floats:
    """Difference for each row of group weights [R, groups], averaged over seeds; NaN if undefined in one of them."""
    differences = []
    for pair in pairs:
        spread = weights[:, pair.unit]
        differences.append(compute(pair.first, spread) - compute(pair.second, spread))
    return np.asarray(np.mean(differences, axis=0))


def _exchanged_difference(pairs: list[_Pair], compute: Any, flips: Floats) -> Floats:
    """Difference after exchanging the encoders' predictions of the groups with flip 1: flips are 0/1 [R, groups]."""
    differences = []
    for pair in pairs:
        flip = flips[:, pair.unit]
        stay = 1.0 - flip
        one = compute(pair.both, np.concatenate([stay, flip], axis=1))
        differences.append(one - compute(pair.both, np.concatenate([flip, stay], axis=1)))
    return np.asarray(np.mean(differences, axis=0))


def _sign_flip(
    pairs: list[_Pair], compute: Any, groups: int, observed: float, seed: int, permutations: int
) -> tuple[float, bool]:
    exact = groups < 63 and 2**groups <= permutations
    total = 2**groups if exact else permutations
    generator = np.random.default_rng(stream_seed(seed, "sign-flip"))
    block = max(1, _BLOCK // (2 * sum(len(pair.unit) for pair in pairs)))
    extreme = 0
    for start in range(0, total, block):
        rows = min(block, total - start)
        if exact:
            numbers = np.arange(start, start + rows)[:, None]
            flips = ((numbers >> np.arange(groups)) & 1).astype(np.float64)
        else:
            flips = (generator.random((rows, groups)) < 0.5).astype(np.float64)
        # A tie with the observed difference counts as extreme whatever the order of its sum.
        extreme += int((np.abs(_exchanged_difference(pairs, compute, flips)) >= abs(observed) - 1e-9).sum())
    return (extreme / total, True) if exact else ((1 + extreme) / (1 + total), False)


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
