"""Post-processing against the published law written plainly with OpenCV and scikit-image; outlines; descriptions."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from skimage.morphology import remove_small_objects
from skimage.segmentation import watershed

from eosin.core.errors import EosinError
from eosin.nuclei import postprocess as module
from eosin.nuclei.labels import relabel
from eosin.nuclei.metrics import pq
from eosin.nuclei.outlines import outlines
from eosin.nuclei.postprocess import describe, postprocess, segment
from eosin.nuclei.targets import targets
from eosin.synthetic import render_tile


def stretch(values):
    return cv2.normalize(values, None, 0, 1, cv2.NORM_MINMAX, cv2.CV_32F)


def plain_law(np_prob, hv, ksize=21, smallest=10):
    blobs = remove_small_objects(ndimage.label(np_prob >= 0.5)[0], max_size=smallest - 1) > 0
    slopes = [
        1 - stretch(cv2.Sobel(stretch(hv[0]), cv2.CV_64F, 1, 0, ksize=ksize)),
        1 - stretch(cv2.Sobel(stretch(hv[1]), cv2.CV_64F, 0, 1, ksize=ksize)),
    ]
    overall = np.maximum(np.maximum(*slopes) - (1.0 - blobs), 0)
    height = -cv2.GaussianBlur((1.0 - overall) * blobs, (3, 3), 0)
    marks = np.maximum(blobs.astype(int) - (overall >= 0.4), 0)
    marks = ndimage.binary_fill_holes(marks).astype(np.uint8)
    marks = cv2.morphologyEx(marks, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5)))
    marks = remove_small_objects(ndimage.label(marks)[0], max_size=smallest - 1)
    return watershed(height, marks, mask=blobs)


def predicted(kind, size=256, mpp=0.25, seed=0, noise=0.15):
    """Maps like a network's: the targets of synthetic tissue, blurred, with smooth noise also in the background."""
    labels = render_tile(kind, size=size, mpp=mpp, slide=seed, index=seed).instances
    wanted = targets(labels, center="exact")
    generator = np.random.default_rng(seed)

    def rough(amount):
        return amount * ndimage.gaussian_filter(generator.normal(size=labels.shape), 1.5) * 5

    np_prob = np.clip(ndimage.gaussian_filter(wanted.np.astype(float), 0.7) + rough(noise), 0, 1)
    hv = np.stack([ndimage.gaussian_filter(channel, 0.8) + rough(noise) for channel in wanted.hv])
    return labels, np_prob.astype(np.float32), hv.astype(np.float32)


@pytest.mark.parametrize("kind", ["tumor", "stroma", "lymphocytes", "glands"])
@pytest.mark.parametrize("noise", [0.05, 0.15, 0.4])
def test_instances_are_those_of_the_plain_law(kind, noise):
    for seed in range(3):
        _, np_prob, hv = predicted(kind, 200 + 37 * seed, seed=seed, noise=noise)
        expected = relabel(plain_law(np_prob, hv))
        assert expected.max() > 0
        np.testing.assert_array_equal(segment(np_prob, hv), expected)


@pytest.mark.parametrize(("scale", "ksize", "smallest"), [(0.5, 11, 3), (1.5, 31, 23), (0.6, 13, 4)])
def test_scale_sets_filters_and_least_areas(scale, ksize, smallest):
    _, np_prob, hv = predicted("tumor", mpp=0.25 / scale, noise=0.1)
    np.testing.assert_array_equal(segment(np_prob, hv, scale=scale), relabel(plain_law(np_prob, hv, ksize, smallest)))


@pytest.mark.parametrize("normalise", ["official", "fixed"])
def test_ideal_maps_give_the_nuclei_back(normalise):
    for kind in ("tumor", "stroma", "lymphocytes", "glands"):
        labels = render_tile(kind, size=500, mpp=0.25, slide=0, index=0).instances
        for center in ("exact", "official"):
            wanted = targets(labels, center=center)
            found = segment(wanted.np.astype(np.float32), wanted.hv, normalise=normalise)
            assert pq(labels, found).pq > 0.95, kind


def test_fixed_does_not_depend_on_the_rest_of_the_tile():
    _, np_prob, hv = predicted("tumor", 300)
    half = segment(np_prob[:, :200], hv[:, :, :200], normalise="fixed")
    whole = segment(np_prob, hv, normalise="fixed")
    # Nuclei that lie well inside both.
    inner = whole[:, :140]
    kept = np.setdiff1d(np.unique(inner), np.unique(whole[:, 140:]))
    assert len(kept) > 10
    for number in kept[kept > 0]:
        own = whole == number
        (there,) = np.unique(half[own[:, :200]])
        assert (half == there).sum() == own.sum()
    hv[:, -20:, -20:] = np.random.default_rng(0).normal(size=(2, 20, 20)) * 30
    spoiled = segment(np_prob, hv, normalise="fixed")
    np.testing.assert_array_equal(relabel(spoiled[:200, :200]), relabel(whole[:200, :200]))
    official = segment(np_prob, hv)
    assert (relabel(official[:200, :200]) != relabel(whole[:200, :200])).any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (2, 2), (5, 33), (65, 31)])
@pytest.mark.parametrize("value", [0.0, 0.7])
def test_odd_sizes_and_constant_maps(shape, value):
    np_prob, hv = np.full(shape, value, np.float32), np.zeros((2, *shape), np.float32)
    for normalise in ("official", "fixed"):
        found = postprocess(np_prob, hv, normalise=normalise)
        assert found.instances.shape == shape
        assert found.instances.dtype == np.int32
        assert len(found.table) == found.instances.max()


