"""Crop boxes follow torchvision's law; the batched crop equals torchvision's resized_crop."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as classic
from torchvision.transforms.v2 import functional as v2

from eosin.augment import geometry
from eosin.augment.geometry import Flip, Rotate90, crop_boxes, field_boxes, resized_crop
from eosin.core.draws import Draws


def plain_box(u, height, width, scale, ratio):
    """torchvision's loop, one image, fed with given draws."""
    area = height * width
    for attempt in range(10):
        target = area * (scale[0] + (scale[1] - scale[0]) * u[attempt])
        log_ratio = math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * u[10 + attempt]
        aspect = math.exp(log_ratio)
        w = round(math.sqrt(target * aspect))
        h = round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            return [int(u[20] * (height - h + 1)), int(u[21] * (width - w + 1)), h, w]
    if width / height < ratio[0]:
        w, h = width, round(width / ratio[0])
    elif width / height > ratio[1]:
        w, h = round(height * ratio[1]), height
    else:
        w, h = width, height
    return [(height - h) // 2, (width - w) // 2, h, w]


@given(
    height=st.integers(2, 300),
    width=st.integers(2, 300),
    low=st.floats(0.01, 1.0),
    high=st.floats(0.01, 1.0),
    narrow=st.floats(0.3, 1.0),
    seed=st.integers(0, 99),
)
def test_boxes_equal_the_plain_loop(height, width, low, high, narrow, seed):
    scale, ratio = (min(low, high), max(low, high)), (narrow, 1 / narrow)
    uniforms = Draws(seed, 0, np.arange(8)).uniform("crop", 22)
    boxes = crop_boxes(uniforms, height, width, scale, ratio)
    assert boxes.tolist() == [plain_box(row, height, width, scale, ratio) for row in uniforms.tolist()]
    top, left, h, w = boxes.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (h >= 1).all()
    assert (w >= 1).all()
    assert (top + h <= height).all()
    assert (left + w <= width).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1)])
def test_boxes_of_degenerate_tiles_hold_a_pixel(size):
    boxes = crop_boxes(Draws(0, 0, np.arange(50)).uniform("crop", 22), *size, (0.2, 1.0), (3 / 4, 4 / 3))
    assert (boxes[:, 2:] >= 1).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= np.array(size)).all()


def test_boxes_are_distributed_as_torchvision_draws_them():
    scale, ratio, n = (0.2, 1.0), (3 / 4, 4 / 3), 3000
    torch.manual_seed(0)
    image = torch.zeros(3, 128, 128)
    theirs = np.array([RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(n)])
    ours = crop_boxes(Draws(1, 2, np.arange(n)).uniform("crop", 22), 128, 128, scale, ratio)
    for measure in (lambda b: b[:, 2] * b[:, 3], lambda b: b[:, 3] / b[:, 2], lambda b: b[:, 0], lambda b: b[:, 1]):
        assert stats.ks_2samp(measure(ours), measure(theirs)).pvalue > 0.001


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [96, 40, 200])
def test_resized_crop_equals_torchvision(interpolation, size):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 3, 130, 117), dtype=torch.uint8, generator=generator)
    boxes = crop_boxes(Draws(3, 0, np.arange(6)).uniform("crop", 22), 130, 117, (0.1, 1.0), (3 / 4, 4 / 3))
    ours = resized_crop(images, boxes, size, interpolation)
    mode = InterpolationMode(interpolation)
    for image, box, crop in zip(images, boxes.tolist(), ours, strict=True):
        assert torch.equal(crop, v2.resized_crop(image, *box, [size, size], interpolation=mode, antialias=True))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resized_crop_is_near_torchvisions_float_path(interpolation):
    """Rounding both passes to 8 bits costs at most 1.5 grey levels where the cubic does not overshoot the range."""
    coarse = torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(0)) * 150 + 50
    images = torch.nn.functional.interpolate(coarse, size=(130, 117), mode="bilinear").round().byte()
    boxes = crop_boxes(Draws(3, 0, np.arange(4)).uniform("crop", 22), 130, 117, (0.1, 1.0), (3 / 4, 4 / 3))
    mode = InterpolationMode(interpolation)
    for image, box, crop in zip(images, boxes.tolist(), resized_crop(images, boxes, 96, interpolation), strict=True):
        exact = classic.resized_crop(image.float(), *box, [96, 96], interpolation=mode, antialias=True)
        assert (crop.float() - exact).abs().max() <= 1.5


