"""The curves of sRGB and L*a*b* against the published formulas in float64, by exact powers and by poles."""

import numpy as np
import pytest
import torch

from eosin.augment import curves
from eosin.augment.curves import SLOPE, STEEP, cube_, cube_root_, from_linear_, to_linear_

KNEE = 6 / 29


def linear_of(x):
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def displayed_of(x):
    return np.where(x <= 0.0031308, 12.92 * x, 1.055 * np.maximum(x, 1e-9) ** (1 / 2.4) - 0.055)


def root_of(x):
    return np.where(x > KNEE**3, np.cbrt(x), x / (3 * KNEE**2) + 4 / 29)


@pytest.fixture(params=["powers", "poles"])
def way(request, monkeypatch):
    """Both ways of a CPU; without AVX-512 NumPy's powers are slow but the same."""
    monkeypatch.setattr(curves, "VECTORISED", request.param == "powers")
    return request.param


def ramp(low=0.0, high=1.0):
    return torch.linspace(low, high, 20_011)


def test_displayed_values_become_linear(way):
    x = ramp(-0.01, 1.01)
    ours = to_linear_(x.clone()).double().numpy() / SLOPE
    # What the error moves a displayed value by.
    error = np.abs(displayed_of(ours) - displayed_of(linear_of(x.double().numpy())))
    assert error[(x >= 0).numpy() & (x <= 1).numpy()].max() < (2e-6 if way == "powers" else 2.5e-5)
    assert error.max() < 1e-3


def test_linear_values_become_displayed(way):
    x = ramp()
    ours = from_linear_(x * SLOPE).double().numpy()
    assert np.abs(ours - displayed_of(x.double().numpy())).max() < (2e-6 if way == "powers" else 1.7e-5)
    beyond = from_linear_(torch.tensor([-3.0, -1e-6, 1.0001, 40.0]) * SLOPE)
    assert beyond.tolist() == pytest.approx([0.0, 0.0, 1.0, 1.0], abs=1e-6)
    assert beyond.min() >= 0
    assert beyond.max() <= 1


def test_cube_root_has_its_line(way):
    x = ramp()
    ours = cube_root_(x.clone()).double().numpy() * STEEP
    error = np.abs(ours - root_of(x.double().numpy()))
    assert error.max() < (1e-6 if way == "powers" else 8e-6)


def test_cube_inverts_the_cube_root(way):
    x = ramp(-0.05, 1.2)
    back = cube_(cube_root_(x.clone())).double().numpy()
    inside = (x >= -0.05).numpy() & (x <= 1).numpy()
    assert np.abs(back - x.double().numpy())[inside].max() < 2.5e-6
    assert torch.isfinite(cube_(torch.tensor([-1e30, 1e30, torch.finfo(torch.float32).max]))).all()


@pytest.mark.parametrize("curve", [to_linear_, from_linear_, cube_root_, cube_])
def test_black_white_and_order_stay(way, curve):
    x = ramp() * (SLOPE if curve is from_linear_ else 1 / STEEP if curve is cube_ else 1)
    y = curve(x.clone())
    assert (y.diff() >= -2e-7 * y.abs().max()).all()
    ends = {to_linear_: (0, SLOPE), from_linear_: (0, 1), cube_root_: (4 / 29 / STEEP, 1 / STEEP), cube_: (None, 1)}
    first, last = ends[curve]
    if first is not None:
        assert y[0].item() == pytest.approx(first, abs=5e-6)
    assert y[-1].item() == pytest.approx(last, abs=5e-6)
