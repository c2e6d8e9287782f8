"""The schedule against its formula and PyTorch's own cosine."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eosin.training.schedules import warmup_cosine


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


@given(st.integers(1, 100), st.integers(1, 400), st.floats(0.01, 5))
def test_warmup_is_linear_and_the_rest_falls(warmup, rest, peak):
    total = warmup + rest
    values = [warmup_cosine(step, total, peak=peak, warmup=warmup) for step in range(total + 1)]
    assert values[0] == 0
    assert values[warmup] == pytest.approx(peak)
    assert values[total] == pytest.approx(0, abs=1e-12)
    for step in range(warmup):
        assert values[step] == pytest.approx(peak * step / warmup)
    assert all(a >= b - 1e-12 for a, b in zip(values[warmup:], values[warmup + 1 :], strict=False))


def test_stairs_hold_the_value():
    values = [warmup_cosine(step, 100, peak=1.0, stair=10) for step in range(100)]
    assert len(set(values)) == 10
    assert values[10] == values[19] == warmup_cosine(10, 100, peak=1.0)