def test_what_is_refused():
    np_prob, hv = np.zeros((8, 9), np.float32), np.zeros((2, 8, 9), np.float32)
    with pytest.raises(EosinError, match=r"\(8, 9\) and HV maps \(2, 9, 8\)"):
        segment(np_prob, np.zeros((2, 9, 8), np.float32))
    with pytest.raises(EosinError, match="not finite"):
        segment(np_prob, np.where(np.arange(9) == 3, np.nan, hv).astype(np.float32))
    with pytest.raises(EosinError, match="not finite"):
        segment(np_prob + np.float32(np.inf), hv)
    with pytest.raises(EosinError, match="scale 0"):
        segment(np_prob, hv, scale=0)
    with pytest.raises(EosinError, match="type map"):
        describe(np.zeros((8, 9), np.int32), np_prob, np.zeros((3, 9, 8), np.float32))


@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_morphology(mask):
    np.testing.assert_array_equal(module._fill(mask), ndimage.binary_fill_holes(mask))
    ellipse = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    opened = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, ellipse)
    np.testing.assert_array_equal(module._open(mask), opened > 0)


@pytest.mark.parametrize("size", [3, 11, 21, 31])
@pytest.mark.parametrize("shape", [(40, 70), (32, 64), (33, 7)])
def test_filters(size, shape):
    if size // 2 >= min(shape):
        pytest.skip("OpenCV mirrors once only")
    values = np.random.default_rng(0).normal(size=shape)
    smooth, slope = module._sobel(size)
    for along, (dx, dy) in ((1, (1, 0)), (0, (0, 1))):
        ours = module._filtered(module._filtered(values, slope, along), smooth, 1 - along)
        theirs = cv2.Sobel(values, cv2.CV_64F, dx, dy, ksize=size)
        np.testing.assert_allclose(ours, theirs, atol=1e-12 * np.abs(theirs).max())


def test_descriptions_against_one_mask_per_nucleus():
    labels, np_prob, _ = predicted("tumor", 300)
    labels = relabel(labels)
    scores = np.random.default_rng(1).random((5, 300, 300)).astype(np.float32)
    scores[0] += 0.3
    kinds = scores.argmax(axis=0)
    table = describe(labels, np_prob, scores)
    plain = describe(labels, np_prob)
    assert [nucleus.id for nucleus in table] == list(range(1, labels.max() + 1))
    seconds = 0
    for nucleus, untyped in zip(table, plain, strict=True):
        mask = labels == nucleus.id
        y, x = ndimage.center_of_mass(mask)
        assert nucleus.centroid == pytest.approx((x, y), abs=1e-9)
        assert nucleus.area == mask.sum()
        rows, columns = np.nonzero(mask)
        assert nucleus.bbox == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        votes = np.bincount(kinds[mask], minlength=5)
        kind = int(votes.argmax())
        if kind == 0 and votes[1:].any():
            kind = 1 + int(votes[1:].argmax())
            seconds += 1
        assert nucleus.type == kind
        assert nucleus.probability == pytest.approx(votes[kind] / mask.sum())
        assert untyped.type is None
        assert untyped.probability == pytest.approx(np_prob[mask].mean(), rel=1e-6)
    assert seconds > 10
    only = describe(np.ones((2, 2), np.int32), np.ones((2, 2), np.float32), np.zeros((3, 2, 2), np.float32))
    assert (only[0].type, only[0].probability) == (0, 1.0)
    assert describe(np.zeros((4, 4), np.int32), np.zeros((4, 4), np.float32)) == []


def area(polygon):
    x, y = polygon.astype(float).T
    return (x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2


def fill(polygon, shape):
    """Pixels whose centers a polygon encloses, by the even-odd rule."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    inside = np.zeros(shape, bool)
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if x0 == x1:  # edges along y are all that a ray along x meets
            inside ^= (x < x0) & (y > min(y0, y1)) & (y < max(y0, y1))
    return inside


@given(arrays(np.int32, st.tuples(st.integers(1, 8), st.integers(1, 8)), elements=st.sampled_from([0, 1, 2, 3])))
def test_outlines_of_any_map(labels):
    found = outlines(labels)
    assert len(found) == labels.max()
    for number, polygon in enumerate(found, start=1):
        mask = labels == number
        if not mask.any():
            assert polygon.shape == (0, 2)
            continue
        parts, count = ndimage.label(mask)
        filled = [ndimage.binary_fill_holes(parts == part, np.ones((3, 3))) for part in range(1, count + 1)]
        enclosed = fill(polygon, labels.shape)
        assert area(polygon) == enclosed.sum() == max(part.sum() for part in filled)
        assert any((enclosed == part).all() for part in filled)
        steps = np.diff(polygon, axis=0, append=polygon[:1])
        assert (np.count_nonzero(steps, axis=1) == 1).all()  # along edges
        assert ((steps[:, 0] == 0) != (np.roll(steps, 1, axis=0)[:, 0] == 0)).all()  # a turn at every corner


def test_a_pixel_is_a_square_and_touching_nuclei_share_edges():
    square, other = outlines(np.array([[0, 1], [0, 2]]))
    assert square.tolist() == [[1, 0], [2, 0], [2, 1], [1, 1]]
    assert other.tolist() == [[1, 1], [2, 1], [2, 2], [1, 2]]
    assert math.isclose(area(square), 1)
    assert square.dtype == np.int32
