"""Metrics against scikit-learn, weighted and not."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from eosin.evaluate.metrics import LOSSES, METRICS, MOVED, compute_all, higher_is_better, metric_value, prepare


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
        if name == "calibration_error":
            return plain_calibration(truth, probabilities)
        columns = range(probabilities.shape[1]) if probabilities.shape[1] > 2 else [1]
        areas = [
            sk.roc_auc_score(truth == column, probabilities[:, column])
            for column in columns
            if 0 < (truth == column).sum() < len(truth)
        ]
        return float(np.mean(areas)) if areas else float("nan")


def plain_calibration(truth: np.ndarray, probabilities: np.ndarray) -> float:
    """Loop over bins (low, high], the first one closed below."""
    sure, hit = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    total = 0.0
    for place in range(15):
        inside = (np.ceil(sure * 15) == place + 1) | ((place == 0) & (sure == 0))
        if inside.any():
            total += inside.mean() * abs(hit[inside].mean() - sure[inside].mean())
    return float(total)


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


def test_calibration_error_of_a_hand_worked_case():
    # Two images at 0.9, one right: gap 0.4; two at 0.6, both right: gap 0.4. Empty bins count nothing.
    probabilities = [[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]]
    assert metric_value("calibration_error", [0, 1, 1, 1], probabilities) == pytest.approx(0.4)
    # Gaps of one bin cancel before they are added: sure of 0.5 and right half of the time is calibrated.
    assert metric_value("calibration_error", [0, 1], [[0.5, 0.5], [0.5, 0.5]]) == pytest.approx(0.0)


def voters(seed: int, n: int, classes: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth, decisions [count, n] and their shares [n, classes]."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, n)
    decisions = np.where(rng.random((count, n)) < 0.5, truth, rng.integers(0, classes, (count, n)))
    return truth, decisions, (decisions[:, :, None] == np.arange(classes)).mean(axis=0)


@pytest.mark.parametrize("name", ["accuracy", "balanced_accuracy", "macro_f1"])
def test_metrics_of_votes_are_expectations_over_the_voters(name):
    truth, decisions, shares = voters(0, 40, 3, 25)
    weights = np.random.default_rng(1).multinomial(40, np.full(40, 1 / 40), size=3).astype(float)
    got = METRICS[name].compute(prepare(truth, shares, votes=True), weights)
    for row, value in zip(weights, got, strict=True):
        counts = np.repeat(np.arange(40), row.astype(int))
        if name == "macro_f1":
            matrix = np.mean(
                [sk.confusion_matrix(truth[counts], d[counts], labels=range(3)) for d in decisions], axis=0
            )
            expected = np.mean(2 * np.diag(matrix) / (matrix.sum(axis=0) + matrix.sum(axis=1)))
        else:
            score = sk.accuracy_score if name == "accuracy" else sk.balanced_accuracy_score
            expected = np.mean([score(truth[counts], d[counts]) for d in decisions])
        assert value == pytest.approx(expected, abs=1e-12)


def test_votes_rank_but_claim_no_probability():
    truth, _, shares = voters(2, 40, 3, 25)
    ones = np.ones((1, 40))
    hard, votes = prepare(truth, shares), prepare(truth, shares, votes=True)
    assert METRICS["auroc"].compute(votes, ones) == METRICS["auroc"].compute(hard, ones)
    assert np.isnan(METRICS["calibration_error"].compute(votes, ones)).all()
    # The majority is right more often than one voter is.
    assert METRICS["accuracy"].compute(hard, ones) > METRICS["accuracy"].compute(votes, ones)
    np.testing.assert_array_equal(votes.said, shares)
    np.testing.assert_array_equal(hard.said.argmax(axis=1), hard.predicted)


@pytest.mark.parametrize("votes", [False, True])
def test_metrics_computed_together_are_those_computed_alone(votes):
    truth, _, shares = voters(3, 30, 4, 7)
    images = prepare(truth, shares, votes)
    weights = np.random.default_rng(4).integers(0, 4, (6, 30)).astype(float)
    together = compute_all(images, weights)
    assert list(together) == list(METRICS)
    for name, values in together.items():
        np.testing.assert_array_equal(values, METRICS[name].compute(images, weights))


def test_directions():
    lower = {"calibration_error", "accuracy_lost", "balanced_accuracy_lost", "embedding_moved"}
    names = [*METRICS, *LOSSES, MOVED]
    assert {name for name in names if not higher_is_better(name)} == lower


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
