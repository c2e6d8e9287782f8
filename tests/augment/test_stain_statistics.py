"""Statistics of a stain: measured as NumPy measures them, fitted as they were drawn, read with plain errors."""

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eosin.augment.image_statistics import image_statistics
from eosin.augment.spaces import CHANNELS, tissue_weight, to_space
from eosin.augment.stain_statistics import (
    StainStatistics,
    fit_statistics,
    load_statistics,
    save_statistics,
    shipped_statistics,
)
from eosin.core.errors import EosinError

SPACES = list(CHANNELS)


def random_images(n, height, width, seed=0):
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(seed))


def weighted(values, weights):
    """Average and population standard deviation of each channel, in float64."""
    values = values.double().flatten(1).numpy()
    weights = weights.double().flatten().numpy()
    mean = np.average(values, axis=1, weights=weights)
    return np.concatenate([mean, np.sqrt(np.average((values - mean[:, None]) ** 2, axis=1, weights=weights))])


@pytest.mark.parametrize("tissue_only", [False, True])
@pytest.mark.parametrize("space", SPACES)
def test_image_statistics_equal_numpys(space, tissue_only):
    images = random_images(3, 29, 31)
    images[:, :, :9] = 0.95
    values, share = image_statistics(images, space, tissue_only)
    weights = tissue_weight(images)
    planes = to_space(images, space)
    for row in range(len(images)):
        weight = weights[row] if tissue_only else torch.ones_like(weights[row])
        np.testing.assert_allclose(values[row].double(), weighted(planes[row], weight), rtol=2e-4, atol=2e-4)
    torch.testing.assert_close(share, weights.mean(dim=(1, 2, 3)))
    assert share.min() > 0.5
    assert share.max() < 0.75


@given(
    seed=st.integers(0, 999),
    side=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    space=st.sampled_from(SPACES),
    tissue_only=st.booleans(),
    color=st.sampled_from([None, 0.0, 1.0, 0.3]),
)
def test_image_statistics_are_finite_and_each_images_own(seed, side, space, tissue_only, color):
    images = random_images(3, *side, seed)
    if color is not None:
        images[1] = color
    before = images.clone()
    values, share = image_statistics(images, space, tissue_only)
    assert torch.equal(images, before)
    assert values.shape == (3, 6)
    assert share.shape == (3,)
    assert torch.isfinite(values).all()
    assert (values[:, 3:] >= 0).all()
    for row in range(3):
        alone, part = image_statistics(images[row : row + 1], space, tissue_only)
        assert torch.equal(alone[0], values[row])
        assert torch.equal(part[0], share[row])


def test_an_image_without_tissue_is_measured_as_a_whole():
    images = torch.full((1, 3, 8, 8), 0.9)
    values, share = image_statistics(images, "lab", True)
    assert share.item() == 0
    torch.testing.assert_close(values, image_statistics(images, "lab", False)[0], rtol=1e-4, atol=1e-3)


# Fitting


def drawn(n, seed=0):
    """Two stains, each with average and deviation that go together."""
    generator = np.random.default_rng(seed)
    factor = generator.normal(0, 1, (6, 6)) * [[8], [3], [2], [3], [1], [0.5]]
    centers = np.array([[150, 150, 115, 40, 8, 6], [185, 140, 120, 25, 6, 4.0]])
    return centers[generator.integers(0, 2, n)] + 0.5 * generator.normal(0, 1, (n, 6)) @ factor.T


def test_a_mixture_is_found_again():
    values = drawn(1500)
    statistics = fit_statistics(values, space="lab", tissue_only=True, model="gmm", components="auto")
    mixture = statistics.mixture
    assert len(mixture.weights) == 2
    assert min(mixture.bic, key=mixture.bic.get) == "2"
    assert sum(mixture.weights) == pytest.approx(1, abs=1e-9)
    means = np.array(mixture.means)
    np.testing.assert_allclose(means[means[:, 0].argsort()][:, :3], [[150, 150, 115], [185, 140, 120]], atol=1.5)
    weights = np.array(mixture.weights)
    np.testing.assert_allclose(weights @ means, values.mean(axis=0), rtol=1e-3)
    centered = means - weights @ means
    whole = np.einsum("k,kij->ij", weights, np.array(mixture.covariances) + centered[:, :, None] * centered[:, None, :])
    np.testing.assert_allclose(whole, np.cov(values.T, bias=True), rtol=0.05, atol=0.05)
    assert (statistics.tiles, statistics.skipped) == (1500, 0)


