"""Logistic regression against scikit-learn and against its own optimality condition."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from eosin.core.errors import EosinError
from eosin.evaluate.logistic import Logistic, fit_path


def sample(seed: int, n: int, width: int, classes: int, skill: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    scales = 10.0 ** rng.uniform(-2, 2, width)
    features = (rng.normal(size=(n, width)) + skill * np.eye(width)[labels]) * scales + 5 * scales
    return features.astype(np.float32), labels


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("width", [8, 150])
def test_equals_scikit_learn_at_the_same_c(classes, width):
    features, labels = sample(0, 120, width, classes)
    strengths = [1e-3, 1e-1, 1.0]
    fits = fit_path(features[:80], labels[:80], features[80:], classes=classes, strengths=strengths, tolerance=1e-8)
    for fit in fits:
        # Tight and cold: neither the path of warm starts nor the rotation (width above n) may show.
        model = LogisticRegression(C=fit.strength, tol=1e-8, max_iter=5000)
        model = make_pipeline(StandardScaler(), model).fit(features[:80].astype(np.float64), labels[:80])
        expected = model.predict_proba(features[80:].astype(np.float64))
        np.testing.assert_allclose(fit.probabilities, expected, atol=2e-5)
        assert fit.converged


def test_satisfies_the_optimality_condition_of_the_stated_loss():
    # At the minimum of sum_i -log p_i[y_i] + |W|^2 / 2C, W = C sum_i (onehot(y_i) - p_i) z_i and the residuals sum to 0
    features, labels = sample(1, 90, 6, 3)
    strength = 0.05
    fit = fit_path(features, labels, features, classes=3, strengths=[strength], tolerance=1e-9)[0]
    z = features.astype(np.float64)
    z = (z - z.mean(axis=0)) / z.std(axis=0)
    residual = np.eye(3)[labels] - fit.probabilities
    np.testing.assert_allclose(residual.sum(axis=0), 0, atol=1e-5)
    logits = z @ (strength * residual.T @ z).T
    bias = np.log(fit.probabilities) - logits
    bias -= bias[:, :1]
    np.testing.assert_allclose(bias, np.broadcast_to(bias[0], bias.shape), atol=1e-4)


def test_c_is_the_best_on_validation():
    features, labels = sample(2, 240, 40, 3, skill=0.7)
    train, val, test = np.split(np.random.default_rng(0).permutation(240), [100, 180])
    strengths = (1e-4, 1e-2, 1e-1, 1e2)
    got = Logistic(strengths=strengths).run(features, labels, ["a", "b", "c"], train, val, test)
    table = []
    for strength in strengths:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, tol=1e-7, max_iter=5000))
        model.fit(features[train].astype(np.float64), labels[train])
        probabilities = model.predict_proba(features[val].astype(np.float64))
        accuracy = balanced_accuracy_score(labels[val], probabilities.argmax(axis=1))
        table.append((-accuracy, log_loss(labels[val], probabilities), strength))
    best = min(table)
    assert got.chosen["C"] == best[2]
    assert got.chosen["validation_balanced_accuracy"] == pytest.approx(-best[0])


def test_validation_images_are_not_fitted_on():
    features, labels = sample(3, 120, 10, 2)
    rows = np.random.default_rng(1).permutation(120)
    train, val, test = rows[:60], rows[60:90], rows[90:]
    protocol = Logistic(strengths=(0.1,))
    moved = labels.copy()
    moved[val] = 1 - moved[val]
    one = protocol.run(features, labels, ["a", "b"], train, val, test)
    two = protocol.run(features, moved, ["a", "b"], train, val, test)
    np.testing.assert_array_equal(one.probabilities, two.probabilities)


def test_a_search_cut_short_is_reported():
    features, labels = sample(4, 90, 20, 3)
    rows = np.arange(90)
    got = Logistic(strengths=(10.0,), iterations=2).run(
        features, labels, ["a", "b", "c"], rows[:50], rows[50:70], rows[70:]
    )
    assert got.chosen["converged"] is False
    assert got.chosen["at_edge_of_grid"] is True


def test_a_constant_feature_changes_nothing():
    features, labels = sample(5, 90, 6, 3)
    with_constant = np.concatenate([features, np.full((90, 2), 0.1, np.float32)], axis=1)
    # On the images to predict the feature may differ: there is no scale to judge it by.
    with_constant[60:, 6:] = 7.0
    one, two = (
        fit_path(values[:60], labels[:60], values[60:], classes=3, strengths=[1.0], tolerance=1e-8)[0]
        for values in (features, with_constant)
    )
    np.testing.assert_allclose(one.probabilities, two.probabilities, atol=1e-6)


def test_features_that_are_not_finite_are_refused():
    features, labels = sample(7, 30, 4, 2)
    for row in (0, 25):
        broken = features.copy()
        broken[row, 1] = np.nan
        with pytest.raises(EosinError, match="a feature is not finite"):
            fit_path(broken[:20], labels[:20], broken[20:], classes=2, strengths=[1.0])


def test_what_it_cannot_do_is_refused():
    features, labels = sample(6, 30, 4, 2)
    rows = np.arange(30)
    with pytest.raises(EosinError, match="no validation images"):
        Logistic().run(features, labels, ["a", "b"], rows[:20], rows[:0], rows[20:])
    with pytest.raises(EosinError, match="one class"):
        Logistic().run(features, labels, ["a", "b"], rows[:20:2], rows[20:25], rows[25:])
