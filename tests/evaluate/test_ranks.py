"""Ranks over tasks against SciPy and against published tables."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from eosin.evaluate.ranks import Ranks, critical_difference, ranks

# Demšar (JMLR 2006), table 6: AUC of four variants of C4.5 on 14 data sets, where the paper finds average ranks 3.143,
# 2.000, 2.893 and 1.964, Friedman chi-square 9.28, and critical difference 1.25 at 0.05 (section 3.2.2).
DEMSAR = {
    "C4.5": [0.763, 0.599, 0.954, 0.628, 0.882, 0.936, 0.661, 0.583, 0.775, 1.0, 0.94, 0.619, 0.972, 0.957],
    "C4.5+m": [0.768, 0.591, 0.971, 0.661, 0.888, 0.931, 0.668, 0.583, 0.838, 1.0, 0.962, 0.666, 0.981, 0.978],
    "C4.5+cf": [0.771, 0.590, 0.968, 0.654, 0.886, 0.916, 0.609, 0.563, 0.866, 1.0, 0.965, 0.614, 0.9751, 0.946],
    "C4.5+m+cf": [0.798, 0.569, 0.967, 0.657, 0.898, 0.931, 0.685, 0.625, 0.875, 1.0, 0.962, 0.669, 0.975, 0.970],
}


def named(table: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    return {name: {f"task {place:02d}": value for place, value in enumerate(row)} for name, row in table.items()}


def test_demsars_example():
    found = ranks(named(DEMSAR))
    average = dict(found.encoders)
    assert average == pytest.approx({"C4.5": 3.143, "C4.5+m": 2.0, "C4.5+cf": 2.893, "C4.5+m+cf": 1.964}, abs=5e-4)
    # The paper's formula does not correct for ties: 9.28. With its ties corrected it is what SciPy gives.
    theirs = stats.friedmanchisquare(*DEMSAR.values())
    assert found.friedman == pytest.approx({"statistic": theirs.statistic, "p": theirs.pvalue})
    plain = 12 * 14 / 20 * (sum(rank**2 for rank in average.values()) - 4 * 25 / 4)
    assert plain == pytest.approx(9.28, abs=0.005)
    assert found.critical_difference == pytest.approx(1.25, abs=0.005)
    # No pair is told apart, as the paper says of the Nemenyi test at 0.05: 3.143 - 1.964 = 1.18.
    assert found.cliques == (("C4.5+m+cf", "C4.5+m", "C4.5+cf", "C4.5"),)
    assert found.reason is None


@pytest.mark.parametrize(
    ("level", "published"),
    [
        (0.05, [1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164]),
        (0.10, [1.645, 2.052, 2.291, 2.459, 2.589, 2.693, 2.780, 2.855, 2.920]),
    ],
)
def test_critical_values_are_demsars_table_5(level, published):
    for encoders, q in enumerate(published, start=2):
        scale = (encoders * (encoders + 1) / 6) ** 0.5
        assert critical_difference(encoders, 1, level) / scale == pytest.approx(q, abs=1e-3)
        assert critical_difference(encoders, 9, level) == pytest.approx(critical_difference(encoders, 1, level) / 3)


@given(
    st.integers(3, 6).flatmap(
        lambda k: st.lists(st.lists(st.integers(0, 5), min_size=k, max_size=k), min_size=2, max_size=9)
    )
)
def test_friedman_is_scipys_with_ties(rows):
    table = np.array(rows, dtype=float)
    found = ranks(named({f"e{place}": list(column) for place, column in enumerate(table.T)}))
    if all(len(set(row)) == 1 for row in rows):
        assert found.friedman is None
        assert "same value" in found.reason
        return
    theirs = stats.friedmanchisquare(*table.T)
    assert found.friedman == pytest.approx({"statistic": theirs.statistic, "p": theirs.pvalue}, abs=1e-9)


@given(st.lists(st.integers(0, 40), min_size=2, max_size=8, unique=True), st.integers(2, 30))
def test_cliques_are_the_largest_runs_within_the_critical_difference(steps, tasks):
    # Encoder i always beats encoder i + 1 by rank; thinned values make gaps between average ranks.
    rng = np.random.default_rng(sum(steps))
    table = {f"e{place}": list(step / 10 + rng.normal(size=tasks)) for place, step in enumerate(steps)}
    found = ranks(named(table))
    average = dict(found.encoders)
    alike = [
        set(group)
        for size in range(2, len(average) + 1)
        for group in combinations(average, size)
        if max(average[n] for n in group) - min(average[n] for n in group) < found.critical_difference
    ]
    largest = [group for group in alike if not any(group < other for other in alike)]
    assert sorted(map(sorted, found.cliques)) == sorted(map(sorted, largest))


def test_lower_can_be_better_and_ties_share_ranks():
    values = {"a": {"t": 0.1, "u": 0.3}, "b": {"t": 0.2, "u": 0.3}, "c": {"t": 0.3, "u": 0.1}}
    assert dict(ranks(values).encoders) == {"a": 2.25, "b": 1.75, "c": 2.0}
    assert dict(ranks(values, higher_is_better=False).encoders) == {"a": 1.75, "b": 2.25, "c": 2.0}


def test_a_task_that_an_encoder_lacks_is_left_out_for_all():
    values = {"a": {"t": 1.0, "u": 0.0, "v": 1.0, "w": None}, "b": {"t": 0.0, "v": 0.5, "w": 1.0}}
    found = ranks(values)
    assert (found.tasks, found.left_out) == (("t", "v"), ("u", "w"))
    assert found.encoders == (("a", 1.0), ("b", 2.0))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "fewer than two encoders"),
        ({"a": {"t": 1.0, "u": 0.5}}, "fewer than two encoders"),
        ({"a": {"t": 1.0}, "b": {"u": 1.0}}, "no task has a value of every encoder"),
        ({"a": {"t": 1.0}, "b": {"t": float("nan")}}, "no task has a value of every encoder"),
    ],
)
def test_nothing_to_rank_is_said(values, said):
    found = ranks(values)
    assert said in found.reason
    assert (found.encoders, found.friedman, found.critical_difference, found.cliques) == ((), None, None, ())


def test_one_task_has_ranks_and_no_test():
    found = ranks({"a": {"t": 1.0}, "b": {"t": 0.0}})
    assert isinstance(found, Ranks)
    assert found.encoders == (("a", 1.0), ("b", 2.0))
    assert "one task" in found.reason
    assert (found.friedman, found.critical_difference, found.cliques) == (None, None, ())