def test_bic_is_scikit_learns_in_the_values_own_units():
    from sklearn.mixture import GaussianMixture

    values = drawn(400) / 500
    ours = fit_statistics(values, space="hed", tissue_only=False, components=1).mixture.bic["1"]
    theirs = GaussianMixture(1, reg_covar=1e-12).fit(values).bic(values)
    assert ours == pytest.approx(theirs, rel=1e-3)


def test_independent_laws_are_the_likelier_ones():
    generator = np.random.default_rng(1)
    values = generator.normal(100, 5, (4000, 6))
    values[:, 1] = generator.laplace(150, 4, 4000)
    independent = fit_statistics(values, space="lab", tissue_only=True, model="independent").independent
    assert independent.distribution == ("normal", "laplace", "normal", "normal", "normal", "normal")
    np.testing.assert_allclose(independent.mean, [100, 150, 100, 100, 100, 100], atol=0.4)
    # A laplace's scale, not its standard deviation.
    np.testing.assert_allclose(independent.std, [5, 4, 5, 5, 5, 5], rtol=0.05)


def test_a_fit_is_repeatable_and_its_model_optional():
    values = drawn(120)
    first = fit_statistics(values, space="lab", tissue_only=True, seed=3)
    assert fit_statistics(values, space="lab", tissue_only=True, seed=3) == first
    assert len(first.mixture.bic) == 4
    assert fit_statistics(values, space="lab", tissue_only=True, model="independent").mixture is None


def test_numbers_that_never_change_can_be_fitted():
    values = np.tile([150.0, 150, 115, 40, 8, 6], (40, 1))
    statistics = fit_statistics(values, space="lab", tissue_only=True)
    np.testing.assert_allclose(statistics.independent.std, 0, atol=1e-12)
    np.testing.assert_allclose(statistics.mixture.means[0], values[0])


@pytest.mark.parametrize(
    ("values", "components", "message"),
    [
        (np.ones((1, 6)), "auto", "at least 2 tiles with tissue (got 1)"),
        (np.ones((0, 6)), "auto", "at least 2 tiles"),
        (drawn(5), 6, "6 components needs as many tiles with tissue (got 5)"),
        (drawn(5), 0, "at least 1 component (got 0)"),
        (np.full((5, 6), np.nan), 1, "not finite"),
    ],
)
def test_what_cannot_be_fitted_is_refused(values, components, message):
    with pytest.raises(EosinError) as caught:
        fit_statistics(values, space="lab", tissue_only=True, components=components)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# Files


@pytest.fixture
def plain():
    """A sound file's content."""
    return fit_statistics(drawn(60), space="lab", tissue_only=True, components=2, source="here").plain()


def test_statistics_survive_their_file(tmp_path, plain):
    statistics = StainStatistics.model_validate(plain)
    save_statistics(statistics, tmp_path / "stain.json")
    assert load_statistics(str(tmp_path / "stain.json")) == statistics
    assert [path.name for path in tmp_path.iterdir()] == ["stain.json"]


def change(plain, field, value):
    *parents, leaf = field.split(".")
    for parent in parents:
        plain = plain[parent]
    if value is None:
        del plain[leaf]
    else:
        plain[leaf] = value


