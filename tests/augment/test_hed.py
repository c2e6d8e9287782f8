"""HED jitter: against its formula in float64, against scikit-image where that does not clamp, and by what it keeps."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from skimage.color import hed2rgb, rgb2hed

from eosin.augment.hed import (
    DARKEST,
    RGB_FROM_HED,
    HEDJitter,
    HEDJitterConfig,
    _combine_written_out,
    combine,
    hed_jitter,
)
from eosin.core.draws import Draws
from eosin.core.errors import EosinError

pytestmark = pytest.mark.usefixtures("computed")


def random_images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def stained(count, seed=0, low=0.05, high=0.8):
    """Images that are mixtures of positive amounts of the three stains, and the amounts: float64 [B, H, W, 3]."""
    amounts = np.random.default_rng(seed).uniform(low, high, (count, 12, 9, 3))
    images = torch.from_numpy(np.exp(-amounts @ RGB_FROM_HED)).permute(0, 3, 1, 2).float()
    return images.contiguous(), amounts


def plain_jitter(image, alpha, beta):
    """One [3, H, W] image in float64, pixel by pixel, by way of the stains."""
    unmix = np.linalg.inv(RGB_FROM_HED)
    result = np.zeros(image.shape)
    for y in range(image.shape[1]):
        for x in range(image.shape[2]):
            density = -np.log(image[:, y, x])
            amounts = alpha * (density @ unmix) + beta
            result[:, y, x] = np.exp(-(amounts @ RGB_FROM_HED))
    return np.clip(result, 0, 1)


def test_jitter_equals_the_formula_in_float64():
    random = np.random.default_rng(0)
    images = random_images(4, 3, 7, 5).clamp(min=DARKEST)
    alpha, beta = random.uniform(0.5, 1.5, (4, 3)), random.uniform(-0.5, 0.5, (4, 3))
    expected = [plain_jitter(image.double().numpy(), a, b) for image, a, b in zip(images, alpha, beta, strict=True)]
    np.testing.assert_allclose(hed_jitter(images, alpha, beta).numpy(), np.stack(expected), atol=3e-6)


def test_jitter_equals_scikit_image_where_that_does_not_clamp():
    random = np.random.default_rng(1)
    images, _ = stained(3, low=0.15)
    alpha, beta = random.uniform(0.8, 1.2, (3, 3)), random.uniform(-0.1, 0.1, (3, 3))
    expected = []
    for image, a, b in zip(images, alpha, beta, strict=True):
        amounts = rgb2hed(image.permute(1, 2, 0).double().numpy())
        changed = amounts * a + b / math.log(1e6)
        assert amounts.min() > 0
        assert changed.min() > 0
        expected.append(hed2rgb(changed).transpose(2, 0, 1))
    np.testing.assert_allclose(hed_jitter(images, alpha, beta).numpy(), np.stack(expected), atol=3e-6)


def test_units_are_those_the_table_gives():
    gray = torch.full((1, 3, 1, 1), 0.5)
    # scikit-image's +0.05 on hematoxylin multiplies red by 0.64.
    change = hed_jitter(gray, [[1, 1, 1]], [[0.05 * math.log(1e6), 0, 0]])[0, 0] / 0.5
    assert change.item() == pytest.approx(0.638, abs=1e-3)
    # A small Tellez shift at half gray moves all three channels as five times that shift does here.
    small = 1e-3
    shift = np.array([small, -0.5 * small, 0.3 * small])
    old = np.exp(np.log(2.5) - shift @ RGB_FROM_HED) - 2
    ours = hed_jitter(gray, [[1, 1, 1]], [5 * shift])[0, :, 0, 0]
    np.testing.assert_allclose(ours.numpy() - 0.5, old - 0.5, rtol=5e-3)


def test_no_strength_changes_no_bit():
    images = random_images(3, 3, 9, 4)
    images[0, :, :2] = 0.0
    images[1, :, :2] = 1.0
    assert torch.equal(hed_jitter(images, np.ones((3, 3)), np.zeros((3, 3))), images)


@given(alpha=st.lists(st.floats(0.0, 3.0), min_size=3, max_size=3))
def test_white_stays_white_and_black_black_when_stains_are_scaled(alpha):
    images = torch.stack([torch.ones(3, 2, 2), torch.zeros(3, 2, 2)])
    assert torch.equal(hed_jitter(images, [alpha, alpha], np.zeros((2, 3))), images)


@pytest.mark.parametrize("stain", [0, 1, 2])
def test_more_of_a_stain_is_darker(stain):
    images, amounts = stained(2)
    alpha, beta = np.ones((2, 3)), np.zeros((2, 3))
    alpha[:, stain], beta[:, stain] = 1.2, 0.1
    assert (amounts[..., stain] > 0).all()
    for changed in (hed_jitter(images, alpha, np.zeros((2, 3))), hed_jitter(images, np.ones((2, 3)), beta)):
        assert (changed < images).all()
    for changed in (hed_jitter(images, 2 - alpha, np.zeros((2, 3))), hed_jitter(images, np.ones((2, 3)), -beta)):
        assert (changed > images).all()


@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    size=st.sampled_from([0.0, 0.3, 5.0, 1e3, 1e12, 1e30]),
    seed=st.integers(0, 100),
)
def test_any_parameters_give_pixels(height, width, size, seed):
    random = np.random.default_rng(seed)
    images = random_images(5, 3, height, width, seed=seed)
    images[1], images[2], images[3] = 0.0, 1.0, images[3, :, :1, :1]
    before = images.clone()
    alpha, beta = 1 + size * random.uniform(-1, 1, (5, 3)), size * random.uniform(-1, 1, (5, 3))
    changed = hed_jitter(images, alpha, beta)
    assert torch.equal(images, before)
    assert changed.shape == images.shape
    assert changed.dtype == torch.float32
    assert torch.isfinite(changed).all()
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert torch.equal(changed, hed_jitter(images, alpha, beta))
    for row in range(5):
        assert torch.equal(
            changed[row : row + 1], hed_jitter(images[row : row + 1], alpha[row : row + 1], beta[row : row + 1])
        )


def test_large_batches_are_as_single_images():
    images = random_images(3, 3, 150, 131)
    random = np.random.default_rng(3)
    alpha, beta = random.uniform(0.9, 1.1, (3, 3)), random.uniform(-0.3, 0.3, (3, 3))
    alone = [hed_jitter(images[i : i + 1], alpha[i : i + 1], beta[i : i + 1]) for i in range(3)]
    assert torch.equal(hed_jitter(images, alpha, beta), torch.cat(alone))


def test_both_ways_to_combine_planes_agree():
    planes, weights = random_images(4, 3, 37, seed=1) * 4 - 2, random_images(4, 2, 3, seed=2) - 0.5
    expected = np.einsum("bkc,bcn->bkn", weights.double().numpy(), planes.double().numpy())
    for way in (combine, _combine_written_out):
        np.testing.assert_allclose(way(planes, weights, torch.empty(4, 2, 37)).numpy(), expected, atol=1e-6)


def test_parameters_are_drawn_by_the_law_and_touch_only_the_chosen():
    operation = HEDJitter(HEDJitterConfig(probability=0.3, alpha=0.2, beta=0.5))
    images = random_images(2000, 3, 2, 2)
    parameters = operation.sample(Draws(seed=4, step=1, positions=range(2000)), images)
    assert parameters["on"].mean() == pytest.approx(0.3, abs=0.04)
    for name, low, width in (("alpha", 0.8, 0.4), ("beta", -0.5, 1.0)):
        assert parameters[name].shape == (2000, 3)
        assert stats.kstest(parameters[name].ravel(), "uniform", args=(low, width)).pvalue > 1e-3
    both = np.concatenate([parameters["alpha"], parameters["beta"]], axis=1)
    assert np.abs(np.corrcoef(both.T) - np.eye(6)).max() < 0.1
    changed = operation.apply(images.clone(), parameters)
    on = torch.from_numpy(parameters["on"])
    assert torch.equal(changed[~on], images[~on])
    assert torch.equal(changed[on], hed_jitter(images, parameters["alpha"], parameters["beta"])[on])
    assert (changed[on] != images[on]).flatten(1).any(1).all()


def test_draws_depend_on_the_position_alone():
    operation = HEDJitter(HEDJitterConfig(probability=0.5))
    images = random_images(4, 3, 1, 1)
    together = operation.sample(Draws(1, 2, [5, 6, 7, 8]), images)
    alone = operation.sample(Draws(1, 2, [7]), images[:1])
    for name, values in alone.items():
        np.testing.assert_array_equal(together[name][2:3], values)


@pytest.mark.parametrize("bad", [np.ones((2, 2)), np.ones(3), np.full((2, 3), np.nan), np.full((2, 3), np.inf)])
@pytest.mark.parametrize("name", ["alpha", "beta"])
def test_parameters_of_another_shape_or_not_finite_are_refused(name, bad):
    values = {"alpha": np.ones((2, 3)), "beta": np.zeros((2, 3))} | {name: bad}
    with pytest.raises(ValueError, match=f"^{name}: expected finite values"):
        hed_jitter(torch.rand(2, 3, 4, 4), **values)


@pytest.mark.parametrize("field", ["alpha", "beta", "probability"])
def test_strengths_out_of_range_are_refused(field):
    with pytest.raises(EosinError, match=f"r: field '{field}'"):
        HEDJitterConfig.parse({field: -0.1}, "r")
