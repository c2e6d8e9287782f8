import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eosin.core.errors import EosinError
from eosin.slides.grid import Grid, coverage, lay_grid


def grid_of(x, y, width, height):
    return Grid(np.array(x, np.int64), np.array(y, np.int64), width, height, 0.5, 256)


def plain_coverage(mask, grid, slide_size):
    """The share of each tile by adding up overlaps pixel by pixel, in exact fractions."""
    height, width = mask.shape
    px, py = Fraction(slide_size[0], width), Fraction(slide_size[1], height)
    tile_width, tile_height = Fraction(grid.level0_width), Fraction(grid.level0_height)
    shares = []
    for x, y in zip(grid.x.tolist(), grid.y.tolist(), strict=True):
        total = Fraction(0)
        for row, column in np.argwhere(mask).tolist():
            across = min((column + 1) * px, x + tile_width) - max(column * px, x)
            down = min((row + 1) * py, y + tile_height) - max(row * py, y)
            total += max(across, Fraction(0)) * max(down, Fraction(0))
        shares.append(float(total / (tile_width * tile_height)))
    return np.array(shares)


@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(20, 5000),
    st.integers(20, 5000),
    st.floats(0.5, 400),
    st.floats(0.5, 400),
    st.integers(0, 2**32 - 1),
)
def test_coverage_is_the_share_of_the_area(height, width, slide_width, slide_height, tile_width, tile_height, seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((height, width)) < 0.5
    grid = grid_of(rng.integers(0, slide_width, 5), rng.integers(0, slide_height, 5), tile_width, tile_height)
    share = coverage(mask, grid, (slide_width, slide_height))
    assert share.dtype == np.float64
    np.testing.assert_allclose(share, plain_coverage(mask, grid, (slide_width, slide_height)), atol=1e-9)


def test_coverage_of_a_large_slide_keeps_its_digits():
    mask = np.ones((4000, 5000), bool)
    mask[-1, -1] = False
    # 5,000 px of mask over 160,001 px of slide: no edge falls on a whole mask pixel.
    slide_size = (160_001, 128_003)
    grid = lay_grid(slide_size, (0.25, 0.25), mpp=0.25, size=16, stride=15_999)
    share = coverage(mask, grid, slide_size)
    assert len(grid) == 10 * 8
    assert (share == 1.0).all()
    corner = grid_of([160_001 - 16], [128_003 - 16], 16.0, 16.0)
    # It lies inside the last pixel of the mask, which is off.
    np.testing.assert_allclose(coverage(mask, corner, slide_size), [0], atol=1e-9)


def test_what_lies_outside_the_slide_is_not_covered():
    grid = grid_of([50, 90, 200], [0, 95, 0], 20.0, 10.0)
    np.testing.assert_allclose(coverage(np.ones((3, 7), bool), grid, (100, 100)), [1, 0.25, 0], atol=1e-12)


def test_an_empty_grid_or_mask_has_no_coverage():
    assert coverage(np.ones((3, 3), bool), grid_of([], [], 5.0, 5.0), (9, 9)).shape == (0,)
    assert (coverage(np.zeros((3, 3), bool), grid_of([1], [1], 5.0, 5.0), (9, 9)) == 0).all()


@pytest.mark.parametrize(
    ("slide", "slide_mpp", "mpp", "size", "stride", "columns", "rows"),
    [
        ((1024, 1024), 0.5, 0.5, 256, 256, 4, 4),
        ((1023, 1024), 0.5, 0.5, 256, 256, 3, 4),
        ((2220, 2967), 0.499, 0.499, 224, 224, 9, 13),
        ((1024, 2048), (0.5, 0.25), 0.5, 256, 256, 4, 4),
        ((1024, 1024), 0.25, 0.5, 512, 256, 1, 1),
        ((1280, 1024), 0.5, 0.5, 512, 128, 7, 5),
        ((255, 5000), 0.5, 0.5, 256, 256, 0, 19),
        # 0.3 / 0.1 · 100 is 299.99999999999994: four tiles of it fill 1,200 px.
        ((1200, 1200), 0.1, 0.3, 100, 100, 4, 4),
    ],
)
def test_as_many_tiles_as_fit(slide, slide_mpp, mpp, size, stride, columns, rows):
    pair = slide_mpp if isinstance(slide_mpp, tuple) else (slide_mpp, slide_mpp)
    grid = lay_grid(slide, pair, mpp=mpp, size=size, stride=stride)
    assert len(grid) == columns * rows
    assert (len(set(grid.x.tolist())), len(set(grid.y.tolist()))) == ((columns, rows) if columns * rows else (0, 0))
    assert grid.level0_width == pytest.approx(size * mpp / pair[0])
    assert grid.level0_height == pytest.approx(size * mpp / pair[1])


def test_a_resolution_kept_in_32_bits_loses_no_tile():
    mpp = float(10_000 / np.float32(10_000 / 0.2521))
    assert mpp != 0.2521
    for slide_mpp in (mpp, 2 * 0.2521 - mpp):
        assert len(lay_grid((102_400, 512), (slide_mpp, 0.2521), mpp=0.2521, size=512, stride=512)) == 200


@given(
    st.integers(1, 200_000),
    st.floats(0.1, 1.0),
    st.floats(1.0, 8.0),
    st.integers(1, 1024),
    st.integers(16, 1024),
)
def test_positions_do_not_drift_and_stay_inside(length, slide_mpp, factor, size, stride):
    mpp = slide_mpp * factor
    grid = lay_grid((length, 10_000), (slide_mpp, slide_mpp), mpp=mpp, size=size, stride=stride)
    if len(grid) == 0:
        assert size * mpp / slide_mpp > min(length, 10_000)
        return
    columns = np.unique(grid.x)
    step = Fraction(stride) * Fraction(mpp) / Fraction(slide_mpp)
    extent = Fraction(size) * Fraction(mpp) / Fraction(slide_mpp)
    assert columns[0] == 0
    for number in {0, 1, len(columns) // 2, len(columns) - 2} & set(range(len(columns) - 1)):
        assert abs(columns[number] - number * step) <= Fraction(1, 2) + Fraction(1, 10**6)
    assert -1 < columns[-1] - (len(columns) - 1) * step <= Fraction(1, 2) + Fraction(1, 10**6)
    assert columns[-1] + extent <= length + Fraction(2, 100)
    assert len(columns) * step + extent > length
    assert grid.x.dtype == grid.y.dtype == np.int64


def test_rows_follow_each_other():
    grid = lay_grid((1000, 700), (0.5, 0.5), mpp=0.5, size=300, stride=300)
    assert grid.x.tolist() == [0, 300, 600] * 2
    assert grid.y.tolist() == [0, 0, 0, 300, 300, 300]


def test_rounding_up_does_not_push_a_tile_out():
    # Two tiles of 513.5 px fill 1,027 px exactly; the second begins at 513.5.
    grid = lay_grid((1027, 514), (1.0, 1.0), mpp=1.027, size=500, stride=500)
    assert grid.x.tolist() == [0, 513]
    assert math.isclose(grid.level0_width, 513.5)


@pytest.mark.parametrize("wrong", [{"mpp": 0.0}, {"mpp": float("nan")}, {"size": 0}, {"stride": 0}])
def test_numbers_that_are_none_are_named(wrong):
    arguments = {"mpp": 0.5, "size": 256, "stride": 256} | wrong
    with pytest.raises(EosinError, match=f"^{next(iter(wrong))}: "):
        lay_grid((1000, 1000), (0.5, 0.5), **arguments)
    with pytest.raises(EosinError, match="^slide mpp: "):
        lay_grid((1000, 1000), (0.5, 0.0), mpp=0.5, size=256, stride=256)
