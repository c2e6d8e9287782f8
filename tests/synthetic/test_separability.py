"""Color must not give the tissue away, texture must."""

import numpy as np
import pytest
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from eosin.synthetic import TISSUES, render_tile

SLIDES, PER_SLIDE = 30, 2


def color(image):
    pixels = image.reshape(3, -1).astype(float)
    return np.concatenate([pixels.mean(1), pixels.std(1)])


def texture(image):
    """Histograms of gradient and Laplacian at four scales, of the density without its mean and spread."""
    density = -np.log((image.astype(np.float32) + 1) / 256).sum(0)
    density = (density - density.mean()) / (density.std() + 0.15)
    features = []
    for sigma in (0.7, 1.4, 2.8, 5.6):
        gx, gy = np.gradient(ndimage.gaussian_filter(density, sigma))
        slope = np.hypot(gx, gy) * sigma
        features.append(np.histogram(slope, [0, 0.03, 0.07, 0.15, 0.3, 0.5, 0.8, 1.2, 99])[0] / slope.size)
        bumps = ndimage.gaussian_laplace(density, sigma) * sigma**2
        features.append(np.histogram(bumps, [-99, -1, -0.5, -0.2, -0.07, 0.07, 0.2, 0.5, 1, 99])[0] / bumps.size)
        xx, yy, xy = (gx * gx).mean(), (gy * gy).mean(), (gx * gy).mean()
        features.append([np.hypot(xx - yy, 2 * xy) / (xx + yy + 1e-9)])
    return np.concatenate(features)


@pytest.fixture(scope="module")
def tiles():
    drawn, labels, slides = [], [], []
    for slide in range(SLIDES):
        for label, tissue in enumerate(TISSUES):
            for index in range(PER_SLIDE):
                drawn.append(render_tile(tissue, seed=17, slide=slide, index=index).image)
                labels.append(label)
                slides.append(slide)
    return drawn, np.array(labels), np.array(slides)


def score(features, labels, slides):
    train = slides < 0.6 * SLIDES
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=3000))
    probe.fit(features[train], labels[train])
    return probe.score(features[~train], labels[~train])


def test_texture_tells_tissues_apart_and_color_does_not(tiles):
    drawn, labels, slides = tiles
    by_color = score(np.stack([color(image) for image in drawn]), labels, slides)
    by_texture = score(np.stack([texture(image) for image in drawn]), labels, slides)
    assert by_color <= 0.70
    assert by_texture >= by_color + 0.15
    assert by_texture >= 0.85
