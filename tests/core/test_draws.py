"""Draws: known answers, purity, independence of the batch's composition, permutations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from eosin.core.draws import Draws, permuted, philox, stream_seed


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        # The published known-answer vectors of Philox4x32-10 (Random123, kat_vectors).
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter, key, expected):
    words = philox([np.array([word], dtype=np.uint64) for word in counter], key)
    assert tuple(int(word[0]) for word in words) == expected


@given(st.integers(0, 2**63), st.integers(0, 2**40), st.lists(st.integers(0, 2**31), min_size=1, max_size=8))
def test_a_draw_does_not_depend_on_its_neighbours(seed, step, positions):
    whole = Draws(seed, step, positions).uniform("crop", 5)
    for row, position in enumerate(positions):
        np.testing.assert_array_equal(Draws(seed, step, [position]).uniform("crop", 5)[0], whole[row])
    assert ((whole >= 0) & (whole < 1)).all()


def test_more_draws_begin_with_the_fewer():
    draws = Draws(3, 7, np.arange(4))
    np.testing.assert_array_equal(draws.uniform("a", 9)[:, :4], draws.uniform("a", 4))


def test_streams_steps_seeds_and_scopes_differ():
    base = Draws(0, 0, np.arange(64))
    others = [
        base.uniform("b"),
        base.within("view").uniform("a"),
        Draws(1, 0, np.arange(64)).uniform("a"),
        Draws(0, 1, np.arange(64)).uniform("a"),
        Draws(0, 0, np.arange(64, 128)).uniform("a"),
    ]
    for other in others:
        assert not np.isin(other, base.uniform("a")).any()


def test_distributions():
    draws = Draws(11, 5, np.arange(2000))
    assert stats.kstest(draws.uniform("u", 10).ravel(), "uniform").pvalue > 0.01
    assert stats.kstest(draws.normal("n", 10).ravel(), "norm").pvalue > 0.01


@given(st.integers(1, 3000), st.integers(0, 2**63))
def test_permuted_is_a_permutation_and_random_access(size, seed):
    order = permuted(np.arange(size), size, seed)
    np.testing.assert_array_equal(np.sort(order), np.arange(size))
    assert permuted(size - 1, size, seed) == order[-1]


def test_permutations_are_well_mixed():
    orders = np.stack([permuted(np.arange(50), 50, stream_seed(0, trial)) for trial in range(400)])
    counts = np.apply_along_axis(np.bincount, 0, orders, minlength=50)  # [value, place]
    assert stats.chisquare(counts.ravel()).pvalue > 0.001