NOT_DEFINITE = (np.eye(6) - 2 * np.diag([1, 0, 0, 0, 0, 0])).tolist()
SKEWED = (np.eye(6) + np.triu(np.full((6, 6), 0.1), 1)).tolist()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("space", "rgb", "field 'space'"),
        ("space", None, "field 'space'"),
        ("extra", 1, "unknown field 'extra'"),
        ("independent.std", [1, 1, 1, 1, -1, 1], "a standard deviation is negative"),
        ("independent.mean", [1, 1, 1, 1, -1, 1], "a standard deviation is negative"),
        ("independent.mean", [1, 1, 1], "mean needs 6 entries"),
        ("independent.mean", [float("nan")] * 6, "finite"),
        ("independent.distribution", ["uniform"] * 6, "'normal' or 'laplace'"),
        ("mixture.weights", [0.5, 0.6], "sum to 1 (they sum to 1.1)"),
        ("mixture.weights", [1.5, -0.5], "0 or more"),
        ("mixture.weights", [], "needs a component"),
        ("mixture.means", [[1.0] * 6], "means must be 2 x 6"),
        ("mixture.means", [[1.0] * 6, [float("inf")] * 6], "finite"),
        ("mixture.covariances", [[[1.0] * 6] * 5] * 2, "covariances must be 2 x 6 x 6"),
        ("mixture.covariances", [NOT_DEFINITE, NOT_DEFINITE], "covariance 0 is not symmetric and positive definite"),
        ("mixture.covariances", [np.eye(6).tolist(), SKEWED], "covariance 1 is not symmetric"),
        ("tiles", -1, "field 'tiles'"),
        ("space", "hed", "no color has an average H of 1"),
        (
            "independent.mean",
            [0.03, 0.02, 0.01, 0.02, 0.02, 0.01],
            "average A of 0.02 in LAB (41.8 to 226.3); the numbers",
        ),
        ("mixture.means", [[150.0] * 6, [300.0] * 6], "average L of 300 in LAB"),
    ],
)
def test_a_wrong_field_is_named(tmp_path, plain, field, value, message):
    change(plain, field, value)
    path = tmp_path / "stain.json"
    path.write_text(json.dumps(plain))
    with pytest.raises(EosinError) as caught:
        load_statistics(str(path))
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "space"),
    [("synthetic-lab", "hed"), ("synthetic-hsv", "hed"), ("synthetic-hed", "lab"), ("crc-lab", "hed")],
)
def test_statistics_of_another_space_are_refused(tmp_path, name, space):
    path = tmp_path / "stain.json"
    path.write_text(json.dumps(load_statistics(name).plain() | {"space": space}))
    with pytest.raises(EosinError, match=r"stain.json: .*the numbers are of another color space$"):
        load_statistics(str(path))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("independent.mean", [1e300, 150, 120, 10, 10, 10], r"average L of 1e\+300"),
        ("independent.mean", [150, 150, 120, 10, 1e300, 10], r"deviation of 1e\+300 is wider than channel A of LAB"),
        ("independent.std", [1, 1, 1, 1, 1, 1e300], r"deviation of 1e\+300 is wider than channel B"),
        ("mixture.means", [[150, 150, 120, 1e300, 10, 10]] * 2, r"deviation of 1e\+300 is wider than channel L"),
        ("mixture.covariances", [(1e300 * np.eye(6)).tolist()] * 2, r"deviation of 1e\+150 is wider than channel L"),
    ],
)
def test_numbers_that_would_overflow_are_refused(tmp_path, plain, field, value, message):
    change(plain, field, value)
    path = tmp_path / "stain.json"
    path.write_text(json.dumps(plain))
    with pytest.raises(EosinError, match=message):
        load_statistics(str(path))


@pytest.mark.parametrize("space", ["lab", "hsv", "hed"])
def test_whatever_an_image_has_is_possible(space):
    corners = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3))).view(8, 3, 1, 1)
    images = torch.cat([corners, 0.5 * corners]).expand(16, 3, 4, 4)
    values, _ = image_statistics(images, space, False)
    statistics = fit_statistics(values.double().numpy(), space=space, tissue_only=False)
    assert statistics.tiles == 16
    for row in values.double().numpy():
        assert fit_statistics(np.stack([row, row]), space=space, tissue_only=False).tiles == 2


def test_a_file_that_an_editor_marked_is_read(tmp_path):
    path = tmp_path / "stain.json"
    path.write_text(json.dumps(load_statistics("crc-lab").plain()), encoding="utf-8-sig")
    assert load_statistics(str(path)) == load_statistics("crc-lab")


FOREIGN = '{"name": "a tool", "version": 1}'


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "{}", FOREIGN, '{"space": "lab"', "\x00\xff"])
def test_a_damaged_file_is_refused(tmp_path, content):
    path = tmp_path / "stain.json"
    path.write_text(content)
    with pytest.raises(EosinError, match="write (it|them)") as caught:
        load_statistics(str(path))
    assert str(path) in str(caught.value)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(EosinError, match="did you mean 'crc-lab'"):
        load_statistics("crc-lap")
    with pytest.raises(EosinError, match=r"valid: .*crc-lab"):
        load_statistics("something else")
    with pytest.raises(EosinError, match=r"absent\.json: no such file"):
        load_statistics(str(tmp_path / "absent.json"))
    with pytest.raises(EosinError, match="no such file"):
        load_statistics(str(tmp_path / "absent.yaml"))


