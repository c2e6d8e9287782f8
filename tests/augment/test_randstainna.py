"""RandStainNA against the published law, and its draws against the distributions they come from."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from eosin.augment.image_statistics import image_statistics
from eosin.augment.randstainna import (
    LEAST_TISSUE,
    MOST_GAIN,
    RandStainNA,
    RandStainNAConfig,
    draw_targets,
    restain,
)
from eosin.augment.spaces import CHANNELS, from_space, tissue_weight, to_space
from eosin.augment.stain_statistics import (
    Independent,
    Mixture,
    StainStatistics,
    load_statistics,
    save_statistics,
)
from eosin.core.draws import Draws
from eosin.core.errors import EosinError

pytestmark = pytest.mark.usefixtures("computed")

SPACES = list(CHANNELS)
TARGETS = {
    "lab": [158.0, 151.2, 116.8, 36.9, 8.1, 6.1],
    "hsv": [140.0, 80.0, 185.0, 20.0, 30.0, 32.0],
    "hed": [0.03, 0.02, 0.01, 0.02, 0.02, 0.01],
}


def tissue(n, height=40, width=44, seed=0):
    """Images of smooth stain on a strip of glass."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 6, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
    low = torch.tensor([0.35, 0.15, 0.4]).view(3, 1, 1)
    images = low + smooth * torch.tensor([0.5, 0.6, 0.4]).view(3, 1, 1)
    images[..., : max(width // 8, 1)] = 0.94
    return images


def target(space, n=1):
    return torch.tensor(TARGETS[space]).expand(n, 6).contiguous()


def plain_restain(image, aim, space, weight):
    """Reinhard's transfer of one image in float64, on top of the tested color spaces."""
    values = to_space(image[None], space)[0].double()
    share = torch.ones_like(weight) if weight is None else weight.double()
    result = values.clone()
    for channel in range(3):
        mean = (values[channel] * share).sum() / share.sum()
        std = ((values[channel] - mean) ** 2 * share).sum().div(share.sum()).sqrt()
        result[channel] = (values[channel] - mean) * (aim[channel + 3] / std) + aim[channel]
        if space == "lab" or (space == "hsv" and channel > 0):
            result[channel].clamp_(0, 255)
    return from_space(result[None].float(), space)[0]


@pytest.mark.parametrize("tissue_only", [False, True])
@pytest.mark.parametrize("space", SPACES)
def test_transfer_equals_the_plain_law(space, tissue_only):
    images = tissue(3)
    aims = target(space, 3) * torch.tensor([[0.9], [1.0], [1.1]])
    ours = restain(images.clone(), aims, space=space, tissue_only=tissue_only, keep_background=False)
    for row, image in enumerate(images):
        weight = tissue_weight(images[row : row + 1])[0, 0]
        plain = plain_restain(image, aims[row], space, weight if tissue_only else torch.ones_like(weight))
        # In HSV a hue near the wrap and a saturation near 0 double rounding errors.
        torch.testing.assert_close(ours[row], plain, rtol=0, atol=5e-4)


@pytest.mark.parametrize("space", SPACES)
def test_images_get_the_targets_statistics(space):
    if space == "hsv":
        aims = torch.tensor([[150.0, 90.0, 190.0, 4.0, 15.0, 15.0]])
    else:
        aims = target(space) * torch.tensor([1, 1, 1, 0.4, 0.4, 0.4])
    result = restain(tissue(1), aims, space=space, tissue_only=False, keep_background=False)
    found, _ = image_statistics(result, space, False)
    torch.testing.assert_close(found, aims, rtol=0.02, atol=5e-4 if space == "hed" else 0.3)


def test_glass_stays_and_tissue_is_stained():
    images = tissue(2)
    weight = tissue_weight(images)
    aims = target("lab", 2) + torch.tensor([10.0, 15.0, -10.0, 0, 0, 0])
    kept = restain(images.clone(), aims, space="lab", keep_background=True)
    whole = restain(images.clone(), aims, space="lab", keep_background=False)
    glass = (weight == 0).expand(-1, 3, -1, -1)
    full = (weight == 1).expand(-1, 3, -1, -1)
    assert glass.float().mean() > 0.1
    assert full.float().mean() > 0.5
    torch.testing.assert_close(kept[glass], images[glass], rtol=0, atol=1e-4)
    torch.testing.assert_close(kept[full], whole[full], rtol=0, atol=1e-4)
    assert (whole[glass] - images[glass]).abs().mean() > 0.05


def test_no_tissue_is_stained_green():
    images = tissue(2)
    images[1] = images[1].flip(0)
    aims = target("lab", 2) * torch.tensor([1, 0.8, 1, 1, 1, 1])
    kept = to_space(restain(images.clone(), aims, space="lab"), "lab")[:, 1]
    whole = to_space(restain(images.clone(), aims, space="lab", keep_background=False), "lab")[:, 1]
    assert whole.min() < 115
    # What was green already may stay as green as it was.
    before = to_space(images, "lab")[:, 1].clamp(max=128)
    assert (kept - before).min() > -0.5


def published(pixels, aim, space):
    """RandStainNA's law on 8-bit pixels, RGB in and out."""
    there, back = {
        "lab": (cv2.COLOR_RGB2LAB, cv2.COLOR_LAB2RGB),
        "hsv": (cv2.COLOR_RGB2HSV, cv2.COLOR_HSV2RGB),
    }[space]
    values = cv2.cvtColor(pixels, there)
    mean = values.mean(axis=(0, 1))
    std = np.clip(values.std(axis=(0, 1)), 1e-4, 255)
    return cv2.cvtColor(np.clip((values - mean) * (aim[3:] / std) + aim[:3], 0, 255).astype(np.uint8), back)


def real_tiles(real_data):
    paths = sorted((real_data / "crc").glob("*/*"))[::7]
    return np.stack([np.array(Image.open(path).convert("RGB")) for path in paths])


def test_real_tiles_equal_the_published_law(real_data):
    tiles = real_tiles(real_data)
    images = torch.from_numpy(tiles).permute(0, 3, 1, 2) / 255
    statistics = load_statistics("crc-lab")
    config = RandStainNAConfig(model="independent", spread=0.7)
    aims = draw_targets(statistics, config, Draws(0, 0, range(len(tiles))))
    ours = restain(images, torch.from_numpy(aims).float(), space="lab", keep_background=False)
    for tile, aim, result in zip(tiles, aims, ours.permute(0, 2, 3, 1).numpy(), strict=True):
        theirs = published(tile, aim, "lab")
        # Theirs is cut down to whole numbers in L*a*b*: half a gray level darker on average, at a coarse step.
        assert np.abs(result * 255 - theirs).mean() < 2.0


def test_published_law_in_hsv_where_it_does_not_wrap(real_data):
    tile = real_tiles(real_data)[1]
    aim = np.array([150.0, 90.0, 190.0, 2.0, 20.0, 20.0])
    image = torch.from_numpy(tile).permute(2, 0, 1)[None] / 255
    ours = restain(image, torch.from_numpy(aim[None]).float(), space="hsv", keep_background=False)
    assert np.abs(ours[0].permute(1, 2, 0).numpy() * 255 - published(tile, aim, "hsv")).mean() < 2.0


@pytest.mark.parametrize("space", SPACES)
def test_zero_strength_and_an_images_own_statistics_change_nothing(space):
    images = tissue(2)
    own, _ = image_statistics(images, space, True)
    for aims, strength in ((target(space, 2), 0.0), (own, 1.0)):
        result = restain(images.clone(), aims, space=space, tissue_only=True, strength=strength)
        torch.testing.assert_close(result, images, rtol=0, atol=3e-4)


def test_strength_blends_the_statistics():
    images = tissue(1)
    own, _ = image_statistics(images, "lab", False)
    aims = own * torch.tensor([1, 1, 1, 0.5, 0.5, 0.5]) + torch.tensor([-10.0, 2, -2, 0, 0, 0])
    result = restain(images, aims, space="lab", keep_background=False, strength=0.3)
    found, _ = image_statistics(result, "lab", False)
    torch.testing.assert_close(found, own + 0.3 * (aims - own), rtol=0, atol=0.2)


def test_an_image_almost_without_tissue_is_left_as_it_is():
    images = torch.full((2, 3, 50, 50), 0.95)
    images += 0.01 * torch.rand(images.shape, generator=torch.Generator().manual_seed(0))
    pink = torch.tensor([0.8, 0.4, 0.7]).view(3, 1, 1)
    images[0, :, :2, :20] = pink
    images[1, :, :2, :30] = pink
    share = tissue_weight(images).mean(dim=(1, 2, 3))
    assert share[0] < LEAST_TISSUE < share[1]
    for keep in (False, True):
        result = restain(images.clone(), target("lab", 2), space="lab", keep_background=keep)
        torch.testing.assert_close(result[0], images[0], rtol=0, atol=1e-4)
        assert (result[1] - images[1]).abs().max() > 0.05


def test_gain_has_a_limit():
    images = torch.tensor([0.7, 0.4, 0.6]).view(1, 3, 1, 1).repeat(1, 1, 32, 32)
    images += 0.002 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    own, _ = image_statistics(images, "lab", False)
    found, _ = image_statistics(restain(images, target("lab"), space="lab"), "lab", False)
    torch.testing.assert_close(found[:, 3:], MOST_GAIN * own[:, 3:], rtol=0.02, atol=0.02)


def test_a_color_alone_becomes_the_targets_average():
    images = torch.tensor([0.7, 0.4, 0.6]).view(1, 3, 1, 1).repeat(1, 1, 8, 8)
    result = restain(images, target("lab"), space="lab")
    expected = from_space(torch.tensor(TARGETS["lab"][:3]).view(1, 3, 1, 1), "lab")
    torch.testing.assert_close(result, expected.expand_as(result), rtol=0, atol=1e-3)


@given(
    seed=st.integers(0, 999),
    side=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    space=st.sampled_from(SPACES),
    special=st.sampled_from([None, 0.0, 1.0, 0.5]),
    size=st.sampled_from([1.0, 10.0, 1e6]),
    flags=st.tuples(st.booleans(), st.booleans()),
    strength=st.sampled_from([0.0, 0.4, 1.0]),
)
def test_colors_come_out_whatever_goes_in(seed, side, space, special, size, flags, strength):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(3, 3, *side, generator=generator)
    if special is not None:
        images[1] = special
    aims = target(space, 3) * (torch.rand(3, 6, generator=generator) * 2 - 0.5) * size
    aims[:, 3:].clamp_(min=0)
    options = {"space": space, "tissue_only": flags[0], "keep_background": flags[1], "strength": strength}
    result = restain(images.clone(), aims, **options)
    assert result.shape == images.shape
    assert result.dtype == torch.float32
    assert torch.isfinite(result).all()
    assert result.min() >= 0
    assert result.max() <= 1
    for row in range(3):
        alone = restain(images[row : row + 1].clone(), aims[row : row + 1], **options)
        assert torch.equal(alone[0], result[row])


@pytest.mark.parametrize("space", SPACES)
def test_a_larger_image_does_not_depend_on_its_neighbours(space):
    images = tissue(4, 96, 97)
    aims = target(space, 4)
    whole = restain(images.clone(), aims, space=space, tissue_only=True)
    for row in range(4):
        alone = restain(images[row : row + 1].clone(), aims[row : row + 1], space=space, tissue_only=True)
        assert torch.equal(alone[0], whole[row])


# Draws

CORRELATED = StainStatistics(
    space="lab",
    tissue_only=True,
    independent=Independent(
        mean=(158, 151, 117, 37, 8, 6),
        std=(20, 6, 5, 6, 2, 1),
        distribution=("laplace", "normal", "normal", "normal", "laplace", "normal"),
    ),
    mixture=Mixture(
        weights=(0.3, 0.7),
        means=((140, 155, 112, 42, 9, 7), (180, 145, 120, 30, 6, 5)),
        covariances=(
            (
                np.diag([60, 9, 6, 9, 1, 0.6]) + 3 * np.outer([2, -1, 0.5, 1, 0.2, 0.1], [2, -1, 0.5, 1, 0.2, 0.1])
            ).tolist(),
            np.diag([40, 5, 4, 6, 1, 0.5]).tolist(),
        ),
    ),
)


def targets_of(statistics=CORRELATED, n=20_000, **options):
    return draw_targets(statistics, RandStainNAConfig(**options), Draws(5, 1, range(n)))


def test_independent_draws_follow_their_laws():
    drawn = targets_of(model="independent", spread=0.7)
    independent = CORRELATED.independent
    for entry in range(6):
        law = stats.laplace if independent.distribution[entry] == "laplace" else stats.norm
        law = law(independent.mean[entry], 0.7 * independent.std[entry])
        assert stats.kstest(drawn[:, entry], law.cdf).pvalue > 1e-3
    correlations = np.corrcoef(drawn.T) - np.eye(6)
    assert np.abs(correlations).max() < 0.04
    # As in the published code, a laplace's scale is the file's std: it spreads √2 times as far.
    laplace = targets_of(model="independent", distribution="laplace")
    np.testing.assert_allclose(laplace[:, 1].std(), np.sqrt(2) * 6, rtol=0.04)
    normal = targets_of(model="independent", distribution="normal")
    np.testing.assert_allclose(normal[:, 0].std(), 20, rtol=0.03)


def test_mixture_draws_have_its_moments():
    drawn = targets_of(model="gmm")
    mixture = CORRELATED.mixture
    weights, means = np.array(mixture.weights), np.array(mixture.means)
    mean = weights @ means
    covariance = np.einsum("k,kij->ij", weights, np.array(mixture.covariances))
    covariance += np.einsum("k,ki,kj->ij", weights, means - mean, means - mean)
    np.testing.assert_allclose(drawn.mean(axis=0), mean, rtol=0.01)
    scale = np.sqrt(np.diag(covariance))
    assert (np.abs(np.cov(drawn.T) - covariance) / (scale[:, None] * scale)).max() < 0.04
    still = targets_of(model="gmm", spread=0.0)
    assert sorted(map(tuple, np.unique(still, axis=0))) == sorted(mixture.means)
    assert (still[:, 0] == 140).mean() == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize("options", [{"model": "independent", "distribution": "laplace"}, {"model": "gmm"}])
def test_a_drawn_deviation_is_never_negative(options):
    drawn = targets_of(spread=8.0, **options)
    assert drawn[:, 3:].min() == 0
    assert drawn[:, :3].min() < 0
    assert np.isfinite(drawn).all()


@given(positions=st.lists(st.integers(0, 2**40), min_size=1, max_size=6), model=st.sampled_from(["independent", "gmm"]))
@settings(max_examples=20)
def test_a_draw_depends_on_its_position_alone(positions, model):
    config = RandStainNAConfig(model=model)
    together = draw_targets(CORRELATED, config, Draws(1, 2, positions))
    for row, position in enumerate(positions):
        assert np.array_equal(draw_targets(CORRELATED, config, Draws(1, 2, [position]))[0], together[row])


# The operation


def test_the_operation_stains_the_chosen_images_only():
    operation = RandStainNA(RandStainNAConfig(probability=0.5, statistics="crc-lab", model="independent"))
    images = tissue(12)
    parameters = operation.sample(Draws(0, 0, range(12)), images)
    chosen = parameters["on"]
    assert 0 < chosen.sum() < 12
    assert parameters["target"].shape == (12, 6)
    result = operation.apply(images.clone(), parameters)
    for row in range(12):
        expected = images[row : row + 1].clone()
        if chosen[row]:
            aim = torch.from_numpy(parameters["target"][row : row + 1]).float()
            expected = restain(expected, aim, space="lab", tissue_only=False)
        assert torch.equal(result[row : row + 1], expected)


def test_the_operations_settings_reach_the_pixels(tmp_path):
    path = tmp_path / "stain.json"
    save_statistics(CORRELATED, path)
    images = tissue(2)
    for options in ({"keep_background": False}, {"strength": 0.5}, {}):
        operation = RandStainNA(RandStainNAConfig(probability=1, statistics=str(path), **options))
        parameters = operation.sample(Draws(0, 0, range(2)), images)
        aims = torch.from_numpy(parameters["target"]).float()
        expected = restain(images.clone(), aims, space="lab", tissue_only=True, **options)
        assert torch.equal(operation.apply(images.clone(), parameters), expected)


def test_no_strength_changes_no_bit():
    operation = RandStainNA(RandStainNAConfig(probability=1, statistics="crc-lab", model="independent", strength=0))
    images = tissue(2)
    assert torch.equal(operation.apply(images.clone(), operation.sample(Draws(0, 0, range(2)), images)), images)


def test_statistics_are_read_once(tmp_path):
    path = tmp_path / "stain.json"
    save_statistics(CORRELATED, path)
    operation = RandStainNA(RandStainNAConfig(probability=1, statistics=str(path)))
    path.unlink()
    assert operation.sample(Draws(0, 0, range(2)), tissue(2))["on"].all()


def test_statistics_without_a_mixture_are_refused_for_one():
    with pytest.raises(EosinError, match=r"'crc-lab' hold no mixture; .*eosin stain fit.*--model gmm.*independent"):
        RandStainNA(RandStainNAConfig(statistics="crc-lab", model="gmm"))
    with pytest.raises(EosinError, match="did you mean 'crc-lab'"):
        RandStainNA(RandStainNAConfig(statistics="crc_lab"))


@pytest.mark.parametrize(
    "values",
    [
        {"probability": 1.1},
        {"spread": -0.1},
        {"spread": 11},
        {"strength": 2},
        {"model": "mixture"},
        {"stats": "crc-lab"},
    ],
)
def test_settings_out_of_range_are_refused(values):
    with pytest.raises(EosinError, match=f"field '{next(iter(values))}'"):
        RandStainNAConfig.parse(values, "here")
