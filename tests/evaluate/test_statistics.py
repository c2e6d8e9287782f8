"""Intervals and paired tests against plain loops and full enumeration."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_statistics
from sklearn.metrics import balanced_accuracy_score

from eosin.core.errors import EosinError
from eosin.evaluate import statistics
from eosin.evaluate.metrics import METRICS, metric_value, prepare
from eosin.evaluate.paired import holm, paired_test
from eosin.evaluate.statistics import (
    Predicted,
    bootstrap_interval,
    bootstrap_statistic,
    predicted_intervals,
)


def sample(seed: int, n: int, classes: int = 3, skill: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = np.arange(n) % classes
    raw = rng.random((n, classes)) + skill * rng.random((n, 1)) * np.eye(classes)[truth]
    return truth, raw / raw.sum(axis=1, keepdims=True)


def test_interval_equals_a_plain_loop_over_groups():
    truth, probabilities = sample(0, 60)
    groups = np.array([f"p{i // 4}" for i in range(60)])
    got = bootstrap_interval(truth, probabilities, groups, seed=5, resamples=200)
    rng = np.random.default_rng(statistics.stream_seed(5, "bootstrap"))
    names = np.unique(groups)
    drawn = rng.integers(0, len(names), size=(200, len(names)))
    values: dict[str, list[float]] = {name: [] for name in METRICS}
    for row in drawn:
        rows = np.concatenate([np.flatnonzero(groups == names[index]) for index in row])
        for name in METRICS:
            value = metric_value(name, truth[rows], probabilities[rows])
            if value is not None:
                values[name].append(value)
    for name in METRICS:
        assert got[name]["value"] == pytest.approx(metric_value(name, truth, probabilities))
        assert [got[name]["low"], got[name]["high"]] == pytest.approx(np.percentile(values[name], [2.5, 97.5]))


def test_block_size_does_not_change_the_draws(monkeypatch):
    truth, probabilities = sample(1, 50)
    whole = bootstrap_interval(truth, probabilities, seed=2, resamples=101)
    monkeypatch.setattr(statistics, "BLOCK", 350)
    assert bootstrap_interval(truth, probabilities, seed=2, resamples=101) == whole


def test_a_statistic_of_weighted_images_has_the_interval_of_the_metric():
    truth, probabilities = sample(2, 40)
    images, groups = prepare(truth, probabilities), np.array([f"p{i % 7}" for i in range(40)])
    part = (groups, lambda weights: METRICS["balanced_accuracy"].compute(images, weights))
    expected = bootstrap_interval(truth, probabilities, groups, seed=4, resamples=100)["balanced_accuracy"]
    assert bootstrap_statistic([part], 4, 100) == expected
    # The same images twice, as two seeds without any difference, are one sample and not two.
    assert bootstrap_statistic([part, part], 4, 100) == expected


def test_a_statistic_over_parts_draws_a_group_once_for_all():
    truth, probabilities = sample(3, 30)
    parts, plain = [], []
    for rows, units in ((np.arange(12), np.arange(12) // 3), (np.arange(8, 30), np.arange(8, 30) // 3)):
        images = prepare(truth[rows], probabilities[rows])
        parts.append((units, lambda weights, images=images: METRICS["accuracy"].compute(images, weights)))
        plain.append((images.predicted == images.truth, units.astype(str)))
    got = bootstrap_statistic(parts, 6, 50)
    names = sorted({name for _, units in plain for name in units})
    values = []
    for drawn in np.random.default_rng(statistics.stream_seed(6, "bootstrap")).integers(0, 10, size=(50, 10)):
        chosen = [names[index] for index in drawn]
        means = []
        for hits, units in plain:
            weights = np.array([chosen.count(unit) for unit in units])
            means.append((hits * weights).sum() / weights.sum() if weights.sum() else np.nan)
        values.append(np.mean(means))
    low, high = np.percentile([value for value in values if value == value], [2.5, 97.5])
    assert [got["low"], got["high"]] == pytest.approx([low, high])
    assert got["value"] == pytest.approx(np.mean([hits.mean() for hits, _ in plain]))


def test_a_statistic_that_is_undefined_says_why():
    got = bootstrap_statistic([(np.arange(3), lambda weights: np.full(len(weights), np.nan))], undefined="no reason")
    assert got == {"value": None, "low": None, "high": None, "reason": "undefined: no reason"}


def test_groups_widen_the_interval_of_dependent_images():
    rng = np.random.default_rng(3)
    right = np.repeat(rng.random(20) < 0.6, 10)
    truth = np.zeros(200, dtype=int)
    probabilities = np.where(right[:, None], [[0.9, 0.1]], [[0.1, 0.9]])
    by_image = bootstrap_interval(truth, probabilities, metrics=["accuracy"])["accuracy"]
    by_patient = bootstrap_interval(truth, probabilities, np.arange(200) // 10, metrics=["accuracy"])["accuracy"]
    width = [interval["high"] - interval["low"] for interval in (by_image, by_patient)]
    assert width[1] > 2 * width[0]
    assert by_image["value"] == by_patient["value"]


def test_interval_covers_at_about_its_rate():
    # 400 experiments of 100 images, true accuracy 0.8: the percentile interval covers it about 95 times in 100.
    rng = np.random.default_rng(4)
    covered = 0
    for experiment in range(400):
        right = rng.random(100) < 0.8
        probabilities = np.where(right[:, None], [[1.0, 0.0]], [[0.0, 1.0]])
        interval = bootstrap_interval(
            np.zeros(100, int), probabilities, seed=experiment, resamples=300, metrics=["accuracy"]
        )
        covered += interval["accuracy"]["low"] <= 0.8 <= interval["accuracy"]["high"]
    assert 0.90 <= covered / 400 <= 0.98


def test_one_class_in_the_test_gives_no_auroc_and_says_why():
    got = bootstrap_interval([1, 1, 1], [[0.2, 0.8], [0.6, 0.4], [0.1, 0.9]])
    assert got["auroc"]["value"] is None
    assert "one class" in got["auroc"]["reason"]
    assert got["accuracy"]["value"] == pytest.approx(2 / 3)
    assert got["accuracy"]["low"] is not None


def test_a_single_group_gives_no_interval_and_says_why():
    got = bootstrap_interval([0, 1], [[0.9, 0.1], [0.2, 0.8]], ["p", "p"])
    assert got["accuracy"]["value"] == 1.0
    assert got["accuracy"]["low"] is None
    assert "single group" in got["accuracy"]["reason"]


def test_resamples_that_lack_a_class_are_counted_over_the_others():
    truth = np.array([0] * 30 + [1])
    probabilities = np.where((truth == 0)[:, None], [[0.9, 0.1]], [[0.2, 0.8]])
    names = [name for name in METRICS if name != "calibration_error"]
    got = bootstrap_interval(truth, probabilities, metrics=names)
    assert list(got) == names
    for name in names:
        assert (got[name]["value"], got[name]["low"], got[name]["high"]) == (1.0, 1.0, 1.0)


def plain_exchange_p(metric, truth, first, second, groups) -> tuple[float, float]:
    """All 2^G exchanges, one at a time."""
    names = np.unique(groups)

    def difference(one, two):
        return metric_value(metric, truth, one) - metric_value(metric, truth, two)

    observed = difference(first, second)
    extreme = 0
    for flips in product([False, True], repeat=len(names)):
        swap = np.isin(groups, names[list(flips)])[:, None]
        found = difference(np.where(swap, second, first), np.where(swap, first, second))
        extreme += abs(found) >= abs(observed) - 1e-9
    return observed, extreme / 2 ** len(names)


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy", "macro_f1"])
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_p_equals_full_enumeration(metric, seed):
    truth, first = sample(seed, 18)
    _, second = sample(seed + 1, 18, skill=0.2)
    groups = np.array([f"g{i % 6}" for i in range(18)])
    got = paired_test(
        [Predicted(np.arange(18), truth, first, groups)], [Predicted(np.arange(18), truth, second, groups)], metric
    )
    observed, p = plain_exchange_p(metric, truth, first, second, groups)
    assert got.exact
    assert got.groups == 6
    assert got.difference == pytest.approx(observed)
    assert got.p == pytest.approx(p)
    assert got.low <= got.difference + 1e-12
    assert got.high >= got.difference - 1e-12


def test_auroc_exchanges_ranks():
    truth, first = sample(7, 16, classes=2)
    _, second = sample(8, 16, classes=2, skill=0.1)
    ranks = [np.argsort(np.argsort(scores, axis=0), axis=0).astype(float) for scores in (first, second)]
    got = paired_test(
        [Predicted(np.arange(16), truth, first, np.arange(16) % 5)],
        [Predicted(np.arange(16), truth, second**3, np.arange(16) % 5)],
        "auroc",
    )
    observed, p = plain_exchange_p("auroc", truth, ranks[0], ranks[1], np.arange(16) % 5)
    assert got.difference == pytest.approx(observed)
    assert got.p == pytest.approx(p)


def test_drawn_exchanges_approach_the_enumeration():
    truth, first = sample(9, 36)
    _, second = sample(10, 36, skill=0.4)
    one, two = [[Predicted(np.arange(36), truth, p, np.arange(36) % 9)] for p in (first, second)]
    exact = paired_test(one, two, "accuracy")
    drawn = paired_test(one, two, "accuracy", permutations=500)
    assert exact.exact
    assert not drawn.exact
    assert drawn.p == pytest.approx(exact.p, abs=0.08)


def test_p_is_uniform_when_the_encoders_are_alike():
    values = []
    for seed in range(150):
        truth, first = sample(2 * seed, 30)
        _, second = sample(2 * seed + 1, 30)
        names = np.arange(30)
        values.append(
            paired_test(
                [Predicted(names, truth, first)],
                [Predicted(names, truth, second)],
                "accuracy",
                resamples=1,
                permutations=199,
            ).p
        )
    assert np.mean(np.array(values) <= 0.1) < 0.17


def test_seeds_are_pooled_by_group():
    seeds = [(sample(s, 24), sample(s + 50, 24, skill=0.0)) for s in (20, 21, 22)]
    names = np.array([f"i{i:02d}" for i in range(24)])
    groups = np.array([f"g{i % 8}" for i in range(24)])
    order = np.random.default_rng(0).permutation(24)
    first = [Predicted(names, truth, p, groups) for (truth, p), _ in seeds]
    second = [Predicted(names[order], truth[order], q[order], groups[order]) for (truth, _), (_, q) in seeds]
    got = paired_test(first, second, "accuracy")
    # Accuracy is linear: pooling the seeds is flipping the signs of each group's summed differences.
    per_group = np.zeros(8)
    for (truth, p), (_, q) in seeds:
        gain = (p.argmax(1) == truth).astype(float) - (q.argmax(1) == truth)
        np.add.at(per_group, np.arange(24) % 8, gain / 24 / 3)
    flipped = [abs(np.dot(signs, per_group)) for signs in product([-1, 1], repeat=8)]
    assert got.difference == pytest.approx(per_group.sum())
    assert got.p == pytest.approx(np.mean(np.array(flipped) >= abs(per_group.sum()) - 1e-9))
    assert (got.groups, got.seeds) == (8, 3)


def test_seeds_may_have_test_images_of_their_own():
    (truth, p), (_, q) = sample(30, 20), sample(31, 20)
    first = [Predicted(np.arange(20) + s, truth, p) for s in (0, 5)]
    second = [Predicted(np.arange(20) + s, truth, q) for s in (0, 5)]
    assert paired_test(first, second, "accuracy").groups == 25


def test_the_same_predictions_do_not_differ():
    truth, p = sample(11, 30)
    same = [Predicted(np.arange(30), truth, p)]
    for metric in METRICS:
        got = paired_test(same, same, metric, permutations=100)
        assert (got.difference, got.low, got.high, got.p) == (0.0, 0.0, 0.0, 1.0)


def test_comparisons_that_are_none_are_refused():
    truth, p = sample(12, 9)
    one = Predicted(np.arange(9), truth, p)
    with pytest.raises(EosinError, match="same images"):
        paired_test([one], [Predicted(np.arange(9) + 1, truth, p)])
    with pytest.raises(EosinError, match="different labels"):
        paired_test([one], [Predicted(np.arange(9), (truth + 1) % 3, p)])
    with pytest.raises(EosinError, match="with 2 of the other"):
        paired_test([one], [one, one])
    with pytest.raises(EosinError, match="did you mean 'accuracy'"):
        paired_test([one], [one], "acuracy")
    single = Predicted(np.arange(9), np.zeros(9, int), p)
    with pytest.raises(EosinError, match="one class"):
        paired_test([single], [single], "auroc")


def test_balanced_accuracy_difference_is_scikit_learns():
    truth, p = sample(13, 40)
    _, q = sample(14, 40)
    got = paired_test([Predicted(np.arange(40), truth, p)], [Predicted(np.arange(40), truth, q)], permutations=50)
    expected = balanced_accuracy_score(truth, p.argmax(1)) - balanced_accuracy_score(truth, q.argmax(1))
    assert got.difference == pytest.approx(expected)


def test_holm_by_hand():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.9, 0.4]), [0.9, 0.8])
    np.testing.assert_allclose(holm([0.9, 0.6]), [1.0, 1.0])
    assert holm([]).shape == (0,)
    with pytest.raises(ValueError):
        holm([0.1, float("nan")])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.001, 0.5))
def test_holm_rejects_what_the_step_down_procedure_rejects(values, level):
    order = np.argsort(values, kind="stable")
    rejected = set()
    for rank, index in enumerate(order):
        if values[index] * (len(values) - rank) > level:
            break
        rejected.add(int(index))
    assert set(np.flatnonzero(holm(values) <= level).tolist()) == rejected


def test_what_a_change_cost_is_paired_with_the_unchanged_images():
    truth, after = sample(20, 60, skill=0.5)
    before = sample(21, 60, skill=3.0)[1]
    groups = np.array([f"p{i // 5}" for i in range(60)])
    moved = np.random.default_rng(22).random(60)
    whole = Predicted(np.arange(60), truth, after, groups, unchanged=before, moved=moved)
    got = predicted_intervals(whole, seed=3, resamples=80)
    plain = bootstrap_interval(truth, after, groups, seed=3, resamples=80)
    assert {name: got[name] for name in METRICS} == plain
    assert set(got) == {*METRICS, "accuracy_lost", "balanced_accuracy_lost", "embedding_moved"}
    for lost, metric in (("accuracy_lost", "accuracy"), ("balanced_accuracy_lost", "balanced_accuracy")):
        test = paired_test(
            [Predicted(np.arange(60), truth, before, groups)], [Predicted(np.arange(60), truth, after, groups)],
            metric, seed=3, resamples=80,
        )  # fmt: skip
        assert [got[lost][key] for key in ("value", "low", "high")] == pytest.approx(
            [test.difference, test.low, test.high], abs=1e-12
        )
        # Resampled apart, the two would have a far wider interval.
        assert got[lost]["value"] > 0
    means = []
    for row in np.random.default_rng(statistics.stream_seed(3, "bootstrap")).integers(0, 12, size=(80, 12)):
        names = np.unique(groups)[row]
        means.append(np.mean(np.concatenate([moved[groups == name] for name in names])))
    assert got["embedding_moved"]["value"] == pytest.approx(moved.mean())
    low, high = np.percentile(means, [2.5, 97.5])
    assert [got["embedding_moved"]["low"], got["embedding_moved"]["high"]] == pytest.approx([low, high])


def test_votes_are_resampled_as_expectations_and_not_compared_with_probabilities():
    truth, shares = sample(23, 30)
    votes = Predicted(np.arange(30), truth, shares, votes=True)
    got = predicted_intervals(votes, resamples=20)
    assert got["accuracy"]["value"] == pytest.approx(shares[np.arange(30), truth].mean())
    assert got["calibration_error"]["value"] is None
    assert "no probability" in got["calibration_error"]["reason"]
    same = paired_test([votes], [votes], "accuracy", permutations=100)
    assert (same.difference, same.p) == (0.0, 1.0)
    other = Predicted(np.arange(30), truth, np.roll(shares, 1, axis=1), votes=True)
    test = paired_test([votes], [other], "accuracy", permutations=200)
    expected = (shares - np.roll(shares, 1, axis=1))[np.arange(30), truth].mean()
    assert test.difference == pytest.approx(expected)
    with pytest.raises(EosinError, match="shares of votes"):
        paired_test([votes], [Predicted(np.arange(30), truth, shares)], "accuracy")


def test_spread_of_voters_is_that_of_a_loop():
    rng = np.random.default_rng(24)
    truth, decisions = rng.integers(0, 3, 25), rng.integers(0, 3, (11, 25))
    got = statistics.spread_of_voters(truth, decisions, 3)
    assert set(got) == {"accuracy", "balanced_accuracy", "macro_f1"}
    for name, value in got.items():
        each = [metric_value(name, truth, np.eye(3)[row]) for row in decisions]
        assert value == pytest.approx(np.std(each, ddof=1))
    assert statistics.spread_of_voters(truth, decisions[:1], 3)["accuracy"] is None


def test_bootstrap_agrees_with_scipy():
    truth, probabilities = sample(25, 80, skill=1.0)
    hits = (probabilities.argmax(axis=1) == truth).astype(float)
    theirs = scipy_statistics.bootstrap(
        (hits,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval  # fmt: skip
    ours = bootstrap_interval(truth, probabilities, seed=1, resamples=20_000, metrics=["accuracy"])["accuracy"]
    assert [ours["low"], ours["high"]] == pytest.approx([theirs.low, theirs.high], abs=0.0126)


def test_paired_bootstrap_agrees_with_scipy():
    truth, one = sample(26, 80, skill=2.0)
    two = sample(27, 80, skill=0.5)[1]
    hits = [(p.argmax(axis=1) == truth).astype(float) for p in (one, two)]
    theirs = scipy_statistics.bootstrap(
        tuple(hits), lambda a, b, axis=-1: a.mean(axis=axis) - b.mean(axis=axis), n_resamples=20_000, paired=True,
        method="percentile", rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    pair = [[Predicted(np.arange(80), truth, p)] for p in (one, two)]
    ours = paired_test(*pair, "accuracy", seed=1, resamples=20_000, permutations=10)
    assert [ours.low, ours.high] == pytest.approx([theirs.low, theirs.high], abs=0.0126)


def test_exact_sign_flips_are_scipys_permutations():
    truth, one = sample(28, 12, skill=2.0)
    two = sample(29, 12, skill=0.2)[1]
    hits = [(p.argmax(axis=1) == truth).astype(float) for p in (one, two)]
    theirs = scipy_statistics.permutation_test(
        tuple(hits), lambda a, b: a.mean() - b.mean(), permutation_type="samples", n_resamples=np.inf
    )
    ours = paired_test(*[[Predicted(np.arange(12), truth, p)] for p in (one, two)], "accuracy", resamples=10)
    assert ours.exact
    assert ours.p == pytest.approx(theirs.pvalue, abs=1e-12)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_its_step_down_procedure(values):
    adjusted = holm(values)
    order = sorted(range(len(values)), key=lambda index: values[index])
    for level in (0.01, 0.05, 0.2, 0.5):
        rejected = set()
        for step, index in enumerate(order):
            if values[index] > level / (len(values) - step) + 1e-15:
                break
            rejected.add(index)
        near = {i for i, value in enumerate(adjusted) if abs(value - level) < 1e-12}
        assert {i for i, value in enumerate(adjusted) if value <= level} - near == rejected - near
