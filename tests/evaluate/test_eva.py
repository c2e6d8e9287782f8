"""eva's training: its steps, its stopping and its rules, against a plain loop of PyTorch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import recall_score
from torch import nn

from eosin.core.errors import EosinError
from eosin.evaluate import Fit, Material, open_protocol
from eosin.evaluate.eva import Eva, _first_weights, _order, _Running, _scores


def set_of(n=160, width=5, classes=3, seed=0, skill=0.6):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    features = (rng.normal(size=(n, width)) + skill * rng.normal(size=(classes, width))[labels]).astype(np.float32)
    train, val, test = np.split(rng.permutation(n), [n // 2, 3 * n // 4])
    seen = labels.copy()
    seen[test] = -1
    return Material(features, tuple("abcdefgh"[:classes])), Fit(seen, train, val, test, seed=seed)


def balanced(truth, predicted, classes):
    """As torchmetrics: two classes, both sides count; more, a class counts that has an image or a prediction."""
    if classes == 2:
        return recall_score(truth, predicted, labels=[0, 1], average="macro", zero_division=0.0)
    named = np.union1d(truth, predicted)
    return recall_score(truth, predicted, labels=named, average="macro", zero_division=0.0)


def plain(material, fit, protocol, patience):
    """One fit with nn.Linear, AdamW and ConstantLR: (best epoch, epochs run, best score, probabilities)."""
    classes, values = len(material.classes), torch.as_tensor(material.features)
    start = _first_weights(values.shape[1], 1 if classes == 2 else classes, fit.seed)
    head = nn.Linear(values.shape[1], start.shape[1])
    with torch.no_grad():
        head.weight.copy_(start[:-1].T)
        head.bias.copy_(start[-1])
    optimizer = torch.optim.AdamW(head.parameters(), lr=protocol.rate)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    binary = nn.BCEWithLogitsLoss()
    best, best_epoch, waited, kept, steps, epoch = -1.0, 0, 0, None, 0, 0
    while steps < protocol.steps:
        order = fit.train[_order(len(fit.train), fit.seed, epoch)]
        for first in range(0, len(order), protocol.batch):
            rows = order[first : first + protocol.batch]
            truth = torch.as_tensor(fit.labels[rows])
            logits = head(values[rows]).squeeze(-1)
            loss = binary(logits, truth.float()) if classes == 2 else nn.functional.cross_entropy(logits, truth)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps += 1
            if steps == protocol.steps:
                break
        else:
            first = len(order)
        if first + protocol.batch < len(order):
            break  # cut short: no validation
        schedule.step()
        epoch += 1
        with torch.no_grad():
            logits = head(values).squeeze(-1)
            shares = torch.stack([1 - logits.sigmoid(), logits.sigmoid()], 1) if classes == 2 else logits.softmax(1)
        score = balanced(fit.labels[fit.val], shares[fit.val].argmax(1).numpy(), classes)
        if score > best:
            best, best_epoch, waited, kept = score, epoch, 0, shares[fit.test].numpy()
        else:
            waited += 1
        if waited >= patience:
            break
    return best_epoch, epoch, best, kept


def answer(protocol, material, *fits):
    results = {entry.fit: entry.result for entry in protocol.answers(material, list(fits))}
    return [results[place] for place in range(len(fits))]


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize(("batch", "steps", "patience"), [(256, 400, 60), (32, 250, 12), (80, 90, 500), (32, 47, 40)])
def test_each_fit_is_that_of_a_plain_loop_with_its_own_end(classes, batch, steps, patience):
    protocol = Eva(rate=0.02, batch=batch, steps=steps, patience=patience)
    fits, materials = [], set_of(classes=classes)[0]
    base = set_of(classes=classes)[1]
    for seed in range(3):
        fits.append(Fit(base.labels, base.train, base.val, base.test, seed=seed))
    for fit, found in zip(fits, answer(protocol, materials, *fits), strict=True):
        epoch, epochs, best, probabilities = plain(materials, fit, protocol, patience)
        assert (found.chosen["epoch"], found.chosen["epochs"]) == (epoch, epochs)
        assert found.chosen["validation_balanced_accuracy"] == pytest.approx(best, abs=1e-12)
        np.testing.assert_allclose(found.probabilities, probabilities, atol=2e-5)


def test_fits_stop_at_different_times_and_go_on_without_each_other():
    material, base = set_of(n=400)
    fits = [Fit(base.labels, base.train, base.val, base.test, seed=seed) for seed in range(4)]
    protocol = Eva(rate=0.01, batch=64, steps=4000, patience=15)
    together = answer(protocol, material, *fits)
    assert len({found.chosen["epochs"] for found in together}) > 1
    assert all(found.chosen["stopped_early"] for found in together)
    for fit, found in zip(fits, together, strict=True):
        (alone,) = answer(protocol, material, fit)
        assert alone.chosen == found.chosen
        np.testing.assert_allclose(alone.probabilities, found.probabilities, atol=1e-6)


@pytest.mark.parametrize(
    ("images", "patience"),
    [(268, 1250), (100_000, 7), (2175, 278), (262_144, 3), (1132, 500), (3657, 167), (15_303, 42), (6270, 100)],
    ids=["bach", "crc", "mhist", "patch_camelyon", "breakhis", "bracs", "gleason", "unitopatho"],
)
def test_the_rule_gives_the_patience_of_every_task_of_eva(images, patience):
    assert Eva().epochs_waited(images) == patience


def test_a_better_score_must_be_strictly_better():
    one = _Running(0, torch.empty(0), torch.empty(0))
    for score in (0.5, 0.5, 0.6, 0.6, 0.55):
        one.judge(score, torch.tensor([score]), patience=2, min_delta=0.0)
    assert (one.epoch, one.best, one.done, one.weights.item()) == (3, 0.6, True, pytest.approx(0.6))
    one = _Running(0, torch.empty(0), torch.empty(0))
    for score in (0.5, 0.55):
        one.judge(score, torch.tensor([score]), patience=5, min_delta=0.1)
    # Not enough to renew the patience, enough for a checkpoint.
    assert (one.epoch, one.waited) == (2, 1)
    # What counts is the gain over the score that renewed it last, as in Lightning's EarlyStopping.
    one.judge(0.61, torch.tensor([0.61]), patience=5, min_delta=0.1)
    assert (one.epoch, one.waited) == (3, 0)


def test_scores_are_torchmetrics():
    rng = np.random.default_rng(0)
    for classes in (2, 4):
        outputs = 1 if classes == 2 else classes
        # The last class has no validation image: it counts in the epochs that predict it.
        truth = rng.integers(0, max(1, classes - 1), 12)
        val = torch.as_tensor(rng.normal(size=(12, 3)), dtype=torch.float32)
        snapshots = torch.as_tensor(rng.normal(size=(40, 3, outputs)), dtype=torch.float32)
        scores = _scores(_Running(0, val, torch.as_tensor(truth)), snapshots)
        for score, weights in zip(scores, snapshots, strict=True):
            logits = (val @ weights).numpy()
            predicted = (logits[:, 0] > 0).astype(int) if classes == 2 else logits.argmax(axis=1)
            assert score == pytest.approx(balanced(truth, predicted, classes), abs=1e-12)


def test_an_order_is_drawn_for_each_seed_and_epoch():
    orders = [_order(50, seed, epoch).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert all(sorted(order) == list(range(50)) for order in orders)


def test_features_that_are_too_large_are_a_reason_and_an_epoch_that_diverged_is_not_kept():
    material, fit = set_of()
    huge = Material(material.features * np.float32(3e37), material.classes)
    (result,) = answer(Eva(steps=20), huge, fit)
    assert isinstance(result, EosinError)
    assert "features as large as" in str(result)
    one = _Running(0, torch.ones(4, 3), torch.zeros(4, dtype=torch.int64))
    assert _scores(one, torch.full((1, 3, 3), torch.nan)) == [-math.inf]


def test_first_weights_fill_the_range_of_a_linear_layer():
    weights = _first_weights(400, 10, 0)
    assert weights.shape == (401, 10)
    assert 0.99 / math.sqrt(400) < float(weights.abs().max()) <= 1 / math.sqrt(400)
    assert abs(float(weights.mean())) < 0.002
    assert not torch.equal(weights, _first_weights(400, 10, 1))


def test_fits_with_problems_get_reasons_and_the_others_answers():
    material, fit = set_of()
    no_val = Fit(fit.labels, fit.train, np.zeros(0, dtype=np.int64), fit.test)
    one_class = Fit(fit.labels, fit.train[fit.labels[fit.train] == 0], fit.val, fit.test)
    first, second, third = answer(Eva(steps=5), material, no_val, one_class, fit)
    assert isinstance(first, EosinError)
    assert "val split" in str(first)
    assert "one class" in str(second)
    assert third.probabilities.shape == (40, 3)


@pytest.mark.parametrize("wrong", ["rate=0", "batch=0", "steps=0", "patience=-1", "min_delta=-1", "weight_decay=-1"])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(EosinError, match=wrong.split("=")[0]):
        open_protocol(f"eva?{wrong}")
