"""Multinomial logistic regression on standardized features, its strength chosen on the validation images.

It minimizes sum_i -log softmax(W z_i + b)[y_i] + |W|^2 / (2 C) over the training images (`softmax_regression`), z being
the features with the training images' mean taken off and divided by their standard deviation; with two classes one
vector w and the sigmoid stand for W, as in scikit-learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from eosin.core.errors import EosinError
from eosin.evaluate.metrics import metric_value
from eosin.evaluate.protocol import PROTOCOLS, FeatureProtocol, Prediction, Rows
from eosin.evaluate.softmax_regression import SoftmaxRegression

__all__ = ["Logistic", "fit_path"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Fit:
    """Logistic regression at one C: its probabilities for the rows asked for, and how the search ended."""

    strength: float
    probabilities: Floats
    iterations: int
    converged: bool


_SMALL = 4_000_000
"""Values in a feature matrix below which its products run in one thread."""


def fit_path(
    features: npt.NDArray[np.float32],
    labels: Rows,
    rows: npt.NDArray[np.float32],
    *,
    classes: int,
    strengths: Sequence[float],
    iterations: int = 100,
    tolerance: float = 1e-6,
) -> list[Fit]:
    """Fit the regression at several C, each from the solution before it, and predict.

    Args:
        features: float32 [n, D], training images.
        labels: int64 [n], class indices, of at least two classes.
        rows: float32 [m, D], images to predict.
        classes: Number of classes C; one that has no training image gets probability 0.
        strengths: Values of C (the inverse of the penalty), ascending.
        iterations: Most Newton steps at one C.
        tolerance: Largest component of the gradient of the mean loss at which the search ends.

    Returns:
        One `Fit` per strength.

    Raises:
        EosinError: If a feature is not finite.
    """
    from threadpoolctl import threadpool_limits

    if not (np.isfinite(features).all() and np.isfinite(rows).all()):
        raise EosinError("logistic: a feature is not finite; embed the images again")
    train, predicted = _reduced(*_standardized(features, rows))
    present, places = np.unique(labels, return_inverse=True)
    # W of two classes is w / 2 and -w / 2, whose squares add up to half of |w|².
    share = 1.0 if len(present) > 2 else 2.0
    fits = []
    # Thousands of small products: waking a second BLAS thread for each costs ten times what it saves.
    with threadpool_limits(1 if train.size < _SMALL else None, user_api="blas"):
        regression = SoftmaxRegression(train, places)
        weights = regression.begin()
        for strength in strengths:
            penalty = share / (float(strength) * len(train))
            minimum = regression.fit(penalty, weights, steps=iterations, tolerance=tolerance)
            weights = minimum.weights
            probabilities = np.zeros((len(rows), classes))
            probabilities[:, present] = regression.predict(weights, predicted)
            fits.append(Fit(float(strength), probabilities, minimum.steps, minimum.converged))
    return fits


def _standardized(features: npt.NDArray[np.float32], rows: npt.NDArray[np.float32]) -> tuple[Floats, Floats]:
    train, others = features.astype(np.float64), rows.astype(np.float64)
    mean, spread = train.mean(axis=0), train.std(axis=0)
    # A constant feature says nothing about the training images; rounding must not blow it up on the others.
    spread[spread <= 1e-7 * np.maximum(np.abs(mean), np.finfo(np.float32).tiny)] = np.inf
    return (train - mean) / spread, (others - mean) / spread


def _reduced(train: Floats, others: Floats) -> tuple[Floats, Floats]:
    """Rotate to the span of the training images where that is smaller: the penalized solution lies in it."""
    if train.shape[1] <= train.shape[0]:
        return train, others
    basis, _ = np.linalg.qr(train.T)
    return train @ basis, others @ basis


@dataclass(frozen=True)
class Logistic(FeatureProtocol):
    """Logistic regression fitted on the training images only.

    C is the one with the highest balanced accuracy on the validation images; among equals the lower validation
    log-loss, then the smaller C. There is no second fit on training and validation images together, so that all
    protocols, and every share of the labels, see the same labelled images.

    Attributes:
        strengths: Values of C tried.
        iterations: Most Newton steps at one C.
    """

    name: ClassVar[str] = "logistic"
    version: ClassVar[int] = 2
    reference: ClassVar[str] = "a grid of C as in DINOv2 (Oquab et al., TMLR 2024), on standardized features"
    changes: ClassVar[dict[int, str]] = {
        1: "first version",
        2: "Newton steps in place of L-BFGS, which at C from 10 to 1,000 often ended at its 1,000 iterations",
    }

    strengths: tuple[float, ...] = tuple(float(value) for value in np.logspace(-6, 5, 23))
    iterations: int = 100

    def __post_init__(self) -> None:
        if not self.strengths or not all(1e-12 <= strength <= 1e12 for strength in self.strengths):
            raise ValueError(f"strengths={list(self.strengths)} must be from 1e-12 to 1e12")
        if self.iterations < 1:
            raise ValueError(f"iterations={self.iterations} must be at least 1")

    def run(
        self,
        features: npt.NDArray[np.float32],
        labels: Rows,
        classes: Sequence[str],
        train: Rows,
        val: Rows,
        test: Rows,
        groups: npt.NDArray[Any] | None = None,
        seed: int = 0,
    ) -> Prediction:
        """See `Protocol.run`.

        Raises:
            EosinError: If there are no validation images, or training images of one class only.
        """
        if not len(val):
            raise EosinError("logistic: no validation images to choose the regularization on; give a val split")
        if len(np.unique(labels[train])) < 2:
            raise EosinError("logistic: the training images are of one class only; give images of a second class")
        fits = fit_path(
            features[train],
            labels[train],
            features[np.concatenate([val, test])],
            classes=len(classes),
            strengths=sorted(self.strengths),
            iterations=self.iterations,
        )
        scores = [_validation_score(fit.probabilities[: len(val)], labels[val]) for fit in fits]
        best = min(range(len(fits)), key=lambda index: (-scores[index][0], scores[index][1], index))
        fit = fits[best]
        chosen = {
            "C": fit.strength,
            "by": "validation balanced accuracy",
            "validation_balanced_accuracy": scores[best][0],
            "iterations": fit.iterations,
            "converged": fit.converged,
            "at_edge_of_grid": best in (0, len(fits) - 1),
        }
        return Prediction(fit.probabilities[len(val) :], chosen)


def _validation_score(probabilities: Floats, truth: Rows) -> tuple[float, float]:
    accuracy = metric_value("balanced_accuracy", truth, probabilities)
    picked = probabilities[np.arange(len(truth)), truth]
    loss = float(-np.log(np.maximum(picked, 1e-300)).mean())
    return (0.0 if accuracy is None else accuracy), round(loss, 9)


PROTOCOLS.register("logistic")(Logistic())
