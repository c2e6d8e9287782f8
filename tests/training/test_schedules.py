"""The schedules against their formulas, PyTorch's own cosine and the authors' schedules, written plainly."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eosin.training.schedules import cosine, warmup_cosine


@given(st.integers(2, 500), st.floats(1e-4, 10), st.floats(0, 1e-4))
def test_cosine_equals_pytorch(total, peak, final):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    peer = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (final + (peak - final) * (1 + math.cos(math.pi * step / total)) / 2) / peak
    )
    for step in range(min(total, 10)):
        assert warmup_cosine(step, total, peak=peak, final=final) == pytest.approx(peer.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        peer.step()


@given(st.integers(1, 100), st.integers(1, 400), st.floats(0.01, 5), st.floats(0, 0.01))
def test_warmup_is_linear_and_the_rest_falls(warmup, rest, peak, start):
    total = warmup + rest
    values = [warmup_cosine(step, total, peak=peak, warmup=warmup, start=start) for step in range(total + 1)]
    assert values[0] == start
    assert values[warmup] == pytest.approx(peak)
    assert values[total] == pytest.approx(0, abs=1e-12)
    for step in range(warmup):
        assert values[step] == pytest.approx(start + (peak - start) * step / warmup)
    assert all(a >= b - 1e-12 for a, b in zip(values[warmup:], values[warmup + 1 :], strict=False))


def test_stairs_hold_the_value():
    values = [warmup_cosine(step, 100, peak=1.0, stair=10) for step in range(100)]
    assert len(set(values)) == 10
    assert values[10] == values[19] == warmup_cosine(10, 100, peak=1.0)


@given(st.integers(1, 1000), st.floats(0, 1), st.floats(0, 1))
def test_cosine_goes_from_start_to_end_by_the_middle_and_stays(total, start, end):
    assert cosine(0, total, start, end) == pytest.approx(start, abs=1e-12)
    assert cosine(total, 2 * total, start, end) == pytest.approx((start + end) / 2, abs=1e-12)
    assert cosine(total, total, start, end) == cosine(3 * total, total, start, end) == pytest.approx(end, abs=1e-12)


def linspace_then_cosine(base, final, steps, warmup=0, start=0.0):
    """DINO's and SwAV's way: arrays over the run, of which the warm-up's ends at its last step, not one after it."""
    rest = np.arange(steps - warmup)
    falling = final + 0.5 * (base - final) * (1 + np.cos(np.pi * rest / len(rest)))
    return np.concatenate([np.linspace(start, base, warmup), falling])


@pytest.mark.parametrize(("base", "final"), [(0.04, 0.4), (0.996, 1.0)])
def test_dinos_weight_decay_and_teacher_momentum(base, final):
    expected = linspace_then_cosine(base, final, 500)
    ours = [cosine(step, 500, base, final) for step in range(500)]
    np.testing.assert_allclose(ours, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("base", "final", "start"),
    [pytest.param(0.001, 1e-6, 0.0, id="dino"), pytest.param(4.8, 0.0048, 0.3, id="swav")],
)
def test_dinos_and_swavs_learning_rate(base, final, start):
    steps, warmup = 1000, 100
    expected = linspace_then_cosine(base, final, steps, warmup, start)
    ours = [warmup_cosine(step, steps, peak=base, final=final, warmup=warmup, start=start) for step in range(steps)]
    np.testing.assert_allclose(ours[warmup:], expected[warmup:], rtol=1e-12)
    # Theirs is one part in warmup - 1 steeper, so that it is ahead by at most one of our steps.
    ahead = expected[:warmup] - ours[:warmup]
    assert ahead[0] == pytest.approx(0)
    assert (ahead >= -1e-12).all()
    assert (ahead <= (base - start) / warmup + 1e-12).all()


def test_barlow_twins_learning_rate():
    def authors(step, max_steps, warmup_steps, base_lr):
        if step < warmup_steps:
            return base_lr * step / warmup_steps
        step -= warmup_steps
        max_steps -= warmup_steps
        q = 0.5 * (1 + math.cos(math.pi * step / max_steps))
        return base_lr * q + base_lr * 0.001 * (1 - q)

    for step in range(1000):
        ours = warmup_cosine(step, 1000, peak=1.6, final=0.0016, warmup=10)
        assert ours == pytest.approx(authors(step, 1000, 10, 1.6), rel=1e-12)


def test_mocos_learning_rate_changes_once_an_epoch():
    steps_per_epoch, epochs = 5, 20
    for step in range(steps_per_epoch * epochs):
        epoch = step // steps_per_epoch
        ours = warmup_cosine(step, steps_per_epoch * epochs, peak=0.03, stair=steps_per_epoch)
        assert ours == pytest.approx(0.03 * 0.5 * (1 + math.cos(math.pi * epoch / epochs)), rel=1e-12)
