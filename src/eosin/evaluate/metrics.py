"""Classification metrics, each computed for many weightings of the same images at once.

A bootstrap resample, and a relabelling in a permutation test, are both nothing but weights on images. So a metric
here takes a block of weight vectors and gives one value per vector; the plain value is the one with all weights 1.
What the weights do is add up rows of a matrix that is nearly empty (the confusion matrix, the bins of confidence, the
places of a ranking), which is stored as such. Weights that are whole numbers are added without rounding.

Where the scores are shares of many classifiers' votes, accuracy, balanced accuracy and F1 are those of the confusion
matrix averaged over the classifiers: what one of them reaches on average, not what their majority does. (Exactly so for
the first two; F1 is no sum over images, and that of the averaged matrix is near the mean of their F1s.) AUROC ranks the
shares, as one classifier made of all would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = [
    "LOSSES",
    "METRICS",
    "MOVED",
    "Metric",
    "compute_all",
    "higher_is_better",
    "metric_value",
    "prepare",
    "ratio",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

CALIBRATION_BINS = 15
"""Equal-width bins of the highest probability, as Guo et al., ICML 2017."""

LOSSES = {"accuracy_lost": "accuracy", "balanced_accuracy_lost": "balanced_accuracy"}
"""What a change of the test images' pixels costs: the metric of the unchanged images minus that of the changed."""

MOVED = "embedding_moved"
"""Mean cosine distance of a test image's embedding to that of the unchanged image."""


@dataclass(frozen=True, eq=False)
class Scored:
    """Images with a known class and a score for each class.

    Attributes:
        truth: int64 [n], class indices.
        scores: float64 [n, C].
        predicted: int64 [n], the class of the highest score, the first one among equals.
        votes: Whether the scores are shares of many classifiers' hard decisions.
    """

    truth: Ints
    scores: Floats
    predicted: Ints
    votes: bool = False

    @property
    def classes(self) -> int:
        """Number of classes C."""
        return int(self.scores.shape[1])

    @property
    def said(self) -> Floats:
        """float64 [n, C]: 1 for the predicted class and 0 for the others; of votes, the share of each class."""
        return self.scores if self.votes else _one_hot(self.predicted, self.classes)

    @property
    def hits(self) -> Floats:
        """float64 [n]: 1 where the true class is said; of votes, its share."""
        return np.asarray(self.said[np.arange(len(self.truth)), self.truth])

    @cached_property
    def cells(self) -> csr_array:
        """[C * C, n]: how much an image adds to each (true class, said class) of the confusion matrix."""
        if not self.votes:
            return _sparse(np.ones(len(self.truth)), self.truth * self.classes + self.predicted, (self.classes**2,))
        image, said = np.nonzero(self.scores)
        cell = self.truth[image] * self.classes + said
        return _sparse(self.scores[image, said], cell, (self.classes**2, len(self.truth)), image)

    @cached_property
    def gaps(self) -> csr_array:
        """[bins, n]: hit or miss minus the highest probability, in the bin of that probability."""
        confidence = self.scores.max(axis=1)
        # Bins are open below and closed above, as in Guo et al.
        place = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)
        return _sparse((self.predicted == self.truth) - confidence, place, (CALIBRATION_BINS,))

    @cached_property
    def rankings(self) -> list[_Ranking]:
        """One class against the rest, for each class; of two classes, the second against the first."""
        # With two classes the two curves are mirror images; the first column would only add rounding ties.
        columns = [1] if self.classes == 2 else range(self.classes)
        return [_ranking(self.truth == column, self.scores[:, column]) for column in columns]


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: Its name in result records.
        reference: Its definition, with the rule for a class that no image (of a resample) has.
        compute: (images, weights float64 [R, n]) -> float64 [R], NaN where the metric is undefined.
        undefined: Why its value can be NaN.
        higher_is_better: Direction.
        of_confusion: The same from confusion matrices, float64 [R, C, C] (truth, said); None where they do not suffice.
        credit: What each image by itself adds to the value of all of them, float64 [n], where the value is the sum of
            that and nothing else; None where it is not.
    """

    name: str
    reference: str
    compute: Callable[[Scored, Floats], Floats]
    undefined: str = "there are no images"
    higher_is_better: bool = True
    of_confusion: Callable[[Floats], Floats] | None = None
    credit: Callable[[Scored], Floats] | None = None


def prepare(truth: npt.ArrayLike, probabilities: npt.ArrayLike, votes: bool = False) -> Scored:
    """Check the shapes of truth [n] and probabilities [n, C] and find the predicted classes.

    Args:
        truth: int [n], class indices.
        probabilities: float [n, C].
        votes: Whether these are shares of many classifiers' decisions: see `Scored.said`.

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
    return Scored(classes, scores, scores.argmax(axis=1), votes)


