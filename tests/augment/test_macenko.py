"""Macenko's stains: equal to torchstain's, found again where they were planted, and nothing where there are none."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats
from torchstain.numpy.augmentors.macenko import NumpyMacenkoAugmentor
from torchstain.numpy.normalizers.macenko import NumpyMacenkoNormalizer

from eosin.augment.macenko import (
    REFERENCE,
    Macenko,
    MacenkoConfig,
    Reference,
    _smallest_direction,
    _smallest_direction_in_closed_form,
    macenko_augment,
    macenko_normalize,
    stain_matrix,
)
from eosin.core.draws import Draws
from eosin.core.errors import EosinError
from eosin.synthetic import render_tile

KINDS = ("tumor", "stroma", "glands", "lymphocytes", "muscle")


def tiles(size=96):
    """uint8 [5, 3, size, size]."""
    drawn = [render_tile(kind, size=size, slide=slide).image for slide, kind in enumerate(KINDS)]
    return torch.from_numpy(np.stack(drawn))


def floats(images):
    return images.to(torch.float32) / 255


def pixels(image):
    """[H, W, 3] array of a [3, H, W] tensor."""
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())


def equal_rounded_down(ours, peer):
    """Whether float [3, H, W] in 0..1 is uint8 [H, W, 3] before rounding down; float32 may land on the other side."""
    difference = np.abs(np.floor(pixels(ours) * 255.0) - peer)
    return difference.max() <= 1 and (difference > 0).mean() < 0.01


def test_normalisation_equals_torchstain():
    images = tiles()
    for image, ours in zip(images, macenko_normalize(floats(images)), strict=True):
        assert equal_rounded_down(ours, NumpyMacenkoNormalizer().normalize(pixels(image), stains=False)[0])


def test_normalisation_equals_torchstain_on_real_tissue(real_data):
    for path in sorted((real_data / "oral").rglob("*.jpg"))[::150]:
        image = torch.from_numpy(np.asarray(Image.open(path).convert("RGB")).copy()).permute(2, 0, 1)
        ours = macenko_normalize(floats(image)[None])[0]
        assert equal_rounded_down(ours, NumpyMacenkoNormalizer().normalize(pixels(image), stains=False)[0]), path


def test_stains_equal_torchstains_and_serve_as_a_reference():
    images = tiles()
    found = stain_matrix(floats(images))
    assert found.found.all()
    for number, image in enumerate(images):
        peer = NumpyMacenkoNormalizer()
        peer.fit(pixels(image))
        np.testing.assert_allclose(found.matrix[number].numpy(), peer.HERef, atol=1e-4)
        np.testing.assert_allclose(found.maximum[number].numpy(), peer.maxCRef, rtol=2e-4)
    peer.fit(pixels(images[0]))
    ours = macenko_normalize(floats(images[1:2]), Reference(found.matrix[0].numpy(), found.maximum[0].numpy()))[0]
    assert equal_rounded_down(ours, peer.normalize(pixels(images[1]), stains=False)[0])


def test_planted_stains_are_found_again():
    random = np.random.default_rng(0)
    planted = np.array([[0.60, 0.75, 0.28], [0.15, 0.95, 0.27]])
    planted /= np.linalg.norm(planted, axis=1, keepdims=True)
    amounts = random.uniform(0.3, 1.2, (200, 200, 2))
    # A twentieth of the tissue is stained by one of the two alone.
    amounts[:10, :, 0], amounts[-10:, :, 1] = 0.0, 0.0
    image = torch.from_numpy((240 * np.exp(-amounts @ planted) - 1) / 255).permute(2, 0, 1)[None].float()
    found = stain_matrix(image)
    np.testing.assert_allclose(found.matrix[0].T.numpy(), planted, atol=1e-3)
    np.testing.assert_allclose(found.maximum[0].numpy(), np.percentile(amounts, 99, axis=(0, 1)), rtol=5e-3)


def test_augmentation_without_the_residual_equals_torchstain():
    image = tiles()[0]
    peer = NumpyMacenkoAugmentor(sigma1=0.3, sigma2=0.2)
    peer.fit(pixels(image))
    np.random.seed(7)  # noqa: NPY002 - torchstain draws from NumPy's global generator
    expected = peer.augment()
    np.random.seed(7)  # noqa: NPY002
    draws = [[np.random.uniform(0.7, 1.3), np.random.uniform(-0.2, 0.2)] for _ in range(2)]  # noqa: NPY002
    alpha, beta = np.array(draws).T[:, None]
    assert equal_rounded_down(macenko_augment(floats(image)[None], alpha, beta, residual=False)[0], expected)


def test_augmentation_with_the_residual_equals_the_formula_in_float64():
    images = floats(tiles(48))
    random = np.random.default_rng(2)
    alpha, beta = random.uniform(0.7, 1.3, (5, 2)), random.uniform(-0.3, 0.3, (5, 2))
    found = stain_matrix(images)
    ours = macenko_augment(images, alpha, beta)
    for number, image in enumerate(images.double()):
        matrix = found.matrix[number].double().numpy()
        values = pixels(image)
        density = -np.log((255 * values + 1) / 240)
        amounts = density @ np.linalg.pinv(matrix).T
        change = (alpha[number] - 1) * amounts + beta[number]
        expected = np.clip(values * np.exp(-change @ matrix.T), 0, 1)
        np.testing.assert_allclose(pixels(ours[number]), expected, atol=2e-5)


def test_no_strength_changes_no_bit():
    images = floats(tiles(48))
    assert stain_matrix(images).found.all()
    assert torch.equal(macenko_augment(images, np.ones((5, 2)), np.zeros((5, 2))), images)


def few_pixels_of_tissue():
    image = torch.ones(3, 40, 40)
    image[:, :9, :11] = floats(tiles(40))[0, :, :9, :11]
    return image


def gray_ramp():
    return (torch.arange(40.0) / 40).expand(3, 40, 40).clone()


def shades_of_one_stain():
    density = torch.linspace(0.2, 2.0, 1600).view(1, 40, 40) * torch.tensor([0.65, 0.70, 0.29]).view(3, 1, 1)
    return ((240 * torch.exp(-density) - 1) / 255).clamp(0, 1)


STAINLESS = {
    "white": torch.ones(3, 40, 40),
    "black": torch.zeros(3, 40, 40),
    "one color": torch.tensor([0.6, 0.3, 0.5]).view(3, 1, 1).expand(3, 40, 40).clone(),
    "gray": gray_ramp(),
    "half black": torch.cat([torch.zeros(3, 20, 40), torch.ones(3, 20, 40)], dim=1),
    "one stain": shades_of_one_stain(),
    "little tissue": few_pixels_of_tissue(),
}


@pytest.mark.parametrize("name", STAINLESS)
def test_an_image_without_stains_keeps_its_pixels_and_disturbs_no_other(name):
    images = torch.stack([STAINLESS[name], floats(tiles(40))[0]])
    found = stain_matrix(images)
    assert found.found.tolist() == [False, True]
    np.testing.assert_allclose(found.matrix[0].numpy(), REFERENCE.matrix, atol=1e-6)
    np.testing.assert_allclose(found.maximum[0].numpy(), REFERENCE.maximum, atol=1e-6)
    alpha, beta = [[1.2, 0.8]] * 2, [[0.1, -0.1]] * 2
    for change in (
        macenko_normalize,
        lambda part: macenko_augment(part, alpha[: len(part)], beta[: len(part)]),
        lambda part: macenko_augment(part, alpha[: len(part)], beta[: len(part)], residual=False),
    ):
        changed = change(images)
        assert torch.equal(changed[0], images[0])
        assert torch.equal(changed[1:], change(images[1:]))
        assert not torch.equal(changed[1], images[1])


@settings(max_examples=40)
@given(
    height=st.integers(1, 30),
    width=st.integers(1, 30),
    size=st.sampled_from([0.0, 0.3, 10.0, 1e6]),
    low=st.floats(0.0, 0.9),
    residual=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_image_and_parameters_give_pixels(height, width, size, low, residual, seed):
    random = np.random.default_rng(seed)
    images = low + (1 - low) * torch.rand(4, 3, height, width, generator=torch.Generator().manual_seed(seed))
    images[1] = (images[1] * 255).round() / 255
    images[2, :, : height // 2] = 0.0
    images[3] = images[3, :1] * torch.tensor([0.9, 0.5, 0.8]).view(3, 1, 1)
    before = images.clone()
    alpha, beta = 1 + size * random.uniform(-1, 1, (4, 2)), size * random.uniform(-1, 1, (4, 2))

    def both(rows):
        part = images[rows]
        return macenko_normalize(part), macenko_augment(part, alpha[rows], beta[rows], residual=residual)

    together = both(slice(None))
    assert torch.equal(images, before)
    for changed, again in zip(together, both(slice(None)), strict=True):
        assert changed.shape == images.shape
        assert changed.dtype == torch.float32
        assert changed.min() >= 0
        assert changed.max() <= 1
        assert torch.equal(changed, again)
    for row in range(4):
        for changed, alone in zip(together, both(slice(row, row + 1)), strict=True):
            assert torch.equal(changed[row : row + 1], alone)


def test_large_batches_are_as_single_images():
    images = floats(tiles(150))
    assert torch.equal(macenko_normalize(images), torch.cat([macenko_normalize(image[None]) for image in images]))
    assert macenko_normalize(images[:0]).shape == (0, 3, 150, 150)
    assert stain_matrix(images[:0]).matrix.shape == (0, 3, 2)


def test_the_closed_form_finds_the_solvers_direction():
    random = np.random.default_rng(0)
    turned = np.linalg.qr(random.normal(size=(200, 3, 3)))[0]
    values = np.sort(random.uniform(0.001, 1.0, (200, 3)), axis=1)
    values[:20, 2] = values[:20, 1] + 1e-9
    matrices = torch.from_numpy((turned * values[:, None]) @ turned.transpose(0, 2, 1))
    for way in (_smallest_direction, _smallest_direction_in_closed_form):
        direction, middle = way(matrices)
        apart = values[:, 1] - values[:, 0] > 1e-3
        cosine = np.abs((direction.numpy() * turned[:, :, 0]).sum(1))
        np.testing.assert_allclose(cosine[apart], 1.0, atol=1e-9)
        np.testing.assert_allclose(middle.numpy(), values[:, 1], atol=1e-7)
    direction, middle = _smallest_direction_in_closed_form(torch.zeros(1, 3, 3, dtype=torch.float64))
    assert direction.isfinite().all()
    assert middle.item() == pytest.approx(0.0, abs=1e-12)


def test_parameters_are_drawn_by_the_law_and_touch_only_the_chosen():
    images = floats(tiles(32))[:1].repeat(300, 1, 1, 1)
    operation = Macenko(MacenkoConfig(probability=0.4, alpha=0.3, beta=0.1))
    parameters = operation.sample(Draws(seed=4, step=1, positions=range(300)), images)
    assert parameters["on"].mean() == pytest.approx(0.4, abs=0.1)
    for name, low, width in (("alpha", 0.7, 0.6), ("beta", -0.1, 0.2)):
        assert parameters[name].shape == (300, 2)
        assert stats.kstest(parameters[name].ravel(), "uniform", args=(low, width)).pvalue > 1e-3
    changed = operation.apply(images.clone(), parameters)
    on = torch.from_numpy(parameters["on"])
    assert torch.equal(changed[~on], images[~on])
    expected = macenko_augment(images, parameters["alpha"], parameters["beta"])
    assert torch.equal(changed[on], expected[on])
    assert (changed[on] != images[on]).flatten(1).any(1).all()


@pytest.mark.parametrize("strength", [0.0, 0.2])
def test_the_operation_can_normalise_before_it_changes(strength):
    images = floats(tiles())
    operation = Macenko(MacenkoConfig(probability=1.0, normalize=True, alpha=strength, beta=strength))
    parameters = operation.sample(Draws(seed=0, step=0, positions=range(5)), images)
    changed = operation.apply(images.clone(), parameters)
    normalised = macenko_normalize(images)
    if strength == 0:
        assert torch.equal(changed, normalised)
        return
    # What differs from the normalised image is an affine change along the reference's stains.
    matrix = np.array(REFERENCE.matrix)
    for before, after, alpha, beta in zip(normalised, changed, parameters["alpha"], parameters["beta"], strict=True):
        inside = (pixels(before) < 0.9) & (pixels(after) < 0.9)
        keep = inside.all(axis=2)
        amounts = [-np.log(pixels(image)[keep] * 255 / 240) @ np.linalg.pinv(matrix).T for image in (before, after)]
        np.testing.assert_allclose(amounts[1], alpha * amounts[0] + beta, atol=2e-4)


@pytest.mark.parametrize("bad", [np.ones((2, 3)), np.ones(2), np.full((2, 2), np.nan)])
@pytest.mark.parametrize("name", ["alpha", "beta"])
def test_parameters_of_another_shape_or_not_finite_are_refused(name, bad):
    values = {"alpha": np.ones((2, 2)), "beta": np.zeros((2, 2))} | {name: bad}
    with pytest.raises(ValueError, match=f"^{name}: expected finite values"):
        macenko_augment(torch.rand(2, 3, 4, 4), **values)


@pytest.mark.parametrize("field", ["alpha", "beta", "probability"])
def test_strengths_out_of_range_are_refused(field):
    with pytest.raises(EosinError, match=f"r: field '{field}'"):
        MacenkoConfig.parse({field: -0.1}, "r")
