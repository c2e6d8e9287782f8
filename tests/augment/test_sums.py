"""Sums over pixels are right, of the type they were, and each row's own."""

import numpy as np
import pytest
import torch

from eosin.augment.sums import RUN, pixel_sums


@pytest.mark.parametrize("size", [0, 1, RUN - 1, RUN, RUN + 1, 5 * RUN, 50_176])
@pytest.mark.parametrize("lead", [(), (0,), (1,), (3,), (2, 1)])
def test_sums_are_right_and_each_rows_own(size, lead):
    values = torch.rand(*lead, size, generator=torch.Generator().manual_seed(0))
    found = pixel_sums(values)
    assert found.shape == lead
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), values.double().sum(-1).numpy(), rtol=1e-6)
    for row, total in zip(values.reshape(-1, size) if values.numel() else [], found.flatten(), strict=False):
        assert torch.equal(pixel_sums(row[None])[0], total)


def test_rows_that_do_not_lie_together_are_summed_alike():
    values = torch.rand(3, 2, 1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pixel_sums(values[:, 1]), pixel_sums(values[:, 1].contiguous()))
