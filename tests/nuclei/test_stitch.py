"""Blocks of any size give the nuclei of the whole image."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from eosin.nuclei.found import Nuclei, joined
from eosin.nuclei.postprocess import postprocess
from eosin.nuclei.stitch import LARGEST, Box, blocks, find, margins, surroundings
from eosin.nuclei.targets import targets
from eosin.synthetic import render_tile


def ideal(seed=0, size=288, kind="tumor", noise=0.15):
    """Maps of a network that has seen synthetic nuclei, with noise as real ones have it."""
    labels = render_tile(kind, size=size, mpp=0.5, slide=seed).instances
    wanted = targets(labels)
    draws = np.random.default_rng(seed)

    def smooth(*shape):
        return ndimage.gaussian_filter(draws.normal(size=shape), 2, axes=(-2, -1)) * 7

    probability = np.clip(wanted.np + noise * smooth(size, size), 0, 1).astype(np.float32)
    hv = (wanted.hv + noise * smooth(2, size, size)).astype(np.float32)
    types = np.where(labels > 0, 1 + labels % 3, 0).astype(np.uint8)
    return probability, hv, types


def in_blocks(maps, cores, scale=0.5):
    probability, hv, types = maps
    height, width = probability.shape
    parts, widened = [], 0
    for core in cores:
        tries = margins(scale)
        for margin in tries:
            block = surroundings(core, margin, width, height)
            place = block.within(Box(0, 0, width, height))
            kinds = None if types is None else types[place]
            last = margin == tries[-1]
            found = find(
                probability[place],
                hv[(slice(None), *place)],
                kinds,
                block,
                core,
                (width, height),
                scale=scale,
                last=last,
            )
            if found is not None:
                break
            widened += 1
        parts.append(found)
    return joined(parts), widened


def whole(maps, scale=0.5):
    probability, hv, types = maps
    one_hot = None if types is None else np.eye(4, dtype=np.float32)[types].transpose(2, 0, 1)
    found = postprocess(probability, hv, one_hot, scale=scale, normalise="fixed")
    return Nuclei.of(found.table, found.instances)


def as_set(nuclei):
    return {
        (
            tuple(nuclei.boxes[place].tolist()),
            nuclei.mask(place).tobytes(),
            int(nuclei.types[place]),
            round(float(nuclei.probabilities[place]), 6),
            nuclei.outline(place).tobytes(),
            tuple(np.round(nuclei.centroids[place], 6).tolist()),
        )
        for place in range(len(nuclei))
    }


@pytest.fixture(scope="module")
def pictures():
    kinds = ("tumor", "glands")
    maps = [ideal(seed, kind=kind) for seed, kind in enumerate(kinds)]
    return [(one, whole(one)) for one in maps]


@settings(max_examples=5)
@given(which=st.integers(0, 1), side=st.integers(60, 300))
def test_blocks_of_any_size_find_the_nuclei_of_the_whole(pictures, which, side):
    maps, expected = pictures[which]
    found, _ = in_blocks(maps, blocks(288, 288, side))
    assert len(expected) > 20
    assert len(found) == len(expected)
    assert as_set(found) == as_set(expected)


def test_cores_of_any_cut(pictures):
    maps, expected = pictures[0]
    xs, ys = [0, 3, 130, 288], [0, 77, 288]
    cores = [Box(a, c, b, d) for c, d in pairwise(ys) for a, b in pairwise(xs)]
    assert as_set(in_blocks(maps, cores)[0]) == as_set(expected)


def test_a_second_look_makes_up_for_any_margin(pictures, monkeypatch):
    maps, expected = pictures[0]
    monkeypatch.setattr("eosin.nuclei.stitch._MARGIN", 2)
    monkeypatch.setattr("eosin.nuclei.stitch._ALIGNED", 1)
    found, widened = in_blocks(maps, blocks(288, 288, 96))
    assert widened > 0
    assert as_set(found) == as_set(expected)
    monkeypatch.setattr("eosin.nuclei.stitch._uncertain", lambda *given: np.zeros(given[-1] + 1, bool))
    without, _ = in_blocks(maps, blocks(288, 288, 96))
    assert as_set(without) != as_set(expected)


def test_at_another_scale_and_without_types():
    probability, hv, _ = ideal(5, 150)
    maps = (probability.repeat(2, axis=0), hv.repeat(2, axis=1), None)
    expected = whole(maps, 0.7)
    assert as_set(in_blocks(maps, blocks(150, 300, 61), 0.7)[0]) == as_set(expected)
    assert set(expected.types) == {-1}


def worm(length=330):
    """One nucleus as long as a margin is not wide."""
    labels = np.zeros((128, 1100), np.int32)
    labels[50:80, 40 : 40 + length] = 1
    labels[100:116, 900:920] = 2
    wanted = targets(labels)
    return wanted.np.astype(np.float32), wanted.hv, None


def test_a_margin_is_widened_where_a_nucleus_reaches_out_of_it():
    maps = worm()
    found, widened = in_blocks(maps, blocks(1100, 128, 64), 1.0)
    assert widened > 0
    assert as_set(found) == as_set(whole(maps, 1.0))


def test_what_is_larger_than_a_nucleus_is_cut_at_cores_and_nothing_is_there_twice():
    maps = worm(800)
    assert LARGEST < 800
    everything = whole(maps, 1.0)
    found, _ = in_blocks(maps, blocks(1100, 128, 200), 1.0)
    canvas, sums = np.zeros((128, 1100), np.int32), np.zeros((128, 1100), np.int32)
    for place in range(len(found)):
        x0, y0, x1, y1 = found.boxes[place]
        sums[y0:y1, x0:x1] += found.mask(place)
    everything.paint(canvas, (0, 0), 1)
    assert sums.max() == 1
    assert ((sums > 0) == (canvas > 0)).all()


def test_painting_a_part_shows_what_lies_in_it(pictures):
    _, expected = pictures[0]
    canvas = np.zeros((288, 288), np.uint16)
    expected.paint(canvas, (0, 0), 7)
    part = np.zeros((50, 90), np.uint16)
    expected.paint(part, (101, 203), 7)
    assert (part == canvas[203:253, 101:191]).all()
    assert canvas.max() == 6 + len(expected)


def test_saved_nuclei_come_back_and_damaged_files_are_none(pictures, tmp_path):
    _, expected = pictures[0]
    expected.save(tmp_path / "a.npz")
    assert as_set(Nuclei.load(tmp_path / "a.npz")) == as_set(expected)
    data = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "b.npz").write_bytes(data[: len(data) // 2])
    assert Nuclei.load(tmp_path / "b.npz") is None
    assert Nuclei.load(tmp_path / "absent.npz") is None


def test_parts_are_joined_in_order(pictures):
    _, expected = pictures[0]
    both = joined([expected, joined([]), expected])
    assert len(both) == 2 * len(expected)
    assert (both.mask(len(expected) + 3) == expected.mask(3)).all()
    assert (both.outline(len(expected) + 3) == expected.outline(3)).all()
