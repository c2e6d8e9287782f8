"""The statistics that come along: they describe the synthetic tissue, and are made again by one call."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from eosin.augment.image_statistics import image_statistics
from eosin.augment.stain_statistics import load_statistics
from eosin.stain import fit_synthetic
from eosin.synthetic import TISSUES, render_tile


def density(mixture, values):
    parts = zip(mixture.weights, mixture.means, mixture.covariances, strict=True)
    return sum(w * multivariate_normal(mean, covariance).pdf(values) for w, mean, covariance in parts)


@pytest.mark.parametrize("space", ["lab", "hsv", "hed"])
def test_fresh_tiles_lie_inside(space):
    statistics = load_statistics(f"synthetic-{space}")
    assert statistics.space == space
    assert statistics.tissue_only
    assert statistics.tiles > 1000
    assert "not real tissue" in statistics.source
    kinds = [name for name in TISSUES if name != "background"]
    tiles = [render_tile(kinds[n % len(kinds)], size=128, seed=77, slide=n).image for n in range(70)]
    values, _ = image_statistics(torch.from_numpy(np.stack(tiles)).to(torch.float32) / 255, space, True)
    values = values.numpy().astype(np.float64)
    independent = statistics.independent
    away = (values.mean(axis=0) - independent.mean) / np.array(independent.std)
    assert np.abs(away).max() < 0.8
    generator = np.random.default_rng(0)
    mixture = statistics.mixture
    place = generator.choice(len(mixture.weights), 4000, p=mixture.weights)
    drawn = [generator.multivariate_normal(mixture.means[k], mixture.covariances[k]) for k in place]
    edge = np.quantile(density(mixture, np.array(drawn)), 0.02)
    assert np.mean(density(mixture, values) > edge) > 0.9


def test_they_are_made_again_by_one_call(tmp_path):
    for name in ("a", "b"):
        found = fit_synthetic(tmp_path / name, tiles=32, slides=8)
        assert [statistics.space for statistics in found] == ["lab", "hsv", "hed"]
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        f"synthetic-{s}.json" for s in ("hed", "hsv", "lab")
    ]
    assert str(tmp_path) not in (tmp_path / "a" / "synthetic-lab.json").read_text()
