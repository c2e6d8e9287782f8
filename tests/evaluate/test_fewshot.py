"""Few-shot heads against scikit-learn and plain loops."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from eosin.core.errors import EosinError
from eosin.evaluate import PROTOCOLS, Fit, Material, ProbeData, evaluate
from eosin.evaluate.fewshot import SHOTS, FewShot, draw_supports
from eosin.evaluate.fewshot_heads import _minimize, decide, logistic_heads, simpleshot_heads, solve_logistic
from eosin.evaluate.predictions import load_predictions
from eosin.evaluate.statistics import predicted_intervals


def sample(seed: int, n: int = 120, width: int = 10, classes: int = 3, skill: float = 1.0) -> ProbeData:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    features = (rng.normal(size=(n, width)) + skill * np.eye(width)[labels] + 4.0).astype(np.float32)
    train, test = np.arange(0, 3 * n // 4), np.arange(3 * n // 4, n)
    names = np.array([f"i{i}" for i in range(n)])
    none = np.arange(0)
    return ProbeData(features, labels, tuple("abcdef"[:classes]), train, none, test, names, None, "image", 0)


def answer(data: ProbeData, variant: str, draws: int = 20, seed: int = 0, **settings):
    material = Material(data.features, data.classes)
    fit = Fit(data.labels, data.train, data.val, data.test, seed)
    (found,) = FewShot(draws=draws, **settings).answers(material, [fit], [variant])
    if isinstance(found.result, EosinError):
        raise found.result
    return found.result


def plain(data: ProbeData, kind: str, shots: int, draws: int, seed: int, strength: float) -> np.ndarray:
    """Decisions [draws, n_test], one draw after the other, on the features as they are."""
    labels = data.labels[data.train]
    picks = {}
    for label in np.unique(labels):
        rows = data.train[labels == label]
        picks[label] = rows[draw_supports(len(rows), min(shots, len(rows)), draws, seed, int(label))]
    said = []
    for draw in range(draws):
        rows = np.concatenate([picks[label][draw] for label in picks])
        truth = np.concatenate([np.full(len(picks[label][draw]), label) for label in picks])
        mean = data.features[rows].astype(float).mean(axis=0)
        z, t = (part - mean for part in (data.features[rows].astype(float), data.features[data.test].astype(float)))
        z, t = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (z, t))
        if kind == "logistic":
            said.append(LogisticRegression(C=strength, tol=1e-9, max_iter=5000).fit(z, truth).predict(t))
        else:
            centers = np.stack([z[truth == label].mean(axis=0) for label in picks])
            nearest = np.linalg.norm(t[:, None] - centers, axis=2).argmin(axis=1)
            said.append(np.array(list(picks))[nearest])
    return np.stack(said)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("kind", ["simpleshot", "logistic"])
@pytest.mark.parametrize("shots", [1, 4, 16])
def test_decisions_are_those_of_plain_loops(kind, shots, classes):
    data = sample(0, classes=classes)
    got = answer(data, f"{kind}-{shots}", draws=20, seed=3, strength=2.0)
    expected = plain(data, kind, shots, 20, 3, 2.0)
    np.testing.assert_array_equal(got.decisions, expected)
    shares = (expected[:, :, None] == np.arange(classes)).mean(axis=0)
    np.testing.assert_allclose(got.probabilities, shares, atol=1e-12)
    assert got.votes


@pytest.mark.parametrize(("classes", "strength"), [(2, 0.1), (2, 10.0), (5, 1.0), (5, 100.0), (5, 1000.0)])
def test_logistic_probabilities_are_scikit_learns(classes, strength):
    rng = np.random.default_rng(1)
    labels = np.arange(classes * 6) % classes
    z = rng.normal(size=(4, len(labels), 7)) + np.eye(7)[labels]
    z[3, 1] = z[3, 0]  # An image that comes twice makes the inner products singular.
    stack = torch.as_tensor(z)
    weights, bias = solve_logistic(stack @ stack.transpose(1, 2), torch.as_tensor(labels), strength)
    tests = rng.normal(size=(9, 7))
    for part, a, b in zip(z, weights.numpy(), bias.numpy(), strict=True):
        logits = tests @ part.T @ a + b
        got = np.exp(logits - logits.max(axis=1, keepdims=True))
        got /= got.sum(axis=1, keepdims=True)
        model = LogisticRegression(C=strength, tol=1e-10, solver="newton-cholesky").fit(part, labels)
        np.testing.assert_allclose(got, model.predict_proba(tests), atol=1e-4)


@pytest.mark.parametrize("strength", [1e-8, 1e-4, 10.0])
def test_classes_of_other_sizes_move_the_bias_as_in_scikit_learn(strength):
    """It is not penalized: a search that a strong penalty ends at once would leave it at 0."""
    labels = np.repeat([0, 1, 2], [7, 2, 4])
    z = np.random.default_rng(2).normal(size=(1, len(labels), 6))
    stack = torch.as_tensor(z)
    weights, bias = solve_logistic(stack @ stack.transpose(1, 2), torch.as_tensor(labels), strength)
    logits = z[0] @ z[0].T @ weights[0].numpy() + bias[0].numpy()
    got = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    model = LogisticRegression(C=strength, tol=1e-10, solver="newton-cholesky").fit(z[0], labels)
    np.testing.assert_allclose(got, model.predict_proba(z[0]), atol=1e-5)


def test_a_fit_is_the_same_whatever_is_fitted_beside_it():
    """Each search ends by itself: those that are done stay where they are."""
    rng = np.random.default_rng(3)
    labels = torch.arange(15) % 3
    parts = [torch.as_tensor(rng.normal(size=(15, 8)) * scale) for scale in (0.01, 1.0, 30.0)]
    grams = torch.stack([part @ part.T for part in parts])
    together = solve_logistic(grams, labels, 10.0)
    for place, gram in enumerate(grams):
        for got, alone in zip(together, solve_logistic(gram[None], labels, 10.0), strict=True):
            torch.testing.assert_close(got[place], alone[0], rtol=1e-9, atol=1e-11)


def test_a_search_that_finds_nothing_lower_ends():
    """It is tried once more without what it remembers; other searches do not wait for it."""
    seen = []

    def loss_and_gradient(theta):
        seen.append(theta.clone())
        # Of the first problem every look is worse than the one before; the second is a bowl.
        loss = torch.stack([torch.tensor(float(len(seen)), dtype=theta.dtype), 0.5 * theta[1].square().sum()])
        return loss, torch.stack([torch.ones_like(theta[0]), theta[1]]), theta

    start = torch.full((2, 1, 1), 3.0, dtype=torch.float64)
    limits = torch.full((1,), 1e-9, dtype=torch.float64)
    theta, _ = _minimize(loss_and_gradient, start, torch.full((2, 1, 1), 0.3), 500, limits)
    assert theta[0].item() == 3.0
    assert abs(theta[1].item()) < 1e-9
    # Twice 30 halvings, and what the bowl takes.
    assert len(seen) < 100


def test_images_that_are_all_the_same_say_nothing():
    """Their differences from their mean are rounding, and equal scores are the first class's."""
    row = np.random.default_rng(4).normal(size=8).astype(np.float32) + np.float32(1e3)
    pool = torch.from_numpy(np.tile(row, (6, 1)))
    support, labels = np.arange(6)[None], np.repeat(np.arange(3), 2)
    for heads in (simpleshot_heads(pool, support, labels), logistic_heads(pool, support, labels, 10.0)):
        assert not heads.alpha.any()
        tests = torch.randn(5, 8)
        assert decide(pool, tests, [support], [[heads]])[0][0].tolist() == [[0] * 5]


