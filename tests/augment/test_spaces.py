"""Color spaces against plain float64 formulas, OpenCV and scikit-image."""

import colorsys
import itertools

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from skimage.color import hed2rgb, rgb2hed, rgb2lab

from eosin.augment import curves
from eosin.augment.fused import _to_hsv
from eosin.augment.spaces import CHANNELS, LEAST_CHROMA, UNITS, from_space, tissue_weight, to_space

SPACES = list(CHANNELS)
# By how much a displayed value may move there and back.
ROUND_TRIP = 1e-4


def random_images(n, height, width, seed=0):
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(seed))


def every_color():
    """A grid over all colors with its corners, and dark values below both knees: [1, 3, 13, 169]."""
    values = torch.tensor([0.0, 1e-6, 0.002, 0.01, 0.04, 0.0405, 0.08, 0.2, 0.35, 0.5, 0.7, 0.9, 1.0])
    return torch.cartesian_prod(values, values, values).T.reshape(1, 3, 13, 169).contiguous()


def on_last(images):
    return images[0].permute(1, 2, 0).contiguous().numpy()


def plain_lab(rgb):
    """CIE 15:2004 from sRGB under D65, in 8-bit scaling: float64 [..., 3]."""
    rgb = rgb.astype(np.float64)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = (
        linear
        @ np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]).T
    )
    t = xyz / np.array([0.950456, 1.0, 1.088754])
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    lightness = 116 * f[..., 1] - 16
    return np.stack(
        [lightness * 2.55, 500 * (f[..., 0] - f[..., 1]) + 128, 200 * (f[..., 1] - f[..., 2]) + 128], axis=-1
    )


def plain_hed(rgb):
    stains = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
    density = np.log(np.maximum(rgb.astype(np.float64), 1e-6)) / np.log(1e-6)
    return density @ np.linalg.inv(stains)


def plain_hsv(rgb):
    flat = [colorsys.rgb_to_hsv(*map(float, color)) for color in rgb.reshape(-1, 3)]
    return np.array(flat).reshape(rgb.shape) * [180, 255, 255]


@pytest.fixture(params=["powers", "poles"])
def way(request, monkeypatch):
    monkeypatch.setattr(curves, "VECTORISED", request.param == "powers")
    return request.param


@pytest.mark.parametrize("images", [every_color(), random_images(1, 37, 53)], ids=["grid", "random"])
@pytest.mark.parametrize(("space", "plain", "tolerance"), [("hsv", plain_hsv, 1e-3), ("hed", plain_hed, 2e-6)])
def test_spaces_equal_the_plain_formula(images, space, plain, tolerance):
    ours = on_last(to_space(images, space))
    expected = plain(on_last(images))
    if space == "hsv":
        # A hue of 180 is one of 0.
        ours[..., 0] -= 180 * np.round((ours[..., 0] - expected[..., 0]) / 180)
        # What differs by less has no hue.
        some = np.ptp(on_last(images), axis=-1) >= LEAST_CHROMA
        ours[~some, 0] = expected[~some, 0]
    np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("images", [every_color(), random_images(1, 37, 53)], ids=["grid", "random"])
def test_lab_equals_the_plain_formula(way, images):
    error = np.abs(on_last(to_space(images, "lab")) - plain_lab(on_last(images)))
    assert error.max() < (1e-3 if way == "powers" else 1.5e-2)


def test_lab_equals_opencv_and_skimage():
    images = random_images(1, 61, 47)
    rgb = on_last(images)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4).astype(np.float32)
    ours = on_last(to_space(images, "lab"))
    # OpenCV interpolates a table in its sRGB conversion, to within half a gray level; its linear one computes.
    for code, source, tolerance in ((cv2.COLOR_LRGB2LAB, linear, 0.02), (cv2.COLOR_RGB2LAB, rgb, 0.8)):
        theirs = cv2.cvtColor(source, code) * np.float32([2.55, 1, 1]) + np.float32([0, 128, 128])
        assert np.abs(ours - theirs).max() < tolerance
    eight = (rgb * 255).round().astype(np.uint8)
    exact = to_space(torch.from_numpy(eight.transpose(2, 0, 1)[None] / np.float32(255)), "lab")
    assert np.abs(on_last(exact) - cv2.cvtColor(eight, cv2.COLOR_RGB2LAB)).max() < 1.6
    # scikit-image rounds D65 differently.
    assert np.abs(ours - (rgb2lab(rgb) * [2.55, 1, 1] + [0, 128, 128])).max() < 0.1


def test_hsv_equals_opencv():
    images = random_images(1, 61, 47)
    theirs = cv2.cvtColor(on_last(images), cv2.COLOR_RGB2HSV) * np.float32([0.5, 255, 255])
    np.testing.assert_allclose(on_last(to_space(images, "hsv")), theirs, rtol=0, atol=0.01)


def test_hed_equals_skimage_without_its_clamp():
    images = random_images(1, 61, 47)
    ours = on_last(to_space(images, "hed"))
    theirs = rgb2hed(on_last(images))
    np.testing.assert_allclose(np.maximum(ours, 0), theirs, rtol=0, atol=2e-6)
    assert ours.min() < -0.01
    np.testing.assert_allclose(on_last(from_space(to_space(images, "hed"), "hed")), on_last(images), atol=5e-6)
    assert np.abs(hed2rgb(theirs) - on_last(images)).max() > 0.1


@pytest.mark.parametrize("space", SPACES)
def test_colors_come_back(way, space):
    for images in (every_color(), random_images(2, 31, 33)):
        before = images.clone()
        back = from_space(to_space(images, space), space)
        torch.testing.assert_close(back, images, rtol=0, atol=ROUND_TRIP)
        assert torch.equal(images, before)


