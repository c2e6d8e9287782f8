"""LARS and LARC against plain loops over parameters, written from their formulas."""

import copy

import pytest
import torch

from eosin.training.lars import LARC, LARS

SHAPES = [(4, 3), (4,), (2, 3, 2, 2), (5,), (3, 3), (2, 2)]
SETTINGS = {"lr": 0.3, "momentum": 0.9, "weight_decay": 0.02, "trust": 0.01}


def parameters(dtype):
    """Weights among which one is zero, as biases are at first."""
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]
    values[3].zero_()
    return [value.requires_grad_() for value in values]


def gradients(dtype):
    """Ten steps' gradients: one parameter's are zero, one's begin at the fourth step, one has none."""
    generator = torch.Generator().manual_seed(1)
    steps = []
    for step in range(10):
        given = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]
        given[2].zero_()
        steps.append([*given[:4], given[4] if step > 2 else None, None])
    return steps


def lars_update(p, g, *, weight_decay, trust, adapted):
    u = g + weight_decay * p
    if adapted and p.norm() > 0 and u.norm() > 0:
        u = u * (trust * p.norm() / u.norm())
    return u


def larc_update(p, g, *, weight_decay, trust, adapted):
    if p.norm() == 0 or g.norm() == 0:
        return g
    return (g + weight_decay * p) * (trust * p.norm() / (g.norm() + weight_decay * p.norm() + 1e-8))


def plain_loop(update, weights, steps, *, lr, momentum, weight_decay, trust, vectors):
    """One parameter after the other; `vectors` are the rules of parameters of one dimension."""
    weights = [weight.detach().clone() for weight in weights]
    velocities = [None] * len(weights)
    for step in steps:
        for i, g in enumerate(step):
            if g is None:
                continue
            rules = {"weight_decay": weight_decay, "adapted": True}
            rules |= vectors if weights[i].ndim == 1 else {}
            u = update(weights[i], g, trust=trust, **rules)
            velocities[i] = u if velocities[i] is None else momentum * velocities[i] + u
            weights[i] = weights[i] - lr * velocities[i]
    return weights


def train(optimizer, weights, steps):
    for step in steps:
        for weight, gradient in zip(weights, step, strict=True):
            weight.grad = None if gradient is None else gradient.clone()
        optimizer.step()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize(
    ("kind", "update", "vectors"),
    [
        (LARS, lars_update, {}),
        (LARS, lars_update, {"weight_decay": 0.0, "adapted": False}),
        (LARS, lars_update, {"weight_decay": 0.02, "adapted": False}),
        (LARC, larc_update, {}),
        (LARC, larc_update, {"weight_decay": 0.0}),
    ],
)
def test_ten_steps_equal_the_plain_loop(kind, update, vectors, dtype, tolerance):
    weights, steps = parameters(dtype), gradients(dtype)
    expected = plain_loop(update, weights, steps, vectors=vectors, **SETTINGS)
    before = weights[5].detach().clone()
    matrices = [weight for weight in weights if weight.ndim > 1]
    rest = [weight for weight in weights if weight.ndim == 1]
    train(kind([{"params": matrices}, {"params": rest, **vectors}], **SETTINGS), weights, steps)
    for ours, theirs in zip(weights, expected, strict=True):
        torch.testing.assert_close(ours.detach(), theirs, rtol=tolerance, atol=tolerance)
    assert torch.equal(weights[5], before)


@pytest.mark.parametrize("kind", [LARS, LARC])
def test_gradients_are_left_as_they_are(kind):
    weights, steps = parameters(torch.float64), gradients(torch.float64)
    train(kind(weights, **SETTINGS), weights, steps[-1:])
    for weight, gradient in zip(weights, steps[-1], strict=True):
        assert (weight.grad is None) if gradient is None else torch.equal(weight.grad, gradient)


@pytest.mark.parametrize("kind", [LARS, LARC])
def test_a_step_without_weight_decay_is_as_long_as_trust_says(kind):
    weight = torch.full((3, 4), 2.0, dtype=torch.float64, requires_grad=True)
    length = weight.norm().item()
    before = weight.detach().clone()
    weight.grad = 1e6 * torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    kind([weight], lr=0.5, momentum=0.9, weight_decay=0.0, trust=0.01).step()
    assert (weight - before).norm().item() == pytest.approx(0.5 * 0.01 * length, rel=1e-9)


@pytest.mark.parametrize("kind", [LARS, LARC])
def test_a_saved_state_goes_on_to_the_same_bits(kind, tmp_path):
    weights, steps = parameters(torch.float32), gradients(torch.float32)
    optimizer = kind(weights, **SETTINGS)
    train(optimizer, weights, steps[:5])
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    again = copy.deepcopy([weight.detach() for weight in weights])
    again = [weight.requires_grad_() for weight in again]
    resumed = kind(again, lr=1.0)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt"))
    train(optimizer, weights, steps[5:])
    train(resumed, again, steps[5:])
    assert all(torch.equal(a, b) for a, b in zip(weights, again, strict=True))


def test_a_closure_is_called_with_gradients_on():
    weight = torch.ones(2, 2, requires_grad=True)
    optimizer = LARS([weight], lr=1.0)

    def closure():
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4.0
    assert (weight < 1).all()
