"""Detection and typing against loops over nuclei; both ways of pairing."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from eosin.core.errors import EosinError
from eosin.nuclei.types import TypeCounts, centers, detect, f_d, f_type, pair_centers


def test_centers():
    labels = np.zeros((20, 30), np.int64)
    labels[2:5, 4:9], labels[10:11, 20:21], labels[12:19, 1:3] = 900, 5, 70_000
    expected = [ndimage.center_of_mass(labels == number)[::-1] for number in (5, 900, 70_000)]
    np.testing.assert_allclose(centers(labels), expected)
    assert centers(labels)[0].tolist() == [20, 10]
    assert centers(np.zeros((3, 4), int)).shape == (0, 2)


def best(cost):
    """Least sum over all assignments, by trying."""
    rows, columns = cost.shape
    return min(sum(cost[i, j] for i, j in enumerate(chosen)) for chosen in permutations(range(columns), rows))


def test_pairing_has_the_least_sum():
    generator = np.random.default_rng(0)
    for _ in range(30):
        truth, predicted = generator.uniform(0, 40, (4, 2)), generator.uniform(0, 40, (6, 2))
        distance = np.linalg.norm(truth[:, None] - predicted[None], axis=2)
        first, second = pair_centers(truth, predicted, 100.0)
        assert distance[first, second].sum() == pytest.approx(best(distance))
        first, second = pair_centers(truth, predicted, 9.0, "within")
        total = np.minimum(distance[first, second], 9).sum() + 9 * (4 - len(first))
        assert total == pytest.approx(best(np.minimum(distance, 9)))
        assert (distance[first, second] <= 9).all()


def test_a_far_nucleus_pulls_at_official_pairs_only():
    truth = np.array([[0.0, 0.0], [10.0, 0.0]])
    predicted = np.array([[11.5, 4.0], [22.5, 0.0]])
    # 4.3 px between the second and the first, and the other two 22.5 px apart; or 12.2 px and 12.5 px, which is less.
    assert len(pair_centers(truth, predicted)[0]) == 0
    first, second = pair_centers(truth, predicted, pairing="within")
    assert (first.tolist(), second.tolist()) == ([1], [0])


def test_clusters_are_paired_as_all_at_once():
    """Clusters of any size, single pairs, lonely points, an edge of just the radius, and none at all."""
    generator = np.random.default_rng(3)
    for number in range(40):
        truth, predicted = (generator.uniform(0, 90, (count, 2)) for count in generator.integers(0, 60, 2))
        if number % 4 == 0 and len(truth) and len(predicted):
            predicted[0] = truth[0] + [9.0, 0.0]
        distance = np.linalg.norm(truth[:, None] - predicted[None], axis=2)
        first, second = pair_centers(truth, predicted, 9.0, "within")
        rows, columns = linear_sum_assignment(np.minimum(distance, 9.0))
        near = distance[rows, columns] <= 9.0
        least = distance[rows[near], columns[near]].sum() - 9.0 * near.sum()
        assert distance[first, second].sum() - 9.0 * len(first) == pytest.approx(least, abs=1e-9)
        assert (distance[first, second] <= 9.0).all()
        assert len({*first.tolist()}) == len({*second.tolist()}) == len(first)
        assert first.tolist() == sorted(first.tolist())


def test_a_slide_of_nuclei_is_paired_in_clusters_or_refused():
    generator = np.random.default_rng(4)
    truth = generator.uniform(0, 8000, (30_000, 2))
    predicted = truth[generator.permutation(30_000)] + generator.normal(0, 1, (30_000, 2))
    first, second = pair_centers(truth, predicted, pairing="within")
    assert len(first) > 29_000
    assert (np.linalg.norm(truth[first] - predicted[second], axis=1) <= 12).all()
    with pytest.raises(EosinError, match=r"30,000 true and 30,000 predicted.*use --pairing within"):
        pair_centers(truth, predicted)
    with pytest.raises(EosinError, match=r"pairs of nuclei are at most 400 px apart, too many; use a smaller --radius"):
        pair_centers(truth[:12_000] / 10, predicted[:12_000] / 10, 400.0, "within")
    chain = np.stack([np.arange(12_000.0) * 9, np.zeros(12_000)], axis=1)
    with pytest.raises(EosinError, match=r"12,000 predicted nuclei hang together by steps of 12 px"):
        pair_centers(chain, chain, pairing="within")


def plain_counts(true, said, first, second, kind):
    """The published formula, pair by pair."""
    tp = fp = fn = tn = 0
    for i, j in zip(first, second, strict=True):
        if kind not in (true[i], said[j]):
            continue
        tp += true[i] == kind and said[j] == kind
        tn += true[i] != kind and said[j] != kind
        fp += true[i] != kind and said[j] == kind
        fn += true[i] == kind and said[j] != kind
    fp_d = sum(1 for j, t in enumerate(said) if t == kind and j not in second)
    fn_d = sum(1 for i, t in enumerate(true) if t == kind and i not in first)
    whole = 2 * (tp + tn) + 2 * fp + 2 * fn + fp_d + fn_d
    return 2 * (tp + tn) / whole if whole else math.nan


def test_types_against_a_loop():
    generator = np.random.default_rng(2)
    for _ in range(40):
        counts = generator.integers(0, 12, 2)
        truth, predicted = (generator.uniform(0, 60, (count, 2)) for count in counts)
        true, said = (generator.integers(1, 4, count) for count in counts)
        found = detect(truth, predicted, true, said, (1, 2, 3, 4))
        first, second = pair_centers(truth, predicted)
        assert (found.pairs, found.fp, found.fn) == (len(first), counts[1] - len(first), counts[0] - len(first))
        assert found.same == sum(true[i] == said[j] for i, j in zip(first, second, strict=True))
        for kind, own in zip((1, 2, 3, 4), found.types, strict=True):
            expected = plain_counts(true.tolist(), said.tolist(), first.tolist(), second.tolist(), kind)
            assert f_type(own) == pytest.approx(expected, nan_ok=True)


def test_by_hand():
    assert f_d(3, 1, 2) == pytest.approx(6 / 9)
    assert math.isnan(f_d(0, 0, 0))
    assert f_type(TypeCounts(tp=4, fp=1, fn=2, fp_d=3, fn_d=1)) == pytest.approx(8 / 18)
    exact = detect(np.array([[12.0, 0.0]]), np.array([[0.0, 0.0]]))
    assert (exact.pairs, exact.fp, exact.fn, exact.same) == (1, 0, 0, None)  # 12 px is near enough
    assert detect(np.array([[12.01, 0.0]]), np.array([[0.0, 0.0]])).pairs == 0
    assert detect(np.empty((0, 2)), np.ones((3, 2))).fp == 3
    with pytest.raises(EosinError, match="1 and 0 types for 1 true and 1 predicted"):
        detect(np.ones((1, 2)), np.ones((1, 2)), np.array([1]), np.array([], int))
    with pytest.raises(EosinError, match="radius 0"):
        pair_centers(np.ones((1, 2)), np.ones((1, 2)), 0)
