"""The Newton method, against the gradient by autograd and against scikit-learn's own Newton method."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from eosin.evaluate.softmax_regression import SoftmaxRegression


def gradient(features, labels, weights, penalty):
    """Of the stated loss, at weights in the features' own axes."""
    w = torch.tensor(weights, requires_grad=True)
    logits = torch.tensor(features) @ w[:-1] + w[-1]
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(labels)) + 0.5 * penalty * w[:-1].square().sum()
    (found,) = torch.autograd.grad(loss, w)
    return found.numpy()


def in_own_axes(regression, weights):
    return np.concatenate([regression._axes @ weights[:-1], weights[-1:]])


@given(
    seed=st.integers(0, 10_000),
    n=st.integers(4, 60),
    width=st.integers(1, 20),
    classes=st.integers(2, 5),
    exponent=st.floats(-7, 4),
    spread=st.floats(0, 3),
)
def test_it_ends_where_the_gradient_is_nothing(seed, n, width, classes, exponent, spread):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, max(0, n - classes))])
    features = rng.normal(size=(len(labels), width)) * 10.0 ** rng.uniform(-spread, 0, width)
    regression = SoftmaxRegression(features, labels)
    penalty = 10.0**exponent
    found = regression.fit(penalty, regression.begin(), steps=200, tolerance=1e-7)
    assert found.converged
    weights = in_own_axes(regression, found.weights)
    # A rotation: components may be larger in the features' own axes, their length is the same.
    assert np.linalg.norm(gradient(features, labels, weights, penalty)) <= 1e-7 * (found.weights.size**0.5 + 1)
    probabilities = regression.predict(found.weights, features)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)


@pytest.mark.parametrize("penalty", [1e-7, 1e-3, 10.0])
def test_equals_another_newton_method(penalty):
    """On features as a network's: 60 of 80 directions hardly vary, and the classes can be told apart."""
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 4
    features = rng.normal(size=(200, 80)) * np.where(np.arange(80) < 20, 1.0, 0.01) + np.eye(80)[labels]
    regression = SoftmaxRegression(features, labels)
    found = regression.fit(penalty, regression.begin(), steps=100, tolerance=1e-9)
    peer = LogisticRegression(solver="newton-cholesky", C=1 / (penalty * 200), tol=1e-10, max_iter=1000)
    expected = peer.fit(features, labels).predict_proba(features)
    np.testing.assert_allclose(regression.predict(found.weights, features), expected, atol=1e-5)


@pytest.mark.parametrize(("n", "width", "classes"), [(96, 128, 7), (192, 51, 7)])
def test_a_weak_penalty_on_images_that_are_nearly_told_apart(n, width, classes):
    """Cold at C = 1e5: two hundred Hessian products a step were too few."""
    rng = np.random.default_rng(n)
    labels = np.concatenate(
        [np.arange(classes), rng.choice(classes, n - classes, p=rng.dirichlet(np.full(classes, 0.3)))]
    )
    features = rng.normal(size=(n, width)) / np.arange(1, width + 1) ** 1.5
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    regression = SoftmaxRegression(features @ np.linalg.qr(rng.normal(size=(width, width)))[0], labels)
    found = regression.fit(1 / (1e5 * n), regression.begin(), steps=100, tolerance=1e-6)
    assert found.converged
    assert found.steps < 50


def test_a_penalty_of_any_size_leaves_finite_weights():
    rng = np.random.default_rng(2)
    labels = np.arange(60) % 3
    regression = SoftmaxRegression(rng.normal(size=(60, 10)), labels)
    for penalty in (1e30, 1e10, 1e-15):
        found = regression.fit(penalty, regression.begin(), steps=100, tolerance=1e-6)
        assert np.isfinite(found.weights).all()
    heavy = regression.fit(1e30, regression.begin() + 1.0, steps=100, tolerance=1e-6)
    assert np.abs(heavy.weights[:-1]).max() < 1e-6


def test_it_says_when_it_was_cut_short():
    rng = np.random.default_rng(1)
    labels = np.arange(60) % 3
    features = rng.normal(size=(60, 10))
    regression = SoftmaxRegression(features, labels)
    cut = regression.fit(1e-4, regression.begin(), steps=1, tolerance=1e-6)
    assert (cut.steps, cut.converged) == (1, False)
    whole = regression.fit(1e-4, cut.weights, steps=100, tolerance=1e-6)
    assert whole.converged
    again = regression.fit(1e-4, whole.weights, steps=100, tolerance=1e-6)
    assert again.steps == 0
    np.testing.assert_array_equal(again.weights, whole.weights)