@given(
    seed=st.integers(0, 999),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)),
    space=st.sampled_from(SPACES),
    dark=st.sampled_from([1.0, 0.04, 0.0]),
)
def test_values_are_finite_in_range_and_come_back(seed, shape, space, dark):
    images = random_images(*shape, seed) * dark
    values = to_space(images, space)
    assert values.dtype == torch.float32
    assert values.shape == images.shape
    assert torch.isfinite(values).all()
    if space != "hed":
        top = torch.tensor([180.0 if space == "hsv" else 255.0, 255.0, 255.0]).view(3, 1, 1)
        assert (values >= -0.02).all()
        assert (values <= top + 0.02).all()
    torch.testing.assert_close(from_space(values, space), images, rtol=0, atol=ROUND_TRIP)


@given(seed=st.integers(0, 999), space=st.sampled_from(SPACES), size=st.sampled_from([1.0, 1e3, 1e20]))
def test_any_values_become_colors(seed, space, size):
    generator = torch.Generator().manual_seed(seed)
    values = (torch.rand(2, 3, 5, 7, generator=generator) - 0.5) * 600 * size
    colors = from_space(values, space)
    assert torch.isfinite(colors).all()
    assert colors.min() >= 0
    assert colors.max() <= 1


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("side", [(1, 1), (3, 5), (17, 13), (96, 96), (61, 97)])
def test_an_image_does_not_depend_on_its_neighbours(way, space, side):
    images = random_images(5, *side)
    values = to_space(images, space)
    back = from_space(values, space)
    for row in range(len(images)):
        alone = to_space(images[row : row + 1].clone(), space)
        assert torch.equal(values[row : row + 1], alone)
        assert torch.equal(back[row : row + 1], from_space(alone, space))


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_colors_keep_their_precision_where_a_script_lowers_it(precision):
    images = random_images(2, 16, 16)
    expected = to_space(images, "lab")
    torch.set_float32_matmul_precision(precision)
    try:
        torch.testing.assert_close(to_space(images, "lab"), expected, rtol=0, atol=1e-3)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_hue_wraps_at_180():
    values = torch.rand(1, 3, 8, 8) * torch.tensor([180.0, 255.0, 255.0]).view(3, 1, 1)
    expected = from_space(values, "hsv")
    for turns in (-2, 1, 3):
        turned = values + torch.tensor([180.0 * turns, 0.0, 0.0]).view(3, 1, 1)
        torch.testing.assert_close(from_space(turned, "hsv"), expected, rtol=0, atol=2e-4)


def test_gray_has_no_color():
    gray = torch.linspace(0, 1, 64).expand(1, 3, 1, 64).contiguous()
    lab = to_space(gray, "lab")
    torch.testing.assert_close(lab[:, 1:], torch.full_like(lab[:, 1:], 128.0), rtol=0, atol=1e-3)
    assert (to_space(gray, "hsv")[:, :2] == 0).all()


def test_units_are_of_the_channels():
    for space, letters in CHANNELS.items():
        assert len(UNITS[space][0]) == len(UNITS[space][1]) == len(letters)


@given(color=st.tuples(*[st.floats(0, 1)] * 3))
def test_tissue_weight_is_a_weight(color):
    weight = tissue_weight(torch.tensor(color, dtype=torch.float32).view(1, 3, 1, 1))
    assert weight.shape == (1, 1, 1, 1)
    assert 0 <= weight.item() <= 1
    spread = max(color) - min(color)
    if spread <= 0.055 * max(color):
        assert weight.item() == 0
    if spread >= 0.055 * max(color) + 0.031:
        assert weight.item() == 1


def test_tissue_weight_knows_glass_black_and_stain():
    colors = {
        (1.0, 1.0, 1.0): 0,
        (0.0, 0.0, 0.0): 0,
        (0.93, 0.91, 0.93): 0,
        (0.5, 0.5, 0.5): 0,
        (0.92, 0.80, 0.87): 1,
        (0.35, 0.20, 0.50): 1,
        (0.20, 0.15, 0.25): 1,
    }
    weights = tissue_weight(torch.tensor(list(colors)).T.reshape(1, 3, 1, -1))
    assert weights.flatten().tolist() == list(colors.values())


def test_tissue_weight_on_real_regions(real_data):
    shares = {}
    for path in sorted((real_data / "regions").glob("kather2016_test_img_*.png")):
        pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None] / 255
        shares[path.stem.rsplit("_", 1)[1]] = tissue_weight(pixels).mean().item()
    # By eye: 16 and 20 are empty, 23 and 24 hold a speck, 3, 27 and 28 are full of cells.
    assert max(shares[number] for number in ("16", "20")) < 0.01
    assert max(shares[number] for number in ("23", "24")) < 0.06
    assert min(shares[number] for number in ("3", "27", "28")) > 0.99


@pytest.mark.parametrize("gray", [1 / 255, 137 / 255, 1.0])
def test_a_hue_that_rounding_decides_is_none(gray):
    """Channels of a gray pixel that differ by their last bit, as products and sums rounded together leave them."""
    near = np.float32(gray) * (1 + np.array([-1, 0, 1], dtype=np.float32) * 2**-23)
    grays = torch.tensor(list(itertools.product(near.tolist(), repeat=3))).T.reshape(1, 3, 1, -1)
    for hue in (to_space(grays.clone(), "hsv")[:, 0] / 30, _to_hsv(grays)[0]):
        assert hue.abs().max() < 0.1
