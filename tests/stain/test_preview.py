"""The sheet of views and the plot of the stain: right pixels in the right places, the right density, one-line refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import laplace, multivariate_normal, norm

from eosin.augment import AugmentConfig, Views
from eosin.augment.randstainna import RandStainNAConfig
from eosin.augment.stain_statistics import load_statistics
from eosin.core.draws import Draws
from eosin.core.errors import EosinError
from eosin.stain import preview, stain_of, with_statistics
from eosin.stain.density import density_of
from eosin.stain.plot import Cloud, _levels, plot_distribution
from eosin.stain.sheet import Column, draw_sheet, sample_views, stacked

STAIN = {"probability": 0.5, "statistics": "synthetic-lab"}


def views(**fields):
    return AugmentConfig.parse({"views": {"global": {"size": 32, **fields}}}, "test")


def color_share(image, color):
    return float((np.abs(np.asarray(image).astype(int) - color).max(axis=2) < 30).mean())


def test_the_sheet_is_written_and_repeats(tissue, tmp_path):
    augment = views(randstainna=STAIN)
    said = preview(str(tissue), augment, tmp_path / "new" / "a.png", title="test", rows=3)
    assert f"{tmp_path / 'new' / 'a.png'}: 3 tiles, 8 views of each" in said
    preview(str(tissue), augment, tmp_path / "b.png", title="test", rows=3, workers=2)
    assert (tmp_path / "new" / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    preview(str(tissue), augment, tmp_path / "c.png", title="test", rows=3, seed=1)
    assert (tmp_path / "b.png").read_bytes() != (tmp_path / "c.png").read_bytes()
    picture = Image.open(tmp_path / "b.png")
    assert picture.mode == "RGB"
    assert color_share(picture, (217, 84, 30)) > 1e-4, "drawn targets are orange"
    assert color_share(picture, (181, 131, 198)) > 1e-3, "half of the distribution is purple"


@pytest.mark.parametrize("fields", [{}, {"grayscale": 1.0}])
def test_without_a_stain_operation_the_views_are_plotted(tissue, tmp_path, fields):
    preview(str(tissue), views(**fields), tmp_path / "a.png", title="test", rows=2)
    assert Image.open(tmp_path / "a.png").height > 500


def test_views_are_shown_as_training_makes_them():
    augment = AugmentConfig.parse({"views": {"global": {"size": 32}, "local": {"size": 16, "count": 3}}}, "test")
    tiles = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    columns = sample_views(tiles, augment, seed=3)
    assert [column.title for column in columns] == ["global 1", "global 2", "local 1", "local 2", "local 3"]
    assert [column.share for column in columns] == [1.0, 1.0, 0.5, 0.5, 0.5]
    made = Views(augment)(tiles, Draws(3, 0, range(2)))
    for column, view in zip(columns, made, strict=True):
        color = view * torch.tensor(augment.std).view(3, 1, 1) + torch.tensor(augment.mean).view(3, 1, 1)
        assert np.abs(column.images - color.numpy() * 255).max() <= 0.501


def test_few_views_are_drawn_for_several_steps():
    columns = sample_views(torch.zeros(1, 3, 40, 40, dtype=torch.uint8), views(), seed=0)
    assert [column.title for column in columns[:3]] == ["global 1, step 0", "global 2, step 0", "global 1, step 1"]
    assert len(columns) == 8


def test_cells_lie_side_by_side():
    def flat(*colors):
        return np.stack(
            [np.full((3, 50, 50), 1, np.uint8) * np.array(color, np.uint8)[:, None, None] for color in colors]
        )

    red, blue, green, black = (200, 0, 0), (0, 0, 200), (0, 200, 0), (0, 0, 0)
    sheet = draw_sheet("a title", [Column("a" * 99, flat(red, blue)), Column("half", flat(green, black), 0.5)])
    area = sheet.width * sheet.height
    assert [color_share(sheet, color) * area for color in (red, blue)] == [176**2, 176**2]
    assert color_share(sheet, green) * area == 88**2
    assert color_share(sheet, (255, 255, 255)) > 0.2
    pixels = np.asarray(sheet)
    across = np.flatnonzero((pixels == red).all(axis=2).any(axis=0))
    assert np.flatnonzero((pixels == green).all(axis=2).any(axis=0))[0] > across[-1]
    both = stacked([sheet, Image.new("RGB", (20, 30), "black")])
    assert both.size == (sheet.width, sheet.height + 30)


def test_the_density_is_the_mixtures(capsys):
    statistics = load_statistics("synthetic-lab")
    mixture = statistics.mixture
    spread = 0.7
    density = density_of(statistics, RandStainNAConfig(probability=1, statistics="synthetic-lab", spread=spread))
    x, y = np.meshgrid(np.linspace(80, 240, 30), np.linspace(5, 60, 30))
    for pair in ((0, 3), (0, 1)):
        expected = sum(
            weight * multivariate_normal(
                np.array(mean)[list(pair)], np.array(covariance)[np.ix_(pair, pair)] * spread**2
            ).pdf(np.stack([x, y], axis=-1))
            for weight, mean, covariance in zip(mixture.weights, mixture.means, mixture.covariances, strict=True)
        )  # fmt: skip
        assert density(*pair, x, y) == pytest.approx(expected, rel=1e-6, abs=1e-300)


@pytest.mark.parametrize("distribution", ["file", "normal", "laplace"])
def test_the_density_of_independent_numbers(distribution):
    statistics = load_statistics("synthetic-hsv")
    independent = statistics.independent
    config = RandStainNAConfig(model="independent", spread=0.5, distribution=distribution)
    x, y = np.meshgrid(np.linspace(120, 180, 20), np.linspace(0, 120, 20))
    found = density_of(statistics, config)(0, 1, x, y)
    expected = np.ones_like(x)
    for entry, values in ((0, x), (1, y)):
        kind = independent.distribution[entry] if distribution == "file" else distribution
        law = laplace if kind == "laplace" else norm
        expected *= law(independent.mean[entry], 0.5 * independent.std[entry]).pdf(values)
    assert found / found.max() == pytest.approx(expected / expected.max(), rel=1e-6, abs=1e-12)


def test_no_spread_is_a_density_too():
    statistics = load_statistics("synthetic-lab")
    x, y = np.meshgrid(np.linspace(0, 255, 20), np.linspace(0, 255, 20))
    for model in ("gmm", "independent"):
        assert np.isfinite(density_of(statistics, RandStainNAConfig(model=model, spread=0.0))(0, 1, x, y)).all()


def test_the_shaded_shares():
    x, y = np.meshgrid(np.linspace(-6, 6, 300), np.linspace(-6, 6, 300))
    heights = np.exp(-0.5 * (x**2 + y**2))
    # Of a round normal distribution a share p lies where the height is above 1 - p of its top.
    assert _levels(heights) == pytest.approx([0.01, 0.1, 0.5], rel=0.03)


@pytest.mark.parametrize("values", [np.zeros((1, 6)), np.full((3, 6), 7.0)])
def test_points_in_one_place_can_be_plotted(values):
    density = density_of(load_statistics("synthetic-lab"), RandStainNAConfig())
    picture = plot_distribution("t", "lab", Cloud("a", values), Cloud("b", np.empty((0, 6))), density, 900)
    assert picture.width == 900


def test_other_statistics():
    augment = AugmentConfig.parse({"views": {"a": {"randstainna": STAIN}, "b": {}}}, "test")
    changed = with_statistics(augment, "synthetic-hed", "preset p")
    assert changed.views["a"].randstainna.statistics == "synthetic-hed"
    assert changed.views["b"] == augment.views["b"]
    assert stain_of(changed) == changed.views["a"].randstainna
    assert with_statistics(augment, "crc-lab", "preset p").views["a"].randstainna.model == "independent"
    with pytest.raises(EosinError, match="preset p draws from none"):
        with_statistics(views(), "synthetic-hed", "preset p")
    with pytest.raises(EosinError, match="no such"):
        with_statistics(augment, "synthetic-rgb", "preset p")


def test_a_blank_source_and_bad_outputs(tmp_path, save_image, tissue):
    (tmp_path / "tiles").mkdir()
    save_image(tmp_path / "tiles" / "white.png", 250)
    with pytest.raises(EosinError, match="none of the 1 tiles"):
        preview(str(tmp_path / "tiles"), views(), tmp_path / "a.png", title="")
    assert not (tmp_path / "a.png").exists()
    with pytest.raises(EosinError, match="is a directory; give a file such as"):
        preview(str(tissue), views(), tmp_path, title="")
    for rows in (0, 41):
        with pytest.raises(EosinError, match=f"--rows {rows}"):
            preview(str(tissue), views(), tmp_path / "a.png", title="", rows=rows)
    with pytest.raises(EosinError, match="--seed -1: give a whole number from 0"):
        preview(str(tissue), views(), tmp_path / "a.png", title="", seed=-1)
    with pytest.raises(EosinError, match=r"a\.jpg: give a file name that ends in \.png"):
        preview(str(tissue), views(), tmp_path / "a.jpg", title="")


def test_blank_tiles_are_not_shown(tmp_path, save_image):
    for number in range(5):
        save_image(tmp_path / f"white-{number}.png", 250)
    save_image(tmp_path / "tissue.png", (220, 130, 190))
    assert ": 1 tile, " in preview(str(tmp_path), views(), tmp_path / "out.png", title="", rows=4)
