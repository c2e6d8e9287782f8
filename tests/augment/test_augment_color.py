"""Jitter, grayscale and solarize against plain per-pixel code and torchvision's functionals."""

import colorsys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torchvision.transforms.v2 import functional as v2

from eosin.augment.color import (
    ORDERS,
    ColorJitter,
    Grayscale,
    JitterConfig,
    Solarize,
    SolarizeConfig,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
)
from eosin.core.draws import Draws

pytestmark = pytest.mark.usefixtures("computed")

FUNCTIONALS = {
    "brightness": v2.adjust_brightness,
    "contrast": v2.adjust_contrast,
    "saturation": v2.adjust_saturation,
    "hue": v2.adjust_hue,
}
OURS = {
    "brightness": adjust_brightness,
    "contrast": adjust_contrast,
    "saturation": adjust_saturation,
    "hue": adjust_hue,
}


def random_images(n, height, width, seed=0):
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(seed))


def special_images():
    """Edge cases of hue: gray, black, white, primaries, ties between channels, values one rounding step apart."""
    values = [0.0, 0.2, 0.5, float(np.nextafter(np.float32(0.5), np.float32(1))), 1.0]
    triples = torch.tensor([[r, g, b] for r in values for g in values for b in values])
    return triples.T.reshape(1, 3, 5, 25).contiguous()


@pytest.mark.parametrize(
    ("name", "value"),
    [("hue", value) for value in (-0.5, -0.1, 0.0, 0.25, 0.5)]
    + [(name, value) for name in ("brightness", "contrast", "saturation") for value in (0.0, 0.25, 0.6, 1.0, 1.7)],
)
def test_adjustments_equal_torchvision(name, value):
    # Neither shape is a multiple of a vector register.
    for images in (random_images(3, 17, 23), special_images()):
        factors = torch.full((len(images), 1, 1, 1), value)
        expected = torch.stack([FUNCTIONALS[name](image, value) for image in images])
        torch.testing.assert_close(OURS[name](images.clone(), factors), expected, rtol=0, atol=3e-6)


def test_adjustments_take_a_factor_per_image():
    images = random_images(4, 9, 11)
    for name in OURS:
        values = torch.tensor([-0.3, 0.0, 0.2, 0.4] if name == "hue" else [0.2, 0.7, 1.0, 1.6])
        whole = OURS[name](images.clone(), values.view(-1, 1, 1, 1))
        for image, value, result in zip(images, values.tolist(), whole, strict=True):
            torch.testing.assert_close(result, FUNCTIONALS[name](image, value), rtol=0, atol=3e-6)


@given(
    color=st.tuples(*[st.integers(0, 255)] * 3),
    shift=st.floats(-0.5, 0.5),
)
def test_hue_equals_colorsys(color, shift):
    r, g, b = (np.float32(value / 255) for value in color)
    h, s, v = colorsys.rgb_to_hsv(float(r), float(g), float(b))
    expected = colorsys.hsv_to_rgb((h + shift) % 1.0, s, v)
    image = torch.tensor([r, g, b]).view(1, 3, 1, 1)
    ours = adjust_hue(image, torch.tensor(shift, dtype=torch.float32).view(1, 1, 1, 1)).flatten()
    np.testing.assert_allclose(ours.numpy(), expected, atol=5e-6)


def plain_jitter(image, parameters, row, active):
    """One image through torchvision's functionals, in its own order."""
    order = parameters["order"][row]
    if order < 0:
        return image
    for number in ORDERS[order]:
        name = list(FUNCTIONALS)[number]
        if name in active:
            image = FUNCTIONALS[name](image, float(parameters[name][row]))
    return image


