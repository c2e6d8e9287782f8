"""Metrics from one table of overlaps against one mask per nucleus, on random and on adversarial maps."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linear_sum_assignment

from eosin.core.errors import EosinError
from eosin.nuclei import metrics
from eosin.nuclei.metrics import Panoptic, image_metrics, panoptic, pq, pq_curve, typed_panoptic
from eosin.nuclei.overlap import overlap


def masks(labels):
    return [labels == value for value in sorted(set(np.unique(labels).tolist()) - {0})]


def table(true, found):
    """Intersections and unions [T, P] of two lists of masks."""
    size = true[0].size if true else found[0].size if found else 0
    a, b = (np.array(part, dtype=np.int64).reshape(len(part), size) for part in (true, found))
    return a @ b.T, size - (1 - a) @ (1 - b).T


def plain_dice(truth, predicted):
    a, b = truth > 0, predicted > 0
    return 2 * (a & b).sum() / (a.sum() + b.sum()) if a.any() or b.any() else np.nan


def plain_aji(truth, predicted):
    true, found = masks(truth), masks(predicted)
    both, either = table(true, found)
    if not true and not found:
        return np.nan
    shared = whole = 0
    taken = set()
    for i, mask in enumerate(true):
        iou = [both[i, j] / either[i, j] for j in range(len(found))]
        if iou and max(iou) > 0:
            j = iou.index(max(iou))
            taken.add(j)
            shared += both[i, j]
            whole += either[i, j]
        else:
            whole += mask.sum()
    whole += sum(mask.sum() for j, mask in enumerate(found) if j not in taken)
    return shared / whole


def plain_aji_plus(truth, predicted):
    """Dense Hungarian method, over (total IoU, then shared pixels)."""
    true, found = masks(truth), masks(predicted)
    if not true and not found:
        return np.nan
    both, either = table(true, found)
    gain = both / np.maximum(either, 1) + 1e-9 * both / max(both.sum(), 1)
    rows, columns = linear_sum_assignment(-gain)
    chosen = [(i, j) for i, j in zip(rows, columns, strict=True) if both[i, j] > 0]
    whole = sum(either[i, j] for i, j in chosen)
    whole += sum(mask.sum() for i, mask in enumerate(true) if i not in {i for i, _ in chosen})
    whole += sum(mask.sum() for j, mask in enumerate(found) if j not in {j for _, j in chosen})
    return sum(both[i, j] for i, j in chosen) / whole


def best_total(truth, predicted):
    """(total IoU, shared pixels) of the best pairing by trying all; for a handful of nuclei."""
    both, either = table(masks(truth), masks(predicted))
    if both.shape[0] > both.shape[1]:
        both, either = both.T, either.T
    best = (Fraction(0), 0)
    for columns in permutations(range(both.shape[1]), both.shape[0]):
        pairs = [(i, j) for i, j in enumerate(columns) if both[i, j]]
        total = sum((Fraction(int(both[p]), int(either[p])) for p in pairs), Fraction(0))
        best = max(best, (total, int(sum(both[p] for p in pairs))))
    return best


def plain_panoptic(truth, predicted, threshold=0.5):
    """TP, FP, FN, DQ, SQ, PQ."""
    true, found = masks(truth), masks(predicted)
    both, either = table(true, found)
    iou = [both[i, j] / either[i, j] for i in range(len(true)) for j in range(len(found))]
    hits = [value for value in iou if value > threshold]
    tp, fp, fn = len(hits), len(found) - len(hits), len(true) - len(hits)
    if not true and not found:
        return tp, fp, fn, np.nan, np.nan, np.nan
    dq = tp / (tp + fp / 2 + fn / 2)
    sq = sum(hits) / tp if tp else 0.0
    return tp, fp, fn, dq, sq, dq * sq


def keep_type(labels, types, kind):
    """The label map with nothing but the nuclei of one type; `types` in the order of the ids."""
    kept = labels.copy()
    for value, own in zip(sorted(set(np.unique(labels).tolist()) - {0}), types, strict=True):
        if own != kind:
            kept[kept == value] = 0
    return kept


def same(ours, theirs):
    return math.isnan(ours) if math.isnan(theirs) else abs(ours - theirs) <= 1e-12


def compare(truth, predicted):
    ours = image_metrics(overlap(truth, predicted))
    tp, fp, fn, dq, sq, quality = plain_panoptic(truth, predicted)
    expected = {"dice": plain_dice(truth, predicted), "aji": plain_aji(truth, predicted)}
    expected |= {"aji_plus": plain_aji_plus(truth, predicted), "dq": dq, "sq": sq, "pq": quality}
    wrong = {name: (ours[name], value) for name, value in expected.items() if not same(ours[name], value)}
    assert not wrong, wrong
    counts = panoptic(overlap(truth, predicted))
    assert (counts.tp, counts.fp, counts.fn) == (tp, fp, fn)


sides = st.tuples(st.integers(1, 6), st.integers(1, 6))
# With gaps, beyond 16 bits, and beyond what a table over ids can hold.
ids = st.sampled_from([0, 1, 2, 3, 4, 7, 255, 256, 65_535, 65_536, 70_000, 2**31 - 1])


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_two_maps(data):
    shape = data.draw(sides)
    kind = data.draw(st.sampled_from([np.int32, np.int64, np.uint32]))
    few = data.draw(st.booleans())
    elements = st.integers(0, 4) if few else ids
    compare(data.draw(arrays(kind, shape, elements=elements)), data.draw(arrays(kind, shape, elements=elements)))


def test_thousands_of_maps_of_single_pixels():
    generator = np.random.default_rng(7)
    for _ in range(2000):
        shape = tuple(generator.integers(1, 8, 2))
        compare(*(generator.integers(0, generator.integers(1, 8), shape) * 7 for _ in range(2)))


def rectangles(generator, side, count, top):
    """Rectangles over one another: touching, nested and cut ones."""
    labels = np.zeros((side, side), dtype=np.int64)
    for value in generator.choice(np.arange(1, top), size=count, replace=False):
        y, x = generator.integers(0, side, 2)
        h, w = generator.integers(1, side // 2, 2)
        labels[y : y + h, x : x + w] = value
    return labels


@pytest.mark.parametrize("seed", range(5))
def test_hundreds_of_maps_of_rectangles(seed):
    generator = np.random.default_rng(seed)
    for _ in range(100):
        side = int(generator.integers(4, 24))
        truth = rectangles(generator, side, int(generator.integers(0, 9)), 60)
        predicted = rectangles(generator, side, int(generator.integers(0, 9)), 60)
        if generator.random() < 0.5:  # a prediction that resembles the truth
            predicted = np.roll(truth, generator.integers(-1, 2, 2), (0, 1)) + (truth > 0) * 5
        compare(truth, predicted)


def test_the_pairing_of_aji_plus_is_the_best_there_is():
    generator = np.random.default_rng(0)
    ties = 0
    for _ in range(150):
        truth = generator.integers(0, 5, (3, 4))
        predicted = generator.integers(0, 5, (3, 4))
        total, shared = best_total(truth, predicted)
        pairs = overlap(truth, predicted)
        chosen = metrics._assign(pairs)
        assert abs(float(total) - pairs.iou[chosen].sum()) < 1e-12
        assert pairs.shared[chosen].sum() == shared
        assert len(set(pairs.first[chosen])) == len(set(pairs.second[chosen])) == len(chosen)
        ties += total > 0
    assert ties > 100


def test_where_nothing_can_be_measured_and_where_all_is_wrong():
    nothing, full = np.zeros((6, 7), np.int32), np.ones((6, 7), np.int32)
    halves = full.copy()
    halves[:3] = 2
    assert all(math.isnan(value) for value in image_metrics(overlap(nothing, nothing)).values())
    for truth, predicted in ((nothing, full), (full, nothing), (nothing, halves)):
        assert set(image_metrics(overlap(truth, predicted)).values()) == {0.0}
    assert set(image_metrics(overlap(full, full)).values()) == {1.0}
    # No background, and an IoU of exactly 1/2, which does not match.
    values = image_metrics(overlap(full, halves))
    assert values["dice"] == 1
    assert values["pq"] == 0
    assert values["aji"] == values["aji_plus"] == 1 / 3
    assert pq(full, halves) == Panoptic(0, 2, 1, 0.0)


def test_more_than_65_536_nuclei():
    truth = np.arange(300 * 300, dtype=np.int32).reshape(300, 300)  # the first pixel is the background
    shifted = np.roll(truth, 1, axis=0) + 100_000
    shifted[0, :10] = 0
    pairs = overlap(truth, shifted)
    assert len(pairs.truth_areas) == 300 * 300 - 1
    assert len(pairs.predicted_areas) == 300 * 300 - 10
    expected = 300 * 300 - 10  # each pixel of a prediction is one nucleus of one pixel, but for the background's
    assert pairs.shared.sum() == expected
    values = image_metrics(pairs)
    assert values["pq"] == expected / ((len(pairs.truth_areas) + len(pairs.predicted_areas)) / 2)
    assert values["aji"] == values["aji_plus"] == expected / (300 * 300 - 1)


def test_large_knots_are_solved_alike():
    """Many nuclei that all touch: the case in which every nucleus has several candidates."""
    generator = np.random.default_rng(3)
    seeds = generator.integers(0, 60, (2, 60, 2))
    grid = np.stack(np.mgrid[:60, :60], axis=-1)
    truth, predicted = (
        1 + ((grid[:, :, None] - part[None, None]) ** 2).sum(-1).argmin(-1).astype(np.int64) for part in seeds
    )
    compare(truth, predicted)
    compare(truth * 3000, predicted * 50_000)


def test_a_64_bit_and_an_unsigned_map_compare():
    truth = np.array([[0, 2**40, 2**40], [5, 5, 0]], dtype=np.int64)
    predicted = np.array([[0, 9, 9], [65_535, 0, 0]], dtype=np.uint16)
    compare(truth, predicted.astype(np.int64))
    assert image_metrics(overlap(truth, predicted)) == image_metrics(overlap(truth, predicted.astype(np.int64)))
    assert overlap(truth, predicted).truth_ids.tolist() == [5, 2**40]


def test_types_count_as_if_each_were_alone():
    generator = np.random.default_rng(1)
    for _ in range(60):
        truth, predicted = rectangles(generator, 16, 6, 20), rectangles(generator, 16, 6, 20)
        predicted = np.where(generator.random(truth.shape) < 0.8, truth, predicted)
        pairs = overlap(truth, predicted)
        kinds = [generator.integers(1, 4, len(areas)) for areas in (pairs.truth_areas, pairs.predicted_areas)]
        for kind, counts in zip((1, 2, 3), typed_panoptic(pairs, *kinds, (1, 2, 3)), strict=True):
            alone = [keep_type(m, t, kind) for m, t in zip((truth, predicted), kinds, strict=True)]
            tp, fp, fn, dq, sq, quality = plain_panoptic(*alone)
            assert (counts.tp, counts.fp, counts.fn) == (tp, fp, fn)
            assert same(counts.dq, dq)
            assert same(counts.sq, sq)
            assert same(counts.pq, quality)
    with pytest.raises(EosinError, match="1 types for"):
        typed_panoptic(pairs, kinds[0][:1], kinds[1], (1,))


def test_curve_and_thresholds():
    truth, predicted = np.zeros((2, 4, 10), np.int32)
    truth[0], predicted[0, :9], truth[2], predicted[2, :6] = 1, 1, 2, 2
    curve = pq_curve(overlap(truth, predicted), [0.5, 0.75, 0.95])
    assert [c.tp for c in curve] == [2, 1, 0]
    assert curve[1].pq == pytest.approx(0.9 / 2)
    with pytest.raises(EosinError, match=r"threshold 0\.4"):
        pq(truth, predicted, 0.4)


def test_maps_of_two_sizes_are_refused():
    with pytest.raises(EosinError, match="5x4 and 4x5 px"):
        overlap(np.zeros((4, 5), int), np.zeros((5, 4), int))
