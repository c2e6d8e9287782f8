"""Metrics against scikit-learn, weighted and not."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from eosin.evaluate.metrics import METRICS, metric_value, prepare


def sample(seed: int, n: int, classes: int, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Truth and probabilities; few levels make many tied scores."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, n)
    raw = rng.integers(1, levels + 1, (n, classes)).astype(float)
    return truth, raw / raw.sum(axis=1, keepdims=True)


def plain(name: str, truth: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> float:
    """scikit-learn on the images repeated as often as their weights say."""
    rows = np.repeat(np.arange(len(truth)), weights.astype(int))
    truth, probabilities = truth[rows], probabilities[rows]
    predicted = probabilities.argmax(axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name == "accuracy":
            return float(sk.accuracy_score(truth, predicted))
        if name == "balanced_accuracy":
            return float(sk.balanced_accuracy_score(truth, predicted))
        if name == "macro_f1":
            return float(sk.f1_score(truth, predicted, average="macro", zero_division=0))
        columns = range(probabilities.shape[1]) if probabilities.shape[1] > 2 else [1]
        areas = [
            sk.roc_auc_score(truth == column, probabilities[:, column])
            for column in columns
            if 0 < (truth == column).sum() < len(truth)
        ]
        return float(np.mean(areas)) if areas else float("nan")


@pytest.mark.parametrize("name", METRICS)
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6), n=st.integers(1, 40), classes=st.integers(2, 5), levels=st.sampled_from([1, 2, 4, 500])
)
def test_weighted_metrics_equal_scikit_learn_on_repeated_images(name, seed, n, classes, levels):
    truth, probabilities = sample(seed, n, classes, levels)
    rng = np.random.default_rng(seed + 1)
    weights = np.stack([np.ones(n), rng.multinomial(n, np.full(n, 1 / n))])
    got = METRICS[name].compute(prepare(truth, probabilities), weights)
    expected = [plain(name, truth, probabilities, row) for row in weights]
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)


def test_multiclass_auroc_equals_scikit_learns_one_vs_rest():
    truth, probabilities = sample(3, 200, 4, 9)
    expected = sk.roc_auc_score(truth, probabilities, multi_class="ovr", average="macro")
    assert metric_value("auroc", truth, probabilities) == pytest.approx(expected, abs=1e-12)


def test_two_class_auroc_is_that_of_the_second_class():
    # 1 - p rounds two tiny probabilities to one value: the first column has a tie that the second has not.
    second = np.array([1e-20, 2e-20, 3e-20, 0.5])
    probabilities = np.stack([1 - second, second], axis=1)
    assert metric_value("auroc", [0, 0, 1, 1], probabilities) == 1.0


def test_auroc_is_undefined_with_one_class():
    assert metric_value("auroc", [1, 1], [[0.2, 0.8], [0.4, 0.6]]) is None
    assert metric_value("accuracy", [1, 1], [[0.2, 0.8], [0.6, 0.4]]) == 0.5


def test_all_scores_equal_give_chance():
    assert metric_value("auroc", [0, 1, 2, 0], np.full((4, 3), 1 / 3)) == 0.5


@pytest.mark.parametrize(
    ("truth", "probabilities"),
    [([0, 2], [[1, 0], [0, 1]]), ([-1, 0], [[1, 0], [0, 1]]), ([0], [[1, 0], [0, 1]]), ([0], [[np.nan, 1]]), ([], [])],
)
def test_faulty_input_is_refused(truth, probabilities):
    with pytest.raises(ValueError):
        prepare(truth, probabilities)
