"""The grid on cached features: what is chosen, by which rule, and that nothing depends on company."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from eosin.core.draws import stream_seed
from eosin.core.errors import EosinError
from eosin.evaluate import Fit, Material, open_protocol
from eosin.evaluate.heads import shuffled
from eosin.evaluate.linear_cached import LinearCached, _first_weights

SMALL = LinearCached(rates=(1e-3, 1e-2, 0.1), decays=(0.0, 1e-2), batch=16, passes=2.0, least_steps=60)


def set_of(n=120, width=6, classes=3, seed=0, skill=1.5):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    features = (rng.normal(size=(n, width)) * 5 + 3 + skill * 5 * rng.normal(size=(classes, width))[labels]).astype(
        "f4"
    )
    train, val, test = np.split(rng.permutation(n), [n // 2, 3 * n // 4])
    seen = labels.copy()
    seen[test] = -1
    return Material(features, tuple("abcdefgh"[:classes])), Fit(seen, train, val, test), labels


def one_by_one(material, fit, protocol):
    """Choose and predict with a plain loop: (rate, decay, accuracy, probabilities)."""
    mean = material.features[fit.train].astype(np.float64).mean(axis=0)
    spread = material.features[fit.train].astype(np.float64).std(axis=0)
    values = torch.as_tensor((material.features - mean) / spread, dtype=torch.float32)
    present = np.unique(fit.labels[fit.train])
    steps = protocol.steps(len(fit.train))
    order = torch.as_tensor(shuffled(len(fit.train), protocol.batch, steps, stream_seed(fit.seed, "linear-cached")))
    start = _first_weights(values.shape[1], len(material.classes), fit.seed)[:, present]
    train, labels = values[fit.train], torch.as_tensor(np.searchsorted(present, fit.labels[fit.train]))
    results = []
    for rate in protocol.rates:
        for decay in protocol.decays:
            head = nn.Linear(values.shape[1], len(present))
            with torch.no_grad():
                head.weight.copy_(start.T)
                head.bias.zero_()
            optimizer = torch.optim.SGD(
                head.parameters(), lr=rate * protocol.batch / 256, momentum=0.9, weight_decay=decay
            )
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
            for batch in order:
                loss = nn.functional.cross_entropy(head(train[batch]), labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            with torch.no_grad():
                shares = torch.softmax(head(values), dim=1).numpy()
            truth = fit.labels[fit.val]
            hit = present[shares[fit.val].argmax(axis=1)] == truth
            accuracy = np.mean([hit[truth == value].mean() for value in np.unique(truth)])
            known = np.isin(truth, present)
            picked = shares[fit.val][known, np.searchsorted(present, truth[known])]
            loss = -np.log(picked).mean() if known.any() else 0.0
            results.append((-round(accuracy, 9), round(float(loss), 5), rate, -decay, shares[fit.test]))
    best = min(results, key=lambda result: result[:4])
    probabilities = np.zeros((len(fit.test), len(material.classes)))
    probabilities[:, present] = best[4]
    return best[2], -best[3], -best[0], probabilities


def answer(protocol, material, *fits):
    results = {entry.fit: entry.result for entry in protocol.answers(material, list(fits))}
    return [results[place] for place in range(len(fits))]


@pytest.mark.parametrize(
    "case",
    [
        "plain",
        "two classes",
        "fewer images than features",
        "one image a class",
        "a class missing",
        "fewer than a batch",
    ],
)
def test_the_choice_and_the_prediction_are_those_of_one_by_one(case):
    material, fit, _ = set_of(classes=2 if case == "two classes" else 3)
    train = fit.train
    if case == "fewer images than features":
        material, fit, _ = set_of(width=80)
        train = fit.train[:40]
    if case == "one image a class":
        train = np.array([fit.train[fit.labels[fit.train] == value][0] for value in range(3)])
    if case == "a class missing":
        train = fit.train[fit.labels[fit.train] != 1]
    if case == "fewer than a batch":
        train = fit.train[:9]
    labels = np.full_like(fit.labels, -1)
    for rows in (train, fit.val):
        labels[rows] = fit.labels[rows]
    fit = Fit(labels, train, fit.val, fit.test, seed=4)
    (found,) = answer(SMALL, material, fit)
    rate, decay, accuracy, probabilities = one_by_one(material, fit, SMALL)
    assert (found.chosen["rate"], found.chosen["decay"]) == (rate, decay)
    assert found.chosen["validation_balanced_accuracy"] == pytest.approx(accuracy, abs=1e-9)
    np.testing.assert_allclose(found.probabilities, probabilities, atol=2e-5)


def test_fits_with_problems_get_reasons_and_the_others_answers():
    material, fit, _ = set_of()
    empty = np.zeros(0, dtype=np.int64)
    no_val = Fit(fit.labels, fit.train, empty, fit.test)
    one_class = Fit(fit.labels, fit.train[fit.labels[fit.train] == 0], fit.val, fit.test)
    first, second, third = answer(SMALL, material, no_val, one_class, fit)
    assert isinstance(first, EosinError)
    assert "val split" in str(first)
    assert "one class" in str(second)
    assert third.probabilities.shape == (30, 3)


def test_a_fit_does_not_depend_on_its_company():
    material, fit, _ = set_of()
    others = [Fit(fit.labels, fit.train[: 20 * share], fit.val, fit.test, seed=share) for share in (1, 2, 3)]
    (alone,) = answer(SMALL, material, others[1])
    together = answer(SMALL, material, *others)
    np.testing.assert_array_equal(alone.probabilities, together[1].probabilities)
    assert alone.chosen == together[1].chosen
    assert not np.array_equal(together[0].probabilities, together[1].probabilities)


def test_the_seed_matters():
    material, fit, _ = set_of()
    one, two = (Fit(fit.labels, fit.train, fit.val, fit.test, seed=seed) for seed in (0, 1))
    first, second = answer(SMALL, material, one, two)
    assert not np.array_equal(first.probabilities, second.probabilities)


def test_equal_heads_give_the_smaller_rate_then_the_larger_decay():
    material, fit, _ = set_of()
    # Constant features: every head predicts the same class for all, and with a tiny rate none moves.
    material = Material(np.ones_like(material.features), material.classes)
    tied = LinearCached(rates=(2e-30, 1e-30), decays=(0.0, 1e-30), least_steps=2, passes=0.0)
    (found,) = answer(tied, material, fit)
    assert (found.chosen["rate"], found.chosen["decay"]) == (1e-30, 1e-30)


def test_a_head_that_diverged_is_not_chosen():
    material, fit, _ = set_of(skill=0.3)
    # Comparisons with NaN come out as the first class: of these images alone a diverged head would get all.
    fit = Fit(fit.labels, fit.train, fit.val[fit.labels[fit.val] == 0], fit.test)
    wild = LinearCached(rates=(0.1, 3e38), decays=(0.9,), least_steps=40)
    (found,) = answer(wild, material, fit)
    assert found.chosen["rate"] == 0.1
    assert found.chosen["validation_balanced_accuracy"] < 1.0
    (found,) = answer(replace(wild, rates=(3e38,)), material, fit)
    assert "every head diverged" in str(found)


def test_steps_are_passes_but_enough():
    protocol = LinearCached()
    assert protocol.steps(100) == 1250
    assert protocol.steps(10_000) == 1563
    assert protocol.steps(80_000) == 12_500
    rates, decays = protocol.grid()
    assert len(rates) == len(decays) == 39
    assert float(rates.max()) == pytest.approx(0.1 * 64 / 256)
    assert len({*zip(rates.tolist(), decays.tolist(), strict=True)}) == 39


@pytest.mark.parametrize("wrong", ["rates=0.0", "decays=-1", "batch=0", "momentum=1.0", "passes=-1", "rates=nan"])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(EosinError, match=wrong.split("=")[0]):
        open_protocol(f"linear-cached?{wrong}")
