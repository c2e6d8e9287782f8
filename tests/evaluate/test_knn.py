"""Nearest neighbours against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from eosin.evaluate import knn as module
from eosin.evaluate.knn import Knn, knn_probabilities


def plain(train, labels, test, classes, k, temperature) -> np.ndarray:
    out = np.zeros((len(test), classes))
    for row, query in enumerate(test.astype(np.float64)):
        similarities = []
        for index, vector in enumerate(train.astype(np.float64)):
            length = math.sqrt((query**2).sum()) * math.sqrt((vector**2).sum())
            similarities.append((float(query @ vector) / length if length else 0.0, index))
        similarities.sort(key=lambda pair: (-pair[0], pair[1]))
        for similarity, index in similarities[:k]:
            out[row, labels[index]] += math.exp(similarity / temperature)
    return out / out.sum(axis=1, keepdims=True)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6), n=st.integers(1, 30), m=st.integers(1, 8), classes=st.integers(1, 4),
    share=st.floats(0, 1), temperature=st.sampled_from([0.07, 0.5, 2.0]),
)  # fmt: skip
def test_shares_equal_plain_loops(seed, n, m, classes, share, temperature):
    rng = np.random.default_rng(seed)
    train, test = rng.normal(size=(n, 6)).astype(np.float32), rng.normal(size=(m, 6)).astype(np.float32)
    labels = rng.integers(0, classes, n)
    k = 1 + int(share * (n - 1))
    got = knn_probabilities(train, labels, test, classes=classes, k=k, temperature=temperature)
    np.testing.assert_allclose(got, plain(train, labels, test, classes, k, temperature), atol=2e-5)


def test_ties_go_to_the_first_training_images():
    # Integer vectors of length 5: the similarities are exact, and the copies tie.
    train = np.array([[3, 4], [4, 3], [3, 4], [3, 4], [-3, 4]], dtype=np.float32)
    test = np.array([[3, 4]], dtype=np.float32)
    labels = np.array([0, 1, 2, 3, 1])
    got = knn_probabilities(train, labels, test, classes=4, k=2, temperature=0.07)
    np.testing.assert_allclose(got, [[0.5, 0, 0.5, 0]])


def test_blocks_do_not_change_the_result(monkeypatch):
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(40, 8)).astype(np.float32), rng.normal(size=(33, 8)).astype(np.float32)
    labels = rng.integers(0, 3, 40)
    whole = knn_probabilities(train, labels, test, classes=3, k=5, temperature=0.07)
    monkeypatch.setattr(module, "_BLOCK", 150)
    np.testing.assert_allclose(
        knn_probabilities(train, labels, test, classes=3, k=5, temperature=0.07), whole, atol=1e-5
    )


def test_a_tiny_temperature_is_the_nearest_neighbor():
    rng = np.random.default_rng(1)
    train, test = rng.normal(size=(50, 8)).astype(np.float32), rng.normal(size=(20, 8)).astype(np.float32)
    labels = rng.integers(0, 4, 50)
    got = knn_probabilities(train, labels, test, classes=4, k=20, temperature=1e-4)
    expected = KNeighborsClassifier(1, algorithm="brute", metric="cosine").fit(train, labels).predict(test)
    np.testing.assert_array_equal(got.argmax(axis=1), expected)


def test_k_is_never_above_the_training_images():
    features = np.random.default_rng(2).normal(size=(8, 4)).astype(np.float32)
    labels = np.array([0, 1, 0, 1, 0, 1, 0, 1])
    rows = np.arange(8)
    assert Knn(k=20).run(features, labels, ["a", "b"], rows[:5], rows[5:6], rows[6:]).chosen["k"] == 5


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError):
        Knn(k=0)
    with pytest.raises(ValueError):
        Knn(temperature=0.0)
