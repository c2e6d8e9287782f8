from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from eosin.data import open_tiles
from eosin.describe.sharpness import BLURRED, detail_factor, sharpness


def gray(pixels):
    return np.asarray(Image.fromarray(pixels).convert("L"))


def blurred(image, sigma):
    return np.clip(np.rint(gaussian_filter(image.astype(float), sigma)), 0, 255).astype(np.uint8)


def plain(image, factor):
    """The definition, with loops."""

    def averaged(values, by):
        height, width = values.shape[0] // by, values.shape[1] // by
        return np.array(
            [[values[y * by : y * by + by, x * by : x * by + by].mean() for x in range(width)] for y in range(height)]
        )

    def detail(values):
        height, width = values.shape
        inner = [
            4 * values[y, x] - values[y - 1, x] - values[y + 1, x] - values[y, x - 1] - values[y, x + 1]
            for y in range(1, height - 1)
            for x in range(1, width - 1)
        ]
        return float(np.mean(np.square(inner)))

    levels = [averaged(image.astype(float), factor)]
    while len(levels) < 4:
        levels.append(averaged(levels[-1], 2))
    energies = [detail(level) for level in levels if min(level.shape) >= 8]
    return min(fine / coarse for fine, coarse in itertools.pairwise(energies))


def test_it_is_the_definition(tissue):
    for pixels in tissue[:3]:
        image = gray(pixels)[:90, :93]
        assert sharpness(image, 2) == pytest.approx(plain(image, 2), rel=1e-4)


def test_blur_lowers_it_and_contrast_does_not(tissue):
    for pixels in tissue:
        image = gray(pixels)
        sharp = sharpness(image, 2)
        pale = (128 + (image.astype(float) - 128) / 2).round().astype(np.uint8)
        assert sharpness(pale, 2) == pytest.approx(sharp, rel=0.05)
        assert sharp > BLURRED > sharpness(blurred(image, 3.0), 2)


def test_heavy_blur_is_blur_too(tissue):
    large = np.concatenate([np.concatenate([gray(pixels) for pixels in tissue[:4]], axis=1)] * 4)
    assert all(sharpness(blurred(large, sigma), 2) < BLURRED for sigma in (2, 4, 6, 9))


def test_without_detail_or_room_it_is_unknown():
    assert math.isnan(sharpness(np.full((64, 64), 200, dtype=np.uint8), 2))
    noise = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    assert math.isnan(sharpness(noise, 2))


def test_the_finest_detail_is_a_micrometer_where_tiles_have_the_room():
    assert detail_factor(0.5, 224) == detail_factor(math.nan, 224) == detail_factor(2.0, 224) == 2
    assert detail_factor(0.25, 224) == 4
    assert detail_factor(0.2, 1024) == 5
    assert detail_factor(0.05, 128) == 4
    assert detail_factor(-1.0, 224) == detail_factor(math.inf, 224) == 2


def test_on_real_tissue_a_blur_of_two_pixels_is_seen_and_sharp_tiles_pass(real_data):
    found = {0: [], 1: [], 2: []}
    for source in (real_data / "oral" / "index.csv", real_data / "crc"):
        tiles = open_tiles(source)
        for row in np.linspace(0, len(tiles) - 1, 60).round().astype(int).tolist():
            image = gray(np.ascontiguousarray(tiles.image(row).transpose(1, 2, 0)))
            for sigma, values in found.items():
                values.append(sharpness(blurred(image, sigma) if sigma else image, 2))
    shares = {sigma: float(np.mean(np.array(values) < BLURRED)) for sigma, values in found.items()}
    assert shares[2] > 0.92
    assert shares[0] < 0.03
    assert shares[1] < 0.06
