"""ROC curves against scikit-learn, and thinning that leaves the area alone."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from eosin.evaluate.statistics import bootstrap_interval
from eosin.report.load import load_results
from eosin.report.roc import area, average, one_vs_rest, roc_of, thin


def case(seed, n=400, ties=False):
    generator = np.random.default_rng(seed)
    positive = generator.random(n) < 0.3
    scores = generator.normal(size=n) + positive
    return positive, np.round(scores, 1) if ties else scores


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_curve_is_that_of_scikit_learn(seed, ties):
    positive, scores = case(seed, ties=ties)
    curve = one_vs_rest(positive, scores)
    x, y, _ = roc_curve(positive, scores, drop_intermediate=False)
    assert area(curve) == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)
    corners = {(round(a, 12), round(b, 12)) for a, b in curve}
    assert corners <= {(round(a, 12), round(b, 12)) for a, b in zip(x, y, strict=True)}
    assert len(curve) <= len(x)


def test_a_class_without_images_or_rivals_has_no_curve():
    assert one_vs_rest(np.zeros(4, bool), np.arange(4.0)) is None
    assert one_vs_rest(np.ones(4, bool), np.arange(4.0)) is None


@pytest.mark.parametrize("points", [5, 12, 31, 100])
def test_thinning_keeps_the_area_and_the_rise(points):
    curve = one_vs_rest(*case(3, n=5000))
    thinned = thin(curve, points)
    assert len(thinned) <= points + 1 < len(curve)
    assert area(thinned) == pytest.approx(area(curve), abs=1e-12)
    assert (np.diff(thinned, axis=0) >= -1e-12).all()
    assert np.array_equal(thinned[[0, -1]], [[0, 0], [1, 1]])
    assert thin(thinned, points + 1) is thinned


def test_the_mean_curve_has_the_mean_area_and_the_mean_height():
    curves = [one_vs_rest(*case(seed, n=97 + seed, ties=seed % 2 == 0)) for seed in range(5)]
    mean = average(curves)
    assert area(mean) == pytest.approx(np.mean([area(c) for c in curves]), abs=1e-12)
    assert (np.diff(mean, axis=0) >= -1e-12).all()
    # Between the steps of any curve, where no side has to be taken.
    for at in (0.12345, 0.4999, 0.8765):
        heights = [np.interp(at, c[:, 0], c[:, 1]) for c in curves]
        assert np.interp(at, mean[:, 0], mean[:, 1]) == pytest.approx(np.mean(heights), abs=1e-9)


def test_two_classes_have_one_curve_and_many_a_mean():
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 4, 300)
    scores = generator.dirichlet(np.ones(4), 300) + np.eye(4)[truth] * 0.2
    many = roc_of(list("abcd"), [(truth, scores)], 1000)
    assert many.classes == list("abcd")
    expected = bootstrap_interval(truth, scores, resamples=2)["auroc"]["value"]
    assert area(many.macro) == pytest.approx(expected, abs=1e-12)
    two = roc_of(["no", "yes"], [(truth % 2, scores[:, :2])], 1000)
    assert two.classes == ["yes"]
    assert roc_of(["no", "yes"], [(np.zeros(3, int), np.ones((3, 2)))], 50) is None


def test_the_areas_on_the_page_are_the_auroc_of_the_records(typical):
    results = load_results(typical)
    assert len(results.rocs) == 11
    for line in results.standings:
        roc = results.rocs[line["encoder"], line["task"], line["protocol"], line["fraction"]]
        assert roc.seeds == len(line["seeds"])
        assert area(roc.macro) == pytest.approx(line["metrics"]["auroc"]["value"], abs=1e-9)