def test_every_shipped_file_can_be_read():
    names = shipped_statistics()
    assert {"crc-lab", "monuseg-lab"} <= set(names)
    for name in names:
        statistics = load_statistics(name)
        assert name.endswith(statistics.space)
        assert statistics.source


def test_documented_values_come_along():
    crc = load_statistics("crc-lab")
    assert (crc.space, crc.tissue_only, crc.mixture) == ("lab", False, None)
    assert crc.independent.mean == (158.0, 151.2, 116.8, 36.9, 8.1, 6.1)
    assert crc.independent.std == (48.8, 11.0, 6.6, 14.4, 2.8, 2.0)
    monuseg = load_statistics("monuseg-lab").independent
    assert monuseg.mean == (137.6, 154.9, 114.4, 45.8, 8.4, 7.5)
    assert monuseg.std == (30.3, 6.5, 5.3, 10.6, 2.2, 1.3)


# RandStainNA's files

YAML = """\
{hue}:
  avg: {{distribution: laplace, mean: 140.5, std: 20.0}}
  std: {{distribution: norm, mean: 22.5, std: 16.0}}
S:
  avg: {{distribution: norm, mean: 80.0, std: 43.0}}
  std: {{distribution: norm, mean: 30.0, std: 12.0}}
V:
  avg: {{distribution: laplace, mean: 185.0, std: 41.0}}
  std: {{distribution: laplace, mean: 32.0, std: 14.0}}
color_space: HSV
methods: Reinhard
n_each_class: 0
random: true
"""


@pytest.mark.parametrize("hue", ["H", "h"])
@pytest.mark.parametrize("suffix", ["yaml", "yml"])
def test_a_file_of_randstainna_is_read(tmp_path, hue, suffix):
    path = tmp_path / f"CRC_HSV.{suffix}"
    path.write_text(YAML.format(hue=hue))
    statistics = load_statistics(str(path))
    assert (statistics.space, statistics.tissue_only, statistics.mixture) == ("hsv", False, None)
    assert statistics.independent.mean == (140.5, 80, 185, 22.5, 30, 32)
    assert statistics.independent.std == (20, 43, 41, 16, 12, 14)
    assert statistics.independent.distribution == ("laplace", "normal", "laplace", "normal", "normal", "laplace")
    assert statistics.source == f"{path.name} (RandStainNA)"
    assert statistics.settings == {"methods": "Reinhard", "n_each_class": 0, "random": True}
    save_statistics(statistics, tmp_path / "ours.json")
    assert load_statistics(str(tmp_path / "ours.json")) == statistics


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("HSV", "Random", "joins several color spaces; split it"),
        ("HSV", "Random(HED+LAB)", "joins several color spaces; split it"),
        ("HSV", "RGB", "field 'color_space' must be LAB, HED or HSV (got RGB)"),
        ("color_space: HSV\n", "", "field 'color_space' must be LAB, HED or HSV"),
        ("HSV", "LAB", "unknown field"),
        ("Reinhard", "Macenko", "field 'methods' must be Reinhard (got Macenko)"),
        ("distribution: laplace, mean: 185.0", "distribution: gamma, mean: 185.0", "field 'V.avg.distribution'"),
        ("mean: 185.0, ", "", "field 'V.avg' must give mean, std and distribution"),
        ("std: 12.0", "std: -12.0", "negative"),
        ("std: 12.0", "std: .nan", "finite"),
        ("std: 12.0", "std: many", "number"),
        ("S:", "Q:", "unknown field 'Q'"),
        ("S:\n  avg", "S: 3\nT:\n  avg", "unknown field 'T'"),
    ],
)
def test_what_is_wrong_in_a_file_of_randstainna_is_named(tmp_path, old, new, message):
    text = YAML.format(hue="H")
    assert old in text
    path = tmp_path / "stain.yaml"
    path.write_text(text.replace(old, new))
    with pytest.raises(EosinError) as caught:
        load_statistics(str(path))
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
