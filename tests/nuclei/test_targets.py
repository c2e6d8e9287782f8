"""Targets against one mask per nucleus, step by step as published; cuts; what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from eosin.core.errors import EosinError
from eosin.nuclei.labels import split_parts
from eosin.nuclei.targets import center_cut, targets
from eosin.synthetic import render_tile


def plain_hv(canvas, crop, small=30, official=True):
    """One mask per nucleus, on the whole canvas."""
    height, width = canvas.shape
    top, left = (height - crop[0]) // 2, (width - crop[1]) // 2
    window = (slice(top, top + crop[0]), slice(left, left + crop[1]))
    hv = np.zeros((2, height, width), dtype=np.float32)
    for number in np.unique(canvas[window]):
        if number == 0 or (canvas[window] == number).sum() < small:
            continue
        mask = canvas == number
        y, x = ndimage.center_of_mass(mask)
        if official:
            y, x = int(y + 0.5) - 1, int(x + 0.5) - 1
        for channel, places in ((0, np.arange(width)[None] - x), (1, np.arange(height)[:, None] - y)):
            own = np.where(mask, places, 0).astype(np.float32)
            if (own < 0).any():
                own[own < 0] /= -own.min()
            if (own > 0).any():
                own[own > 0] /= own.max()
            hv[channel][mask] = own[mask]
    return hv[(slice(None), *window)]


@pytest.mark.parametrize("official", [True, False])
@pytest.mark.parametrize("crop", [(80, 80), (164, 163), (1, 1), (256, 256)])
def test_equal_one_mask_per_nucleus(crop, official):
    for kind in ("tumor", "stroma", "lymphocytes"):
        labels = render_tile(kind, size=256, mpp=0.25, slide=1, index=2).instances
        found = targets(labels, crop=crop, center="official" if official else "exact")
        expected = plain_hv(labels, crop, official=official)
        np.testing.assert_array_equal(found.hv, expected) if official else np.testing.assert_allclose(
            found.hv, expected, atol=1e-6
        )
        window = center_cut(256, 256, crop)
        np.testing.assert_array_equal(found.np, labels[window] > 0)
        assert found.np.dtype == np.uint8
        assert found.hv.dtype == np.float32


@given(
    arrays(np.int32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from([0, 0, 1, 2, 70_000]))
)
def test_equal_on_any_map(labels):
    whole = split_parts(labels)
    crop = tuple((side + 1) // 2 for side in labels.shape)
    found = targets(whole, crop=crop, small=2)
    np.testing.assert_array_equal(found.hv, plain_hv(whole, crop, small=2))
    assert np.isfinite(found.hv).all()
    assert np.abs(found.hv).max() <= 1


def test_small_nuclei_are_in_the_nucleus_map_only():
    labels = np.zeros((40, 40), np.int32)
    labels[2:7, 2:7] = 1  # 25 px
    labels[20:26, 20:26] = 2  # 36 px
    found = targets(labels)
    assert found.np.sum() == 61
    assert not found.hv[:, 2:7, 2:7].any()
    assert found.hv[0, 20:26, 20:26].max() == 1
    # Half of the second lies outside this cut: too small there.
    cut = targets(labels, crop=(12, 12))
    assert cut.np.sum() == 36
    assert targets(labels, crop=(8, 8)).np.sum() == 16
    assert not targets(labels, crop=(8, 8)).hv.any()


def test_left_is_minus_one_and_the_first_channel_is_horizontal():
    labels = np.zeros((20, 30), np.int32)
    labels[5:14, 3:24] = 4
    hv = targets(labels, center="exact").hv
    assert hv[0, 8, 3] == -1
    assert hv[0, 8, 13] == 0
    assert hv[0, 8, 23] == 1
    assert hv[1, 5, 8] == -1
    assert hv[1, 9, 8] == 0
    assert hv[1, 13, 8] == 1
    official = targets(labels).hv
    assert official[0, 8, 12] == 0
    assert official[1, 8, 8] == 0


def test_types_of_pixels_and_of_nuclei():
    labels = np.zeros((10, 10), np.int32)
    labels[1:5, 1:5], labels[6:9, 6:9] = 30, 7
    by_nucleus = targets(labels, [2, 5], crop=(6, 6)).tp
    map_of_types = np.where(labels == 7, 2, np.where(labels == 30, 5, 0))
    np.testing.assert_array_equal(by_nucleus, map_of_types[2:8, 2:8])
    np.testing.assert_array_equal(targets(labels, map_of_types, crop=(6, 6)).tp, by_nucleus)
    assert by_nucleus.dtype == np.int64
    assert targets(labels).tp is None
    with pytest.raises(EosinError, match="1 types for 2 nuclei"):
        targets(labels, [2])
    with pytest.raises(EosinError, match="label map"):
        targets(labels, np.zeros((9, 10), int))


def test_no_nuclei_and_too_small_a_map():
    found = targets(np.zeros((8, 9), np.uint16), [], crop=(4, 4))
    assert not found.np.any()
    assert not found.hv.any()
    assert not found.tp.any()
    with pytest.raises(EosinError, match="9x8 px are too few for a cut of 9x10 px"):
        targets(np.zeros((8, 9), np.uint16), crop=(10, 9))
