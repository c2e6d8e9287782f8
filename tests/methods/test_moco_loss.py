"""MoCo's loss in slices of the queue against the plain formula, with gradients, where numbers are large or small."""

import pytest
import torch
import torch.nn.functional as F

from eosin.methods import moco_loss as module
from eosin.methods.moco_loss import moco_loss


def vectors(dtype=torch.float64, batch=12, width=16, size=101):
    generator = torch.Generator().manual_seed(0)
    queries, keys, queue = (
        F.normalize(torch.randn(rows, width, generator=generator, dtype=torch.float64), dim=1).to(dtype)
        for rows in (batch, batch, size)
    )
    return queries.requires_grad_(), keys, queue.T


def plain(queries, keys, queue, temperature):
    logits = torch.cat([(queries * keys).sum(1, keepdim=True), queries @ queue], 1) / temperature
    return (torch.logsumexp(logits, 1) - logits[:, 0]).mean()


def with_gradient(loss, queries):
    return loss, *torch.autograd.grad(loss, queries)


@pytest.mark.parametrize("temperature", [0.2, 0.001])
@pytest.mark.parametrize("columns", [1, 7, 101, 1000])
def test_slices_of_any_width_give_the_formula_in_double(monkeypatch, columns, temperature):
    """101 keys: no slice but the whole divides them. At 0.001 the exponents span thousands, beyond any number."""
    queries, keys, queue = vectors()
    monkeypatch.setattr(module, "_CPU_CHUNK", columns * len(queries))
    ours = with_gradient(moco_loss(queries, keys, queue, temperature)[0], queries)
    expected = with_gradient(plain(queries, keys, queue, temperature), queries)
    torch.testing.assert_close(ours[0], expected[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(ours[1], expected[1], rtol=1e-10, atol=1e-10 * float(expected[1].abs().max()))


@pytest.mark.parametrize("temperature", [0.2, 0.07, 0.001])
def test_float32_is_as_exact_as_it_can_be(temperature):
    queries, keys, queue = vectors(torch.float32, batch=16, width=64, size=30_000)
    exact = queries.detach().double().requires_grad_()
    ours = with_gradient(moco_loss(queries, keys, queue, temperature)[0], queries)
    expected = with_gradient(plain(exact, keys.double(), queue.double(), temperature), exact)
    # A product of unit vectors in float32 is off by 1e-7, its exponent at T by 1 / T of that.
    limit = max(1e-6, 3e-7 / temperature)
    assert abs(ours[0].double() - expected[0]) <= limit * expected[0]
    assert (ours[1].double() - expected[1]).norm() <= limit * expected[1].norm()


def test_gradients_of_a_solved_batch_keep_their_digits():
    """Queries at their keys, far from all negatives: 1 less the positive's share is 6e-9, which float32 rounds to 0."""
    keys = torch.eye(4)
    queue = -keys
    queries = keys.clone().requires_grad_()
    exact = keys.double().requires_grad_()
    (gradient,) = torch.autograd.grad(moco_loss(queries, keys, queue, 0.05)[0], queries)
    (expected,) = torch.autograd.grad(plain(exact, keys.double(), queue.double(), 0.05), exact)
    assert expected.norm() > 0
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-5, atol=1e-14)


def test_accuracy_counts_positives_that_no_negative_beats():
    keys = torch.eye(3)
    queries = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])
    queue = torch.tensor([[1.0, 0.0, 0.0]]).T
    # The first positive ties with the negative and counts, as index 0 does in an argmax.
    assert moco_loss(queries, keys, queue, 0.2)[1] == 1.0
    queue = torch.tensor([[0.6, 0.8, 0.0], [0.0, 0.0, 1.0]]).T
    assert moco_loss(queries, keys, queue, 0.2)[1] == pytest.approx(2 / 3)


def test_the_gradient_follows_the_loss_that_is_derived():
    queries, keys, queue = vectors()
    (once,) = torch.autograd.grad(moco_loss(queries, keys, queue, 0.2)[0], queries)
    (thrice,) = torch.autograd.grad(3 * moco_loss(queries, keys, queue, 0.2)[0], queries)
    torch.testing.assert_close(thrice, 3 * once)


def test_without_gradients_there_is_the_same_loss():
    queries, keys, queue = vectors()
    with torch.no_grad():
        loss, _ = moco_loss(queries, keys, queue, 0.2)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, moco_loss(queries, keys, queue, 0.2)[0].detach(), rtol=0, atol=0)
