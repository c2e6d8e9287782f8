"""The blur is a Gaussian: against a direct sum, torchvision with the same kernel, and Pillow within its approximation."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from scipy import stats
from torchvision.transforms.v2 import functional as v2

from eosin.augment.blur import BlurConfig, GaussianBlur, gaussian_blur
from eosin.core.draws import Draws


def mirrored(index, size):
    """Reflect an index at the centers of the edge pixels until it lies inside."""
    if size == 1:
        return 0
    while not 0 <= index < size:
        index = -index if index < 0 else 2 * (size - 1) - index
    return index


def plain_blur(image, sigma, radius):
    """Direct double sum over one [C, H, W] image in float64."""
    kernel = [math.exp(-0.5 * (tap / sigma) ** 2) for tap in range(-radius, radius + 1)]
    total = sum(kernel)
    for axis in (1, 2):
        size = image.shape[axis]
        result = np.zeros_like(image)
        for position in range(size):
            for tap, weight in zip(range(-radius, radius + 1), kernel, strict=True):
                source = np.take(image, mirrored(position + tap, size), axis=axis)
                if axis == 1:
                    result[:, position] += weight / total * source
                else:
                    result[:, :, position] += weight / total * source
        image = result
    return image


@settings(max_examples=25)
@given(
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    sigmas=st.lists(st.floats(0.05, 4.0), min_size=1, max_size=3),
    radius=st.integers(1, 12),
)
def test_blur_equals_the_direct_sum(height, width, sigmas, radius):
    images = torch.rand(len(sigmas), 2, height, width, generator=torch.Generator().manual_seed(height))
    ours = gaussian_blur(images, torch.tensor(sigmas), radius)
    expected = [plain_blur(image.double().numpy(), sigma, radius) for image, sigma in zip(images, sigmas, strict=True)]
    np.testing.assert_allclose(ours.numpy(), np.stack(expected), atol=2e-6)


@pytest.mark.parametrize("shape", [(96, 96), (224, 130), (97, 143), (49, 211)])
def test_blur_equals_torchvision_with_the_same_kernel(shape):
    images = torch.rand(3, 3, *shape, generator=torch.Generator().manual_seed(0))
    sigmas = [0.1, 0.9, 2.0]
    ours = gaussian_blur(images, torch.tensor(sigmas), 6)
    for image, sigma, result in zip(images, sigmas, ours, strict=True):
        torch.testing.assert_close(result, v2.gaussian_blur(image, [13, 13], [sigma, sigma]), rtol=0, atol=2e-6)


@pytest.mark.parametrize("sigma", [0.7, 1.3, 2.0])
def test_pillow_is_near(sigma):
    coarse = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    image = torch.nn.functional.interpolate(coarse, size=(96, 96), mode="bilinear")
    image = (image * 255).round() / 255
    picture = Image.fromarray((image[0].permute(1, 2, 0) * 255).byte().numpy())
    theirs = torch.from_numpy(np.array(picture.filter(ImageFilter.GaussianBlur(sigma)))).permute(2, 0, 1) / 255
    ours = gaussian_blur(image, torch.tensor([sigma]), 6)[0]
    inner = (slice(None), slice(8, -8), slice(8, -8))
    assert (ours[inner] - theirs[inner]).abs().mean() < 2 / 255


def test_blur_in_place_equals_a_copy():
    images = torch.rand(3, 3, 50, 131, generator=torch.Generator().manual_seed(0))
    sigmas = torch.tensor([0.5, 1.0, 2.0])
    expected = gaussian_blur(images, sigmas, 6)
    assert torch.equal(gaussian_blur(images, sigmas, 6, out=images), expected)
    assert torch.equal(images, expected)


def test_sigma_is_uniform_and_the_rest_untouched():
    blur = GaussianBlur(BlurConfig(probability=0.5, sigma=(0.1, 2.0)))
    assert blur.radius == 6
    sigma = blur.sample(Draws(0, 0, np.arange(4000)), torch.zeros(4000, 3, 1, 1))["sigma"]
    assert stats.binomtest(int((sigma > 0).sum()), 4000, 0.5).pvalue > 0.001
    assert stats.kstest(sigma[sigma > 0], stats.uniform(0.1, 1.9).cdf).pvalue > 0.001
    images = torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    blurred = blur.apply(images.clone(), {"sigma": np.array([0.0, 1.5, 0.0, 0.7])})
    assert torch.equal(blurred[[0, 2]], images[[0, 2]])
    assert (blurred[[1, 3]] - images[[1, 3]]).abs().amax(dim=(1, 2, 3)).min() > 0.05
