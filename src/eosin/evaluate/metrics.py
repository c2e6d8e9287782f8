"""Classification metrics, each computed for many weightings of the same images at once.

A bootstrap resample, and a relabelling in a permutation test, are both nothing but weights on images. So a metric
here takes a block of weight vectors and gives one value per vector; the plain value is the one with all weights 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["METRICS", "Metric", "metric_value", "prepare", "ratio"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Scored:
    """Images with a known class and a score for each class.

    Attributes:
        truth: int64 [n], class indices.
        scores: float64 [n, C].
        predicted: int64 [n], the class of the highest score, the first one among equals.
    """

    truth: Ints
    scores: Floats
    predicted: Ints

    @property
    def classes(self) -> int:
        """Number of classes C."""
        return int(self.scores.shape[1])


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: Its name in result records.
        reference: Its definition, with the rule for a class that no image (of a resample) has.
        compute: (images, weights float64 [R, n]) -> float64 [R], NaN where the metric is undefined.
        higher_is_better: Direction.
    """

    name: str
    reference: str
    compute: Callable[[Scored, Floats], Floats]
    higher_is_better: bool = True


def prepare(truth: npt.ArrayLike, probabilities: npt.ArrayLike) -> Scored:
    """Check the shapes of truth [n] and probabilities [n, C] and find the predicted classes.

    Raises:
        ValueError: If shapes disagree, a class index is out of range or a score is not finite.
    """
    classes = np.asarray(truth, dtype=np.int64)
    scores = np.asarray(probabilities, dtype=np.float64)
    if classes.ndim != 1 or scores.ndim != 2 or len(classes) != len(scores) or not len(classes):
        raise ValueError(f"truth {classes.shape} and probabilities {scores.shape} are not [n] and [n, C] with n > 0")
    if classes.min() < 0 or classes.max() >= scores.shape[1]:
        raise ValueError(f"truth holds a class outside 0..{scores.shape[1] - 1}")
    if not np.isfinite(scores).all():
        raise ValueError("probabilities hold values that are not finite")
    return Scored(classes, scores, scores.argmax(axis=1))


def _one_hot(classes: Ints, count: int) -> Floats:
    return (classes[:, None] == np.arange(count)).astype(np.float64)


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Divide; NaN where the denominator is not positive."""
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)


def _mean_defined(values: Floats) -> Floats:
    """Mean over the last axis of the values that are not NaN; NaN where all are."""
    defined = ~np.isnan(values)
    return ratio(np.where(defined, values, 0.0).sum(axis=-1), defined.sum(axis=-1).astype(np.float64))


def _accuracy(images: Scored, weights: Floats) -> Floats:
    return ratio(weights @ (images.predicted == images.truth).astype(np.float64), weights.sum(axis=1))


def _balanced_accuracy(images: Scored, weights: Floats) -> Floats:
    truth = _one_hot(images.truth, images.classes)
    hits = truth * (images.predicted == images.truth)[:, None]
    return _mean_defined(ratio(weights @ hits, weights @ truth))


def _macro_f1(images: Scored, weights: Floats) -> Floats:
    truth = _one_hot(images.truth, images.classes)
    predicted = _one_hot(images.predicted, images.classes)
    return _mean_defined(ratio(2.0 * (weights @ (truth * predicted)), weights @ truth + weights @ predicted))


def _auroc(images: Scored, weights: Floats) -> Floats:
    # With two classes the two one-vs-rest curves are mirror images; the first column would only add rounding ties.
    columns = [1] if images.classes == 2 else range(images.classes)
    areas = [_one_vs_rest(images.truth == column, images.scores[:, column], weights) for column in columns]
    return _mean_defined(np.stack(areas, axis=-1))


def _one_vs_rest(positive: npt.NDArray[np.bool_], scores: Floats, weights: Floats) -> Floats:
    """Weighted Mann-Whitney area: the share of (positive, negative) pairs in order, a tied pair counting half."""
    order = np.argsort(scores, kind="stable")
    is_positive = positive[order]
    ranked = scores[order][is_positive]
    negatives = scores[order][~is_positive]
    below = np.searchsorted(negatives, ranked, side="left")
    through = np.searchsorted(negatives, ranked, side="right")
    negative_weights = weights[:, order[~is_positive]]
    cumulative = np.zeros((len(weights), len(negatives) + 1))
    np.cumsum(negative_weights, axis=1, out=cumulative[:, 1:])
    positive_weights = weights[:, order[is_positive]]
    ordered = np.einsum("rp,rp->r", positive_weights, cumulative[:, below] + cumulative[:, through]) / 2.0
    return ratio(ordered, positive_weights.sum(axis=1) * cumulative[:, -1])


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "share of images whose highest probability is their class", _accuracy),
        Metric(
            "balanced_accuracy",
            "mean recall over the classes present in the sample (Brodersen et al., ICPR 2010)",
            _balanced_accuracy,
        ),
        Metric("macro_f1", "mean F1 over the classes present in the sample or predicted in it", _macro_f1),
        Metric(
            "auroc",
            "area under the ROC curve (Hanley and McNeil, Radiology 1982): of the second class when there are two, else"
            " the mean of one class against the rest, over the classes with images on both sides; ties count half",
            _auroc,
        ),
    )
}


def metric_value(name: str, truth: npt.ArrayLike, probabilities: npt.ArrayLike) -> float | None:
    """Compute one metric.

    Args:
        name: A name in `METRICS`.
        truth: int [n], class indices.
        probabilities: float [n, C].

    Returns:
        The value, or None where it is undefined (AUROC of a sample with one class).
    """
    images = prepare(truth, probabilities)
    value = float(METRICS[name].compute(images, np.ones((1, len(images.truth))))[0])
    return None if np.isnan(value) else value