def filter_matrix(inputs, outputs, cubic):
    """Antialiased resampling weights written out from the filter's definition, one output at a time."""
    ratio = inputs / outputs
    stretch = max(ratio, 1.0)
    support = (2.0 if cubic else 1.0) * stretch
    matrix = np.zeros((outputs, inputs))
    for out in range(outputs):
        center = (out + 0.5) * ratio
        for index in range(max(0, int(center - support + 0.5)), min(inputs, int(center + support + 0.5))):
            x = abs((index + 0.5 - center) / stretch)
            if not cubic:
                weight = max(0.0, 1.0 - x)
            elif x < 1:
                weight = 1.5 * x**3 - 2.5 * x**2 + 1
            elif x < 2:
                weight = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
            else:
                weight = 0.0
            matrix[out, index] = weight
    return matrix / matrix.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resized_crop_equals_the_filter_written_out(interpolation):
    image = torch.randint(0, 256, (1, 3, 90, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    box = np.array([[7, 3, 71, 60]])
    cubic = interpolation == "bicubic"
    rows, columns = filter_matrix(71, 32, cubic), filter_matrix(60, 32, cubic)
    across = np.clip(np.rint(image[0, :, 7:78, 3:63].double().numpy() @ columns.T), 0, 255)
    expected = np.clip(np.rint(rows @ across), 0, 255)
    ours = resized_crop(image, box, 32, interpolation)[0].double().numpy()
    # Fixed-point weights turn a rounding here and there.
    assert np.abs(ours - expected).max() <= 1.0
    assert (ours != expected).mean() < 0.05


@given(
    horizontal=st.lists(st.booleans(), min_size=1, max_size=6),
    seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.uint8, torch.float32]),
)
def test_flips_mirror_the_chosen_images_only(horizontal, seed, dtype):
    n = len(horizontal)
    vertical = np.random.default_rng(seed).random(n) < 0.5
    images = (torch.rand(n, 3, 5, 7, generator=torch.Generator().manual_seed(seed)) * 255).to(dtype)
    flipped = Flip(0.5, 0.5).apply(images.clone(), {"horizontal": np.array(horizontal), "vertical": vertical})
    for image, result, across, down in zip(images, flipped, horizontal, vertical, strict=True):
        expected = classic.hflip(image) if across else image
        assert torch.equal(result, classic.vflip(expected) if down else expected)


def test_flips_have_their_probabilities():
    drawn = Flip(0.3, 0.8).sample(Draws(0, 0, np.arange(4000)), torch.zeros(4000, 3, 1, 1))
    assert stats.binomtest(int(drawn["horizontal"].sum()), 4000, 0.3).pvalue > 0.001
    assert stats.binomtest(int(drawn["vertical"].sum()), 4000, 0.8).pvalue > 0.001
    assert abs(np.corrcoef(drawn["horizontal"], drawn["vertical"])[0, 1]) < 0.06


@given(turns=st.lists(st.integers(0, 3), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_quarter_turns_are_numpys(turns, seed):
    images = np.random.default_rng(seed).integers(0, 256, (len(turns), 3, 12, 12), dtype=np.uint8)
    turned = Rotate90(1.0).apply(torch.from_numpy(images.copy()), {"quarters": np.array(turns)}).numpy()
    for row, number in enumerate(turns):
        np.testing.assert_array_equal(turned[row], np.rot90(images[row], number, (1, 2)))


def test_quarter_turns_are_equally_likely_and_have_their_probability():
    images = torch.zeros(20_000, 3, 2, 2)
    quarters = Rotate90(0.6).sample(Draws(0, 0, range(20_000)), images)["quarters"]
    shares = np.bincount(quarters, minlength=4) / len(quarters)
    np.testing.assert_allclose(shares, [0.4, 0.2, 0.2, 0.2], atol=0.01)


@given(seed=st.integers(0, 999), low=st.floats(5, 100), factor=st.floats(1, 3), mpp=st.floats(0.1, 2))
def test_fields_of_view_have_their_size_in_micrometres(seed, low, factor, mpp):
    fields = (low, low * factor)
    uniforms = np.random.default_rng(seed).random((50, 22))
    boxes = field_boxes(uniforms, 256, 256, fields, np.full(50, mpp), (3 / 4, 4 / 3))
    assert (boxes >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= 256).all()
    fits = fields[1] * np.sqrt(4 / 3) / mpp <= 256 and fields[0] / mpp >= 4
    if fits:
        sides = np.sqrt(boxes[:, 2] * boxes[:, 3]) * mpp
        # Boxes are whole pixels: each side is off by half a pixel at most.
        assert (sides >= fields[0] - mpp).all()
        assert (sides <= fields[1] + mpp).all()


def test_tiles_of_two_resolutions_show_equally_large_tissue():
    uniforms = np.random.default_rng(0).random((2, 22))[[0, 0]]
    fine, coarse = field_boxes(uniforms, 512, 512, (60.0, 60.0), np.array([0.25, 0.5]), (1.0, 1.0))
    assert tuple(fine[2:]) == (240, 240)
    assert tuple(coarse[2:]) == (120, 120)


def test_a_tile_smaller_than_the_field_is_taken_whole():
    boxes = field_boxes(np.random.default_rng(0).random((3, 22)), 64, 64, (500.0, 600.0), np.full(3, 0.5), (0.75, 1.3))
    assert (boxes == [0, 0, 64, 64]).all()


def test_a_field_of_less_than_a_pixel_is_not_taken_for_one_that_does_not_fit():
    boxes = field_boxes(np.random.default_rng(0).random((3, 22)), 64, 64, (1e-9, 0.3), np.full(3, 1.0), (0.75, 1.3))
    assert (boxes[:, 2:] == 1).all()


def test_a_field_of_view_needs_resolutions():
    crop = geometry.RandomResizedCrop(16, (0.2, 1.0), (1.0, 1.0), "bilinear", (20.0, 30.0))
    for mpp in (None, np.array([0.5, np.nan]), np.array([0.5, 0.0])):
        with pytest.raises(ValueError, match="needs the µm/px of every tile"):
            crop.sample(Draws(0, 0, range(2)), torch.zeros(2, 3, 64, 64), mpp)