@given(
    seed=st.integers(0, 999),
    n=st.integers(1, 9),
    strengths=st.tuples(*[st.sampled_from([0.0, 0.3, 0.8, 1.5])] * 3, st.sampled_from([0.0, 0.1, 0.5])),
    probability=st.sampled_from([0.0, 0.6, 1.0]),
)
def test_jitter_equals_torchvision_image_by_image(seed, n, strengths, probability):
    config = JitterConfig(**dict(zip(FUNCTIONALS, strengths, strict=True)), probability=probability)
    jitter = ColorJitter(config)
    images = random_images(n, 6, 5, seed)
    parameters = jitter.sample(Draws(seed, 1, np.arange(n)), images)
    ours = jitter.apply(images.clone(), parameters)
    active = {name for name, strength in zip(FUNCTIONALS, strengths, strict=True) if strength > 0}
    expected = torch.stack([plain_jitter(image, parameters, row, active) for row, image in enumerate(images)])
    # A hue near gray can turn on the last bit, and a contrast of up to 2.5 widens it.
    torch.testing.assert_close(ours, expected, rtol=0, atol=2e-5)
    assert ours.min() >= -1e-6
    assert ours.max() <= 1 + 1e-6


@pytest.mark.parametrize("strengths", [(0.4, 0.3, 0.2, 0.1), (1.5, 0.0, 1.0, 0.5)])
def test_jitter_draws_by_torchvisions_law(strengths):
    n = 6000
    config = JitterConfig(**dict(zip(FUNCTIONALS, strengths, strict=True)), probability=0.8)
    drawn = ColorJitter(config).sample(Draws(5, 0, np.arange(n)), torch.zeros(n, 3, 1, 1))
    for name, strength in zip(FUNCTIONALS, strengths, strict=True):
        low, high = (-strength, strength) if name == "hue" else (max(0.0, 1 - strength), 1 + strength)
        if strength > 0:
            assert stats.kstest(drawn[name], stats.uniform(low, high - low).cdf).pvalue > 0.001
        else:
            assert (drawn[name] == low).all()
    on = drawn["order"] >= 0
    assert stats.binomtest(int(on.sum()), n, 0.8).pvalue > 0.001
    counts = np.bincount(drawn["order"][on], minlength=24)
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > 0.001
    factors = np.stack([drawn[name] for name in FUNCTIONALS if drawn[name].std() > 0] + [drawn["order"]])
    correlation = np.corrcoef(factors) - np.eye(len(factors))
    assert np.abs(correlation).max() < 0.06


def test_zero_strength_is_the_identity():
    images = random_images(5, 8, 8)
    jitter = ColorJitter(JitterConfig(brightness=0, contrast=0, saturation=0, hue=0, probability=1))
    drawn = jitter.sample(Draws(0, 0, np.arange(5)), images)
    assert torch.equal(jitter.apply(images.clone(), drawn), images)
    for name in OURS:
        neutral = torch.full((5, 1, 1, 1), 0.0 if name == "hue" else 1.0)
        torch.testing.assert_close(OURS[name](images.clone(), neutral), images, rtol=0, atol=1e-6)


def test_grayscale_equals_torchvision_on_the_chosen_images():
    images = random_images(6, 7, 9)
    on = np.array([True, False, True, True, False, False])
    ours = Grayscale(0.5).apply(images.clone(), {"on": on})
    for image, result, chosen in zip(images, ours, on, strict=True):
        expected = v2.rgb_to_grayscale(image, num_output_channels=3) if chosen else image
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)


def test_solarize_equals_torchvision_on_the_chosen_images():
    images = random_images(4, 7, 9)
    on = np.array([True, False, False, True])
    config = SolarizeConfig(probability=0.5)
    ours = Solarize(config).apply(images.clone(), {"on": on})
    for image, result, chosen in zip(images, ours, on, strict=True):
        assert torch.equal(result, v2.solarize(image, config.threshold) if chosen else image)


@pytest.mark.parametrize("operation", [Grayscale(0.2), Solarize(SolarizeConfig(probability=0.2))])
def test_switches_have_their_probability(operation):
    drawn = operation.sample(Draws(0, 0, np.arange(4000)), torch.zeros(4000, 3, 1, 1))
    assert stats.binomtest(int(drawn["on"].sum()), 4000, 0.2).pvalue > 0.001