def test_draws_are_without_replacement_nested_and_even():
    wide = draw_supports(20, 16, 4000, seed=5, label=2)
    assert wide.min() == 0
    assert wide.max() == 19
    assert all(len(set(row)) == 16 for row in wide.tolist())
    for shots in SHOTS:
        np.testing.assert_array_equal(draw_supports(20, shots, 4000, seed=5, label=2), wide[:, :shots])
    # Each place of a draw is even over the images: 4000 / 20 = 200, with a standard deviation of 13.8.
    for place in range(16):
        assert np.abs(np.bincount(wide[:, place], minlength=20) - 200).max() < 70


def test_a_draw_depends_on_seed_draw_and_class_alone():
    many = draw_supports(50, 8, 100, seed=1, label=0)
    np.testing.assert_array_equal(draw_supports(50, 8, 7, seed=1, label=0), many[:7])
    assert not np.array_equal(draw_supports(50, 8, 100, seed=2, label=0), many)
    assert not np.array_equal(draw_supports(50, 8, 100, seed=1, label=1), many)
    assert len({tuple(row) for row in many.tolist()}) == 100


def test_another_class_and_more_variants_change_no_draw():
    data = sample(2)
    alone = answer(data, "simpleshot-4")
    material = Material(data.features, data.classes)
    fit = Fit(data.labels, data.train, data.val, data.test)
    protocol = FewShot(draws=20)
    answers = {entry.variant: entry.result for entry in protocol.answers(material, [fit])}
    assert list(answers) == list(protocol.variants)
    np.testing.assert_array_equal(answers["simpleshot-4"].decisions, alone.decisions)


