"""Resampling against plain loops over a matrix of weights, in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eosin.slides.resample import resample_area, resample_linear


def area_matrix(start: float, step: float, count: int, size: int) -> np.ndarray:
    weights = np.zeros((count, size))
    for i in range(count):
        low, high = start + i * step, start + (i + 1) * step
        for j in range(size):
            weights[i, j] = max(0.0, min(high, j + 1) - max(low, j))
        if weights[i].sum() < 1e-9:
            weights[i, 0 if low < size / 2 else -1] = 1
        weights[i] /= weights[i].sum()
    return weights


def linear_matrix(start: float, step: float, count: int, size: int) -> np.ndarray:
    weights = np.zeros((count, size))
    for i in range(count):
        center = min(max(start + (i + 0.5) * step - 0.5, 0), size - 1)
        left = int(np.floor(center))
        right = min(left + 1, size - 1)
        weights[i, left] += 1 - (center - left)
        weights[i, right] += center - left
    return weights


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def assert_rounded(got: np.ndarray, exact: np.ndarray) -> None:
    """Equal to the exact value rounded half up, save where float32 cannot tell on which side of a half it lies."""
    assert got.dtype == np.uint8
    near_half = np.abs(exact - np.floor(exact) - 0.5) < 2e-4
    assert np.all((got == np.floor(exact + 0.5)) | (near_half & (np.abs(got - exact) < 0.501)))


steps = st.one_of(st.floats(1, 9), st.sampled_from([1.0, 2.0, 3.0, 4.0, 8.0, 1.5, 2.0039]))


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    steps,
    steps,
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(0, 99),
)
def test_area_is_the_weighted_mean(width, height, step_x, step_y, share_x, share_y, seed):
    size = 48
    pixels = noise(size, size, seed)
    width, height = min(width, int(size / step_x)), min(height, int(size / step_y))
    x0, y0 = share_x * (size - width * step_x), share_y * (size - height * step_y)
    rows, columns = area_matrix(y0, step_y, height, size), area_matrix(x0, step_x, width, size)
    exact = np.einsum("ij,jkc,lk->ilc", rows, pixels.astype(np.float64), columns)
    assert_rounded(resample_area(pixels, x0, y0, step_x, step_y, width, height), exact)


@given(st.floats(-20, 50), st.floats(1, 6), st.integers(1, 30))
def test_what_lies_outside_does_not_count(start, step, count):
    pixels = noise(1, 37)
    exact = np.einsum("ij,kjc->kic", area_matrix(start, step, count, 37), pixels.astype(np.float64))
    assert_rounded(resample_area(pixels, start, 0, step, 1, count, 1), exact)


@given(st.floats(0, 4), st.floats(0.95, 1), st.integers(1, 30))
def test_finer_pixels_are_interpolated_between_centers(start, step, count):
    pixels = noise(5, 37)
    exact = np.einsum("ij,kjc->kic", linear_matrix(start, step, count, 37), pixels.astype(np.float64))
    assert_rounded(resample_linear(pixels, start, 0, step, 1, count, 5), exact)


@given(st.integers(0, 255), st.floats(1, 20), st.floats(-3, 3), st.integers(1, 40))
def test_a_constant_image_stays_constant(value, step, start, count):
    pixels = np.full((30, 41, 3), value, np.uint8)
    assert np.all(resample_area(pixels, start, 0.3, step, 1.7, count, 9) == value)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 5), st.integers(0, 5))
def test_whole_steps_from_whole_offsets_are_block_means(kx, ky, left, top):
    pixels = noise(64, 64, kx)
    width, height = (64 - left) // kx, (64 - top) // ky
    blocks = pixels[top : top + height * ky, left : left + width * kx].reshape(height, ky, width, kx, 3)
    total = blocks.astype(np.int64).sum((1, 3))
    halves_up = (2 * total + kx * ky) // (2 * kx * ky)
    np.testing.assert_array_equal(resample_area(pixels, left, top, kx, ky, width, height), halves_up)


def test_large_whole_steps_are_block_means():
    pixels = noise(512, 768)
    total = pixels.astype(np.int64).reshape(2, 256, 3, 256, 3).sum((1, 3))
    np.testing.assert_array_equal(resample_area(pixels, 0, 0, 256, 256, 3, 2), (2 * total + 65536) // (2 * 65536))


def test_whole_and_general_steps_agree():
    pixels = noise(96, 96)
    whole = resample_area(pixels, 0, 0, 3, 3, 32, 32).astype(int)
    nearly = resample_area(pixels, 1e-7, 0, 3, 3, 31, 32).astype(int)
    assert np.abs(whole[:, :31] - nearly).max() <= 1
    assert (whole[:, :31] != nearly).mean() < 0.01


def test_step_one_at_offset_zero_is_a_copy():
    pixels = noise(20, 30)
    same = resample_area(pixels, 0, 0, 1, 1, 30, 20)
    np.testing.assert_array_equal(same, pixels)
    assert not np.shares_memory(same, pixels)


@pytest.mark.parametrize("step", [1.0, 1.002, 1.37, 2.0, 2.5, 3.3, 16.03])
def test_a_ramp_stays_a_ramp_without_a_shift(step):
    """The mean of a line over an interval is its value at the interval's center."""
    ramp = (np.arange(600) * 0.4).astype(np.float64)
    pixels = np.repeat(np.round(ramp).astype(np.uint8)[None, :, None], 3, axis=2)
    count = int((600 - 0.7) / step)
    got = resample_area(pixels, 0.7, 0, step, 1, count, 1)[0, :, 0]
    center = 0.7 + (np.arange(count) + 0.5) * step
    assert np.abs(got - 0.4 * (center - 0.5)).max() <= 1.0


def test_the_mean_is_kept():
    pixels = noise(75, 90)
    got = resample_area(pixels, 0, 0, 90 / 36, 75 / 30, 36, 30)
    assert abs(got.mean() - pixels.mean()) < 0.1


def test_one_bright_pixel_spreads_over_what_covers_it():
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[17, 23] = 255
    got = resample_area(pixels, 0, 0, 1.25, 1.6, 32, 25).astype(float)
    assert got[..., 0].sum() * 1.25 * 1.6 == pytest.approx(255, abs=8)
    rows, columns = np.nonzero(got[..., 0])
    assert set(rows) == {10, 11}
    assert set(columns) == {18, 19}
