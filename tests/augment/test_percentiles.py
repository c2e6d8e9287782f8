"""Percentiles are NumPy's, also where the sample misleads."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eosin.augment.percentiles import SAMPLED, _sorted_percentiles, percentiles

PERCENTS = (0.0, 1.0, 37.3, 50.0, 99.0, 100.0)


def expected(values, chosen=None):
    rows = values.double().numpy()
    rows = list(rows) if chosen is None else [row[on.numpy()] for row, on in zip(rows, chosen, strict=True)]
    return np.stack([np.percentile(row, PERCENTS) if len(row) else np.zeros(len(PERCENTS)) for row in rows])


@given(
    length=st.one_of(st.integers(1, 40), st.integers(1000, 5000)),
    kind=st.sampled_from(["normal", "ties", "rising", "constant"]),
    seed=st.integers(0, 1000),
    share=st.one_of(st.none(), st.floats(0.0, 1.0)),
)
def test_percentiles_are_numpys(length, kind, seed, share):
    random = np.random.default_rng(seed)
    values = random.normal(size=(3, length)).astype(np.float32)
    if kind == "ties":
        values = values.round()
    elif kind == "rising":
        values.sort(axis=1)
    elif kind == "constant":
        values[:] = values[:, :1]
    values = torch.from_numpy(values)
    chosen = None if share is None else torch.from_numpy(random.uniform(size=(3, length)) < share)
    for way in (percentiles, _sorted_percentiles):
        np.testing.assert_allclose(way(values, PERCENTS, chosen).numpy(), expected(values, chosen), atol=1e-6)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_sample_that_misleads_is_found_out(sign):
    values = torch.rand(1, 50_000, generator=torch.Generator().manual_seed(0))
    values[0, ::SAMPLED] = sign * 5.0
    np.testing.assert_allclose(percentiles(values, PERCENTS).numpy(), expected(values), atol=1e-6)


def test_rows_are_on_their_own():
    values = torch.rand(4, 6000, generator=torch.Generator().manual_seed(0))
    alone = torch.cat([percentiles(row[None], PERCENTS) for row in values])
    assert torch.equal(percentiles(values, PERCENTS), alone)
