"""How levels lie over level 0."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eosin.slides.levels import Level, coarsest_serving, lay_levels, same_scene


@given(
    st.integers(3000, 200_000),
    st.integers(3000, 200_000),
    st.sampled_from([2, 3, 4, 8, 10, 16, 32]),
    st.booleans(),
    st.booleans(),
)
def test_sizes_rounded_up_or_down_give_the_whole_number(width, height, factor, up_x, up_y):
    w = -(-width // factor) if up_x else width // factor
    h = -(-height // factor) if up_y else height // factor
    assert lay_levels([(width, height), (w, h)])[1].downsample == (factor, factor)


@given(st.integers(1000, 100_000), st.integers(1000, 100_000), st.sampled_from([64, 128, 256]))
def test_small_levels_are_powers_of_two(width, height, factor):
    assert lay_levels([(width, height), (-(-width // factor), -(-height // factor))])[1].downsample == (factor, factor)


def test_a_ratio_that_is_not_whole_is_kept_along_each_axis():
    level = lay_levels([(10_000, 8_000), (4_000, 3_100)])[1]
    assert level.downsample == (10_000 / 4_000, 8_000 / 3_100)


def test_the_real_pairs():
    assert lay_levels([(4443, 3567), (2221, 1783)])[1].downsample == (2, 2)
    sizes = [(46_000, 32_914), (11_500, 8_228), (2_875, 2_057)]
    assert [level.downsample[0] for level in lay_levels(sizes)] == [1, 4, 16]


@pytest.mark.parametrize(
    ("step", "index"),
    [((1, 1), 0), ((3.9, 3.9), 0), ((4, 4), 1), ((3.997, 3.997), 1), ((3.99, 3.99), 0), ((4, 3), 0), ((0.9, 0.9), 0)],
)
def test_the_coarsest_level_that_is_fine_enough(step, index):
    levels = [Level(1600, 1600, (1, 1)), Level(400, 400, (4, 4)), Level(100, 100, (16, 16))]
    assert coarsest_serving(levels, step) == index


def test_same_scene():
    assert same_scene((2220, 2967), (555, 741))
    assert same_scene((2220, 2967), (1, 1))
    assert not same_scene((2220, 2967), (1280, 431))
    assert not same_scene((2220, 2967), (2221, 2967))
    assert not same_scene((2220, 2967), (387, 463))