def _one_hot(classes: Ints, count: int) -> Floats:
    return (classes[:, None] == np.arange(count)).astype(np.float64)


def _sparse(values: Floats, rows: Ints, shape: tuple[int, ...], columns: Ints | None = None) -> csr_array:
    from scipy.sparse import csr_array

    columns = np.arange(len(values)) if columns is None else columns
    width = shape[1] if len(shape) > 1 else len(values)
    return csr_array((values, (rows, columns)), shape=(shape[0], width))


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Divide; NaN where the denominator is not positive."""
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)


def _mean_defined(values: Floats) -> Floats:
    """Mean over the last axis of the values that are not NaN; NaN where all are."""
    defined = ~np.isnan(values)
    return ratio(np.where(defined, values, 0.0).sum(axis=-1), defined.sum(axis=-1).astype(np.float64))


def _transposed(weights: Floats) -> Floats:
    """[n, R] with the resamples of an image side by side; free where the weights were made so."""
    return np.ascontiguousarray(np.asarray(weights, dtype=np.float64).T)


def confusion(images: Scored, weights: Floats) -> Floats:
    """Return weighted confusion matrices, float64 [R, C, C]: rows are true classes, columns what was said."""
    return _confusion(images, _transposed(weights))


def _confusion(images: Scored, transposed: Floats) -> Floats:
    cells = images.cells @ transposed
    return np.ascontiguousarray(cells.T).reshape(-1, images.classes, images.classes)


def _accuracy(matrix: Floats) -> Floats:
    return ratio(np.einsum("rcc->r", matrix), matrix.sum(axis=(1, 2)))


def _balanced_accuracy(matrix: Floats) -> Floats:
    return _mean_defined(ratio(_diagonal(matrix), matrix.sum(axis=2)))


def _accuracy_credit(images: Scored) -> Floats:
    return images.hits / len(images.truth)


def _balanced_accuracy_credit(images: Scored) -> Floats:
    members = np.bincount(images.truth, minlength=images.classes)
    return np.asarray(images.hits / members[images.truth] / np.count_nonzero(members))


def _macro_f1(matrix: Floats) -> Floats:
    return _mean_defined(ratio(2.0 * _diagonal(matrix), matrix.sum(axis=2) + matrix.sum(axis=1)))


def _diagonal(matrix: Floats) -> Floats:
    return np.ascontiguousarray(np.einsum("rcc->rc", matrix))


@dataclass(frozen=True, eq=False)
class _Ranking:
    """One class against the rest as sums of weights, at each level of the scores that a positive image has.

    Attributes:
        positive: [levels, n], 1 for the positive images of a level.
        below: [levels, n], what a negative image adds on the way up from the level before: its weight where it lies
            between the two; where it ties with a level, half of it there and half at the next.
        negative: float64 [n], 1 for the negative images.
    """

    positive: csr_array
    below: csr_array
    negative: Floats


def _ranking(positive: npt.NDArray[np.bool_], scores: Floats) -> _Ranking:
    images = len(scores)
    levels, level = np.unique(scores[positive], return_inverse=True)
    negatives = np.flatnonzero(~positive)
    above = np.searchsorted(levels, scores[negatives], side="left")
    after = np.searchsorted(levels, scores[negatives], side="right")
    # No level lies above the highest positive: what falls there is in no pair in order.
    rows = np.concatenate([above, after])
    columns, halves = np.concatenate([negatives, negatives]), np.full(2 * len(negatives), 0.5)
    counted = rows < len(levels)
    shape = (len(levels), images)
    return _Ranking(
        _sparse(np.ones(int(positive.sum())), level, shape, np.flatnonzero(positive)),
        _sparse(halves[counted], rows[counted], shape, columns[counted]),
        (~positive).astype(np.float64),
    )


def _auroc(images: Scored, weights: Floats) -> Floats:
    return _areas(images, _transposed(weights))


def _areas(images: Scored, transposed: Floats) -> Floats:
    return _mean_defined(np.stack([_one_vs_rest(ranking, transposed) for ranking in images.rankings], axis=-1))


def _one_vs_rest(ranking: _Ranking, transposed: Floats) -> Floats:
    """Weighted Mann-Whitney area: the share of (positive, negative) pairs in order, a tied pair counting half."""
    positive = ranking.positive @ transposed
    below = ranking.below @ transposed
    np.cumsum(below, axis=0, out=below)
    ordered = np.einsum("lr,lr->r", positive, below)
    return ratio(ordered, positive.sum(axis=0) * (ranking.negative @ transposed))


def _calibration_error(images: Scored, weights: Floats) -> Floats:
    return _gaps(images, _transposed(weights))


def _gaps(images: Scored, transposed: Floats) -> Floats:
    total = transposed.sum(axis=0)
    if images.votes:
        return np.full_like(total, np.nan)
    return ratio(np.abs(images.gaps @ transposed).sum(axis=0), total)


def _by_confusion(
    name: str,
    reference: str,
    compute: Callable[[Floats], Floats],
    credit: Callable[[Scored], Floats] | None = None,
) -> Metric:
    def of_images(images: Scored, weights: Floats) -> Floats:
        return compute(confusion(images, weights))

    return Metric(name, reference, of_images, of_confusion=compute, credit=credit)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        _by_confusion(
            "accuracy", "share of images whose highest probability is their class", _accuracy, _accuracy_credit
        ),
        _by_confusion(
            "balanced_accuracy",
            "mean recall over the classes present in the sample (Brodersen et al., ICPR 2010)",
            _balanced_accuracy,
            _balanced_accuracy_credit,
        ),
        _by_confusion("macro_f1", "mean F1 over the classes present in the sample or predicted in it", _macro_f1),
        Metric(
            "auroc",
            "area under the ROC curve (Hanley and McNeil, Radiology 1982): of the second class when there are two, else"
            " the mean of one class against the rest, over the classes with images on both sides; ties count half",
            _auroc,
            "the test split has images of one class only",
        ),
        Metric(
            "calibration_error",
            "expected calibration error (Guo et al., ICML 2017): the gap between accuracy and mean highest probability"
            f" in each of {CALIBRATION_BINS} equal-width bins of the highest probability, averaged by their images",
            _calibration_error,
            "votes of hard decisions claim no probability",
            higher_is_better=False,
        ),
    )
}


def higher_is_better(name: str) -> bool:
    """Tell the direction of a metric by its name in records, those of a change of the pixels included."""
    if name in METRICS:
        return METRICS[name].higher_is_better
    return name not in LOSSES and name != MOVED


def compute_all(images: Scored, weights: Floats, names: Iterable[str] = tuple(METRICS)) -> dict[str, Floats]:
    """Compute several metrics, sharing what they have in common.

    Args:
        images: n images.
        weights: float64 [R, n]; fastest where `weights.T` is contiguous.
        names: Names in `METRICS`.

    Returns:
        ``{name: float64 [R]}``, the values of each metric's `compute`.
    """
    transposed = _transposed(weights)
    matrix: Floats | None = None
    values: dict[str, Floats] = {}
    for name in names:
        metric = METRICS[name]
        if metric.of_confusion is not None:
            matrix = _confusion(images, transposed) if matrix is None else matrix
            values[name] = metric.of_confusion(matrix)
        else:
            values[name] = metric.compute(images, transposed.T)
    return values


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
