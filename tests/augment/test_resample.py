"""All boxes at once, by matrix products, equal torch's antialiased kernels box by box."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eosin.augment.geometry import resized_crop
from eosin.augment.resample import resample_boxes


def random_boxes(generator, count, height, width):
    heights, widths = generator.integers(1, height + 1, count), generator.integers(1, width + 1, count)
    tops = [generator.integers(0, height - value + 1) for value in heights]
    lefts = [generator.integers(0, width - value + 1) for value in widths]
    return np.stack([tops, lefts, heights, widths], axis=1)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@given(
    seed=st.integers(0, 2**16),
    height=st.integers(8, 90),
    width=st.integers(8, 90),
    size=st.integers(2, 100),
)
def test_equals_torch_box_by_box(interpolation, seed, height, width, size):
    generator = np.random.default_rng(seed)
    images = torch.from_numpy(generator.integers(0, 256, (4, 3, height, width), dtype=np.uint8))
    boxes = random_boxes(generator, 4, height, width)
    ours = resample_boxes(images, boxes, size, interpolation).int()
    torchs = resized_crop(images, boxes, size, interpolation).int()
    assert ours.shape == torchs.shape
    assert (ours - torchs).abs().max() <= 2
    # torch's weights are fixed-point, ours are not: a tenth of the values may fall on the other side of a half.
    assert ((ours - torchs).abs() > 0).float().mean() < 0.15


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_box_of_the_results_size_is_cut_out(interpolation):
    images = torch.randint(0, 256, (2, 3, 40, 50), dtype=torch.uint8)
    boxes = np.array([[3, 5, 32, 32], [8, 18, 32, 32]])
    crops = resample_boxes(images, boxes, 32, interpolation)
    for row, (top, left, height, width) in enumerate(boxes):
        assert torch.equal(crops[row], images[row, :, top : top + height, left : left + width])


def test_a_result_of_one_pixel_is_the_mean_of_what_the_filter_sees():
    images = torch.randint(0, 256, (3, 3, 20, 20), dtype=torch.uint8)
    boxes = np.array([[0, 0, 20, 20], [5, 5, 1, 1], [2, 3, 7, 9]])
    crops = resample_boxes(images, boxes, 1, "bilinear")
    assert crops.shape == (3, 3, 1, 1)
    assert torch.equal(crops[1, :, 0, 0], images[1, :, 5, 5])


def test_an_image_does_not_depend_on_its_neighbours():
    images = torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8)
    boxes = random_boxes(np.random.default_rng(0), 5, 64, 64)
    together = resample_boxes(images, boxes, 24, "bicubic")
    alone = torch.cat([resample_boxes(images[i : i + 1], boxes[i : i + 1], 24, "bicubic") for i in range(5)])
    assert (together.int() - alone.int()).abs().max() <= 1