def test_a_class_with_fewer_images_than_shots_gives_all_it_has_and_is_named():
    data = sample(3)
    labels = data.labels[data.train]
    train = np.concatenate([data.train[labels == 0][:3], data.train[labels != 0]])
    few = ProbeData(**{**{name: getattr(data, name) for name in data.__dataclass_fields__}, "train": train})
    got = answer(few, "simpleshot-8", draws=10)
    np.testing.assert_array_equal(got.decisions, plain(few, "simpleshot", 8, 10, 0, 1.0))
    assert got.chosen == {"shots": 8, "draws": 10, "fewer_images_than_shots": {"a": 3}}
    assert "fewer_images_than_shots" not in answer(few, "simpleshot-2").chosen


def test_more_shots_say_more_and_the_spread_over_draws_is_told():
    data = sample(4, n=240, skill=2.0)
    values, spreads = [], []
    for shots in SHOTS:
        result = evaluate(data, f"fewshot:simpleshot-{shots}?draws=200", resamples=20)
        values.append(result.metrics["accuracy"]["value"])
        spreads.append(result.chosen["sd"]["accuracy"])
        assert result.metrics["accuracy"]["low"] < values[-1] < result.metrics["accuracy"]["high"]
    assert values == sorted(values)
    assert spreads[0] > spreads[-1] > 0
    got = answer(data, "simpleshot-1", draws=200)
    hits = (got.decisions == data.labels[data.test]).mean(axis=1)
    assert values[0] == pytest.approx(hits.mean())
    assert spreads[0] == pytest.approx(hits.std(ddof=1))


def test_what_it_cannot_do_is_refused():
    data = sample(5)
    one = data.train[data.labels[data.train] == 0]
    few = ProbeData(**{**{name: getattr(data, name) for name in data.__dataclass_fields__}, "train": one})
    with pytest.raises(EosinError, match="one class only"):
        answer(few, "logistic-1")
    with pytest.raises(ValueError, match="draws=0"):
        FewShot(draws=0)
    with pytest.raises(ValueError, match=r"strength=100000 must be above 0 and at most 10000"):
        FewShot(strength=1e5)
    assert not PROTOCOLS["fewshot"].fractions


def test_the_file_of_predictions_keeps_that_they_are_votes(tmp_path):
    result = evaluate(sample(6), "fewshot:simpleshot-2?draws=50", resamples=20)
    pq.write_table(result.table(), tmp_path / "votes.parquet")
    plain = evaluate(sample(6), "knn", resamples=20)
    pq.write_table(plain.table(), tmp_path / "plain.parquet")
    about = {"classes": list(result.classes), "grouping": "image"}
    votes = load_predictions(tmp_path, {"predictions": "votes.parquet", **about})
    assert votes.votes
    assert not load_predictions(tmp_path, {"predictions": "plain.parquet", **about}).votes
    assert predicted_intervals(votes, 0, 20) == result.metrics
    assert result.metrics["calibration_error"]["value"] is None
