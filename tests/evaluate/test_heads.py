"""Heads trained at once equal heads trained one by one by plain PyTorch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from eosin.evaluate.heads import (
    AdamW,
    Scaling,
    Span,
    class_means,
    outside_factor,
    sgd_heads,
    shuffled,
    with_ones,
)

RATES = [1e-3, 1e-2, 0.1]
DECAYS = [0.0, 1e-3, 0.05]


def images(n, width, classes, seed=0, kind=torch.float64):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    values = rng.normal(size=(n, width)) + 2.0 * rng.normal(size=(classes, width))[labels]
    return torch.as_tensor(values, dtype=kind), torch.as_tensor(labels)


def one_by_one(values, labels, start, order, rate, decay):
    """Train one head [D, C], the last feature being the ones that carry the bias, with nothing of ours."""
    head = nn.Linear(values.shape[1] - 1, start.shape[1]).to(values.dtype)
    with torch.no_grad():
        head.weight.copy_(start[:-1].T)
        head.bias.copy_(start[-1])
    optimizer = torch.optim.SGD(head.parameters(), lr=rate, momentum=0.9, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(order))
    for batch in order:
        loss = nn.functional.cross_entropy(head(values[batch, :-1]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return torch.cat([head.weight.T, head.bias[None]]).detach()


@pytest.mark.parametrize(
    ("n", "width", "classes", "batch"), [(50, 7, 3, 16), (5, 3, 2, 16), (3, 20, 3, 8), (40, 1, 4, 7)]
)
def test_heads_equal_those_of_plain_sgd(n, width, classes, batch):
    grid = [(rate, decay) for rate in RATES for decay in DECAYS]
    rates, decays = (torch.tensor(column, dtype=torch.float64) for column in zip(*grid, strict=True))
    values, labels, orders, starts = [], [], [], []
    for fit in range(2):
        value, label = images(n, width, classes, fit)
        values.append(with_ones(value))
        labels.append(label)
        orders.append(torch.as_tensor(shuffled(n, batch, 120, fit)))
        starts.append(
            torch.randn(width + 1, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(fit))
        )
    found = sgd_heads(values, labels, torch.stack(starts), torch.stack(orders), rates, decays)
    assert found.shape == (2, width + 1, classes, len(grid))
    for fit in range(2):
        for head, (rate, decay) in enumerate(grid):
            expected = one_by_one(values[fit], labels[fit], starts[fit], orders[fit], rate, decay)
            torch.testing.assert_close(found[fit, ..., head], expected, atol=1e-10, rtol=1e-9)


def test_single_precision_stays_close_over_many_steps():
    value, label = images(300, 32, 5, kind=torch.float32)
    value = with_ones(value)
    order = torch.as_tensor(shuffled(300, 32, 1500, 3))
    start = torch.zeros(33, 5)
    found = sgd_heads([value], [label], start[None], order[None], torch.tensor([3e-3]), torch.tensor([1e-3]))
    torch.testing.assert_close(
        found[0, ..., 0], one_by_one(value, label, start, order, 3e-3, 1e-3), atol=1e-5, rtol=1e-4
    )


def test_training_in_the_span_of_few_images_is_exact():
    value, label = images(9, 40, 3)
    start = 0.1 * torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    order = torch.as_tensor(shuffled(9, 4, 200, 0))
    rates, decays = torch.tensor([0.01, 0.05, 0.002]).double(), torch.tensor([0.0, 0.02, 0.3]).double()
    span = Span.of(value)
    assert span.basis.shape == (40, 9)
    inside, outside = span.start(start)
    bias = torch.zeros(1, 3, dtype=torch.float64)
    few = sgd_heads(
        [with_ones(span.inside(value))], [label], torch.cat([inside, bias])[None], order[None], rates, decays
    )[0]
    whole = span.whole(few[:-1], outside, outside_factor(rates, decays, 200, 0.9))
    full = sgd_heads([with_ones(value)], [label], torch.cat([start, bias])[None], order[None], rates, decays)[0]
    torch.testing.assert_close(whole, full[:-1], atol=1e-11, rtol=1e-9)
    torch.testing.assert_close(few[-1], full[-1], atol=1e-11, rtol=1e-9)


def test_enough_images_are_left_as_they_are():
    value, _ = images(40, 40, 2)
    span = Span.of(value)
    assert span.basis is None
    assert span.inside(value) is value


def test_a_fit_is_the_same_alone_and_in_company():
    value, label = images(60, 10, 3, kind=torch.float32)
    orders = torch.stack([torch.as_tensor(shuffled(60, 16, 80, seed)) for seed in range(3)])
    starts = torch.zeros(3, 10, 3)
    rates, decays = torch.tensor(RATES), torch.tensor([0.0, 0.0, 1e-3])
    together = sgd_heads([value] * 3, [label] * 3, starts, orders, rates, decays)
    alone = sgd_heads([value], [label], starts[1:2], orders[1:2], rates, decays)
    torch.testing.assert_close(alone[0], together[1], atol=1e-6, rtol=1e-5)


def test_every_pass_holds_every_image_once_and_batches_are_full():
    order = shuffled(10, 4, 10, 0)
    assert order.shape == (10, 4)
    stream = order.ravel()
    for start in range(0, 40, 10):
        assert sorted(stream[start : start + 10]) == list(range(10))
    assert not np.array_equal(stream[:10], stream[10:20])
    assert np.array_equal(order, shuffled(10, 4, 10, 0))
    assert not np.array_equal(order, shuffled(10, 4, 10, 1))
    assert (shuffled(1, 4, 2, 0) == 0).all()


def test_adamw_is_pytorchs():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(3, 4, 2, dtype=torch.float64, generator=generator)
    gradients = torch.randn(50, 3, 4, 2, dtype=torch.float64, generator=generator)
    parameter = nn.Parameter(start.clone())
    plain = torch.optim.AdamW([parameter], lr=1.0, weight_decay=0.01)
    ours = AdamW(start.clone(), 0.01)
    for step, gradient in enumerate(gradients):
        rate = 1e-2 / (1 + step % 3)
        plain.param_groups[0]["lr"] = rate
        parameter.grad = gradient.clone()
        plain.step()
        ours.step(gradient, rate)
    torch.testing.assert_close(ours.weights, parameter.detach(), atol=1e-13, rtol=1e-12)
    ours.keep([2, 0])
    ours.step(gradients[0][[2, 0]], 1e-2)
    plain.param_groups[0]["lr"] = 1e-2
    parameter.grad = gradients[0].clone()
    plain.step()
    torch.testing.assert_close(ours.weights, parameter.detach()[[2, 0]], atol=1e-13, rtol=1e-12)


@pytest.mark.parametrize("block", [1, 1 << 22])
def test_scaling_is_numpys_whatever_the_block(monkeypatch, block):
    monkeypatch.setattr("eosin.evaluate.heads._BLOCK", block)
    rng = np.random.default_rng(0)
    features = rng.normal(3.0, 2.0, (30, 4)).astype(np.float32)
    features[:, 2] = 0.1
    rows = np.array([5, 1, 29, 7, 8])
    scaling = Scaling.of(features, rows)
    np.testing.assert_allclose(scaling.mean, features[rows].astype(float).mean(axis=0), rtol=1e-12)
    expected = features[rows].astype(float).std(axis=0)
    np.testing.assert_allclose(scaling.spread[[0, 1, 3]], expected[[0, 1, 3]], rtol=1e-12)
    assert math.isinf(scaling.spread[2])
    scaled = scaling.apply(features, rows, np.float64)
    np.testing.assert_allclose(scaled.std(axis=0)[[0, 1, 3]], 1.0, rtol=1e-12)
    assert (scaled[:, 2] == 0).all()


def test_class_means_leave_absent_classes_out():
    hits = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    means = class_means(hits, torch.tensor([0, 0, 2]), 4)
    torch.testing.assert_close(means, torch.tensor([(0.5 + 1.0) / 2, (0.0 + 1.0) / 2], dtype=torch.float64))
