"""Multinomial logistic regression by a truncated Newton method, in the principal axes of the features.

It minimizes the mean of -log softmax(W z_i + b)[y_i] over the images i plus |W|² p / 2; b is not penalized. Each step
solves the Newton equation by conjugate gradients as far as is worth it (Dembo and Steihaug, Mathematical Programming
1983) and halves itself until the loss falls enough (Armijo). In the principal axes X'X / n is diagonal, and so is the
preconditioner q X'X / n + p, with q the mean of p_ik (1 - p_ik) at the step's beginning.

Conjugate gradients run in float32, as they find a direction only; loss, gradient and where it ends are float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eosin.evaluate.protocol import Rows

__all__ = ["Minimum", "SoftmaxRegression"]

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]

_PRODUCTS = 2000
"""Most Hessian products a step. Nearly separable images at a weak penalty need hundreds."""

_HALVINGS = 30
"""Halvings of a step after which the search ends where it is."""

_TINY = 1e-14
"""Keeps the preconditioner finite where every image's class is sure."""


@dataclass(frozen=True)
class Minimum:
    """Where a search has ended.

    Attributes:
        weights: float64 [D + 1, C], in the principal axes; the last row is b.
        steps: Newton steps taken.
        converged: Whether the gradient's largest component has come down to the tolerance.
    """

    weights: Floats
    steps: int
    converged: bool


class SoftmaxRegression:
    """The regression of given images, to be fitted at several penalties.

    Args:
        features: float64 [n, D].
        labels: int64 [n], 0..C-1, each of them present; at least two.
    """

    def __init__(self, features: Floats, labels: Rows) -> None:
        variances, self._axes = np.linalg.eigh(features.T @ features / len(features))
        self._design = self._with_ones(features @ self._axes)
        self._single = self._design.astype(np.float32)
        self._scales = np.append(np.maximum(variances, 0.0), 1.0)[:, None]
        self._labels = labels
        self._target = np.eye(int(labels.max()) + 1)[labels]

    def _with_ones(self, values: Floats) -> Floats:
        return np.concatenate([values, np.ones((len(values), 1))], axis=1)

    def begin(self) -> Floats:
        """Return weights of zeros."""
        return np.zeros((self._design.shape[1], self._target.shape[1]))

    def fit(self, penalty: float, begin: Floats, *, steps: int, tolerance: float) -> Minimum:
        """Search for the minimum.

        Args:
            penalty: p, above 0.
            begin: Weights to begin from.
            steps: Newton steps at most.
            tolerance: Largest component of the gradient at which the search ends.
        """
        penalties = np.full((len(begin), 1), penalty)
        penalties[-1] = 0.0
        weights = begin
        probabilities, loss = self._evaluate(weights, penalties)
        for step in range(steps + 1):
            gradient = self._design.T @ (probabilities - self._target) / len(self._labels) + penalties * weights
            steepest = float(np.abs(gradient).max())
            if steepest <= tolerance or step == steps:
                break
            direction = self._direction(gradient, probabilities, penalties, min(0.1, steepest**0.5))
            slope = float((gradient * direction).sum())
            for halving in range(_HALVINGS):
                length = 0.5**halving
                moved = weights + length * direction
                there, reached = self._evaluate(moved, penalties)
                # Near the end differences of the loss are rounding: as much as that is forgiven.
                if reached <= loss + 1e-4 * length * slope + 1e-13 * abs(loss):
                    break
            else:
                # Rounding has eaten the direction.
                break
            weights, probabilities, loss = moved, there, reached
        return Minimum(weights, step, steepest <= tolerance)

    def predict(self, weights: Floats, rows: Floats) -> Floats:
        """Return the probabilities of images.

        Args:
            weights: float64 [D + 1, C], of `fit`.
            rows: float64 [m, D], as the features.

        Returns:
            float64 [m, C].
        """
        return _softmax(self._with_ones(rows @ self._axes) @ weights)[0]

    def _evaluate(self, weights: Floats, penalties: Floats) -> tuple[Floats, float]:
        logits = self._design @ weights
        probabilities, normalizers = _softmax(logits)
        picked = logits[np.arange(len(logits)), self._labels]
        return probabilities, float((normalizers - picked).mean() + 0.5 * (penalties * weights**2).sum())

    def _direction(self, gradient: Floats, probabilities: Floats, penalties: Floats, accuracy: float) -> Floats:
        """Solve the Newton equation by conjugate gradients, to a share of the gradient's own length."""
        count = np.float32(len(self._labels))
        shares, ridge = probabilities.astype(np.float32), penalties.astype(np.float32)
        sureness = (probabilities * (1.0 - probabilities)).mean()
        inverse = (1.0 / (sureness * self._scales + penalties + _TINY)).astype(np.float32)

        def bend(values: Singles) -> Singles:
            logits = self._single @ values
            weighted = shares * logits
            weighted -= shares * weighted.sum(axis=1, keepdims=True)
            return self._single.T @ weighted / count + ridge * values

        residual = -gradient.astype(np.float32)
        ahead = inverse * residual
        solution, along, length = np.zeros_like(residual), ahead.copy(), float((residual * ahead).sum())
        enough = accuracy**2 * length
        for product in range(_PRODUCTS):
            bent = bend(along)
            curvature = float((along * bent).sum())
            if not curvature > 0.0:
                if product == 0:
                    solution = ahead
                break
            factor = np.float32(length / curvature)
            solution += factor * along
            residual -= factor * bent
            ahead = inverse * residual
            before, length = length, float((residual * ahead).sum())
            if length <= enough:
                break
            along = ahead + np.float32(length / before) * along
        return solution.astype(np.float64)


def _softmax(logits: Floats) -> tuple[Floats, Floats]:
    """Return probabilities [n, C] and the logarithms of their normalizers [n]."""
    largest = logits.max(axis=1, keepdims=True)
    raised = np.exp(logits - largest)
    sums = raised.sum(axis=1, keepdims=True)
    return raised / sums, (np.log(sums) + largest)[:, 0]
