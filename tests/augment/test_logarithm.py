"""Powers and logarithms of two: right to float32, and to the same bits wherever a value lies."""

import numpy as np
import pytest
import torch

from eosin.augment import logarithm
from eosin.augment.logarithm import exp2_, log2_


@pytest.fixture(params=[True, False], ids=["numpy", "torch"])
def _way(request, monkeypatch):
    monkeypatch.setattr(logarithm, "VECTORISED", request.param)


@pytest.mark.usefixtures("_way")
def test_values_are_right_to_float32():
    values = torch.rand(10_007, generator=torch.Generator().manual_seed(0)) * 1.1 + 1e-3
    np.testing.assert_allclose(log2_(values.clone()).numpy(), np.log2(values.double().numpy()), atol=1e-6)
    powers = values * 40 - 30
    np.testing.assert_allclose(exp2_(powers.clone()).numpy(), np.exp2(powers.double().numpy()), rtol=2e-6)


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("function", [log2_, exp2_])
def test_bits_do_not_depend_on_the_neighbors(function):
    values = torch.rand(4099, generator=torch.Generator().manual_seed(1)) + 1e-3
    whole = function(values.clone())
    for start in range(0, 33):
        for length in (1, 2, 3, 5, 15, 16, 17, 31, 63, 100, 1000):
            part = slice(start, start + length)
            assert torch.equal(function(values[part].clone()), whole[part])
            again = values.clone()
            assert torch.equal(function(again[part]), whole[part])


@pytest.mark.usefixtures("_way")
@pytest.mark.filterwarnings("error")
def test_powers_of_extremes():
    result = exp2_(torch.tensor([1e6, -1e6, float("nan"), float("inf"), -float("inf"), 0.0]))
    assert result[[0, 3]].isinf().all()
    assert result[2].isnan()
    assert result[[1, 4, 5]].tolist() == [0.0, 0.0, 1.0]
