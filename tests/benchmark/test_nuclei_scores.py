"""Counts of test images as files, what is pooled from them, and galleries of the best and worst."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest

from eosin.benchmark.nuclei_gallery import Extremes, svg_path
from eosin.benchmark.nuclei_scores import image_scores, load_scores, per_image, pooled_intervals, score_table
from eosin.core.errors import EosinError
from eosin.nuclei.datasets import NucleiSample
from eosin.nuclei.outlines import outlines
from eosin.nuclei.score import score_image, set_scores

CLASSES = ("round", "other")


def squares(count, side=40, size=7):
    """Return int32 [side, side], nuclei on a grid."""
    labels = np.zeros((side, side), dtype=np.int32)
    step = side // 4
    for number in range(count):
        y, x = 1 + number // 4 * step, 1 + number % 4 * step
        labels[y : y + size, x : x + size] = number + 1
    return labels


def scored(number, seed=0, typed=True):
    """Score an image of `number` true nuclei, in which some are found."""
    generator = np.random.default_rng([seed, number])
    truth = squares(number)
    found = np.where(generator.random(number + 1)[truth] < 0.7, np.roll(truth, generator.integers(0, 4), 1), 0)
    ids = np.unique(found[found > 0])
    types = (generator.integers(1, 3, number), generator.integers(0, 3, len(ids)), (1, 2)) if typed else ()
    return score_image(f"i{number}", truth, found, *types, group=f"g{number % 3}", tissue="skin")


@pytest.mark.parametrize("typed", [True, False])
def test_a_table_holds_all_that_scores_are_made_of(typed, tmp_path):
    classes = CLASSES if typed else ()
    scores = [scored(number, typed=typed) for number in (0, 1, 5, 9, 16)]
    table = score_table(scores, classes)
    pq.write_table(table, tmp_path / "scores.parquet")
    again = image_scores(pq.read_table(tmp_path / "scores.parquet"), classes)
    types = dict(enumerate(classes, 1)) or None
    assert set_scores(again, types) == set_scores(scores, types)
    for one, other in zip(scores, again, strict=True):
        assert (one.name, one.group, one.tissue, one.truth, one.predicted) == (
            other.name,
            other.group,
            other.tissue,
            other.truth,
            other.predicted,
        )
        assert one.curve == other.curve
        assert one.detection == other.detection
        assert one.types == other.types
    # Nothing to measure is a null, not a number.
    assert table["pq"].to_pylist()[0] is None
    assert np.isnan(again[0].metrics["pq"])


def write(out, seed, numbers=(0, 3, 5, 9, 16, 12)):
    scores = [scored(number, seed) for number in numbers]
    pq.write_table(score_table(scores, CLASSES), out / f"{seed}.parquet")
    return scores, {"predictions": f"{seed}.parquet", "classes": list(CLASSES)}


def test_pooled_intervals_draw_groups_once_for_all_seeds(tmp_path):
    scores, record = write(tmp_path, 0)
    alone = set_scores(scores, dict(enumerate(CLASSES, 1)))
    once = pooled_intervals(tmp_path, [record])
    assert once == {name: (estimate["low"], estimate["high"]) for name, estimate in alone.items()}
    # A seed twice is no more images than once.
    twice = pooled_intervals(tmp_path, [record, record])
    for name, ends in once.items():
        assert twice[name] == pytest.approx(ends, nan_ok=True)
    _, other = write(tmp_path, 1)
    both = pooled_intervals(tmp_path, [record, other])
    assert both["pq"] != once["pq"]


def test_values_of_images_are_read_for_a_paired_test(tmp_path):
    scores, record = write(tmp_path, 0)
    found = per_image(tmp_path, record, "aji")
    assert list(found.names) == [image.name for image in scores]
    assert np.isnan(found.values[0])
    assert list(found.groups) == [image.group for image in scores]


def test_files_that_cannot_be_read_are_named(tmp_path):
    _, record = write(tmp_path, 0)
    with pytest.raises(EosinError, match=r"1\.parquet: not found"):
        load_scores(tmp_path, record | {"predictions": "1.parquet"})
    with pytest.raises(EosinError, match=r"0\.parquet: unreadable"):
        load_scores(tmp_path, record | {"classes": ["round", "third"]})
    (tmp_path / "0.parquet").write_bytes(b"PAR1")
    with pytest.raises(EosinError, match=r"0\.parquet: unreadable"):
        load_scores(tmp_path, record)


def shown(number, kept, side=40, scale=1):
    """Return the score, sample and prediction of an image of which `kept` of 12 nuclei are found."""
    truth = np.kron(squares(12, side), np.ones((scale, scale), dtype=np.int32))
    found = np.where(truth <= kept, truth, 0)
    image = np.full((3, *truth.shape), 200, dtype=np.uint8)
    return score_image(f"i{number}", truth, found), NucleiSample(image, truth, None), found


def names(extremes, kind):
    return [entry.score.name for found, _, entry in extremes.chosen() if found == kind]


def test_the_best_and_the_worst_are_kept():
    extremes = Extremes(2)
    for number, kept in enumerate([5, 12, 1, 8, 0, 11]):
        extremes.add(*shown(number, kept))
    # An image without any nucleus has no PQ.
    empty = np.zeros((8, 8), dtype=np.int32)
    extremes.add(score_image("empty", empty, empty), NucleiSample(np.zeros((3, 8, 8), np.uint8), empty, None), empty)
    assert names(extremes, "best") == ["i1", "i5"]
    assert names(extremes, "worst") == ["i4", "i2"]


@pytest.mark.parametrize(("count", "best", "worst"), [(0, 0, 0), (1, 1, 0), (2, 1, 1), (3, 2, 1), (5, 3, 2), (9, 3, 3)])
def test_of_few_images_none_is_both(count, best, worst):
    extremes = Extremes(3)
    for number in range(count):
        extremes.add(*shown(number, number))
    assert (len(names(extremes, "best")), len(names(extremes, "worst"))) == (best, worst)
    assert not {*names(extremes, "best")} & {*names(extremes, "worst")}


def test_a_large_image_is_shown_where_its_errors_are(tmp_path):
    extremes = Extremes(1)
    truth = np.zeros((700, 900), dtype=np.int32)
    truth[10:60, 10:60] = 1
    truth[600:640, 800:850] = 2
    found = np.where(truth == 1, truth, 0)
    image = np.zeros((3, 700, 900), dtype=np.uint8)
    image[0, 600:640, 800:850] = 255
    extremes.add(score_image("worse", truth, found), NucleiSample(image, truth, None), found)
    extremes.add(score_image("better", truth, truth), NucleiSample(image, truth, None), truth)
    extremes.write(tmp_path / "gallery.parquet", {"seed": 0})
    worst, best = pq.read_table(tmp_path / "gallery.parquet").to_pylist()
    assert (worst["kind"], worst["name"], worst["width"], worst["image_width"]) == ("worst", "worse", 320, 900)
    assert worst["left"] <= 800 < 850 <= worst["left"] + 320
    assert worst["top"] <= 600 < 640 <= worst["top"] + 320
    assert (worst["truth"], worst["found"], worst["false"]) == ("", "", "")
    x, y = 800 - worst["left"], 600 - worst["top"]
    assert worst["missed"] == f"M{x} {y}h50v40h-50z"
    assert (best["name"], best["missed"], best["false"]) == ("better", "", "")


def test_outlines_become_paths_of_their_corners():
    labels = np.array([[1, 1, 0, 2], [1, 0, 0, 2]])
    assert svg_path(outlines(labels)) == "M0 0h2v1h-1v1h-1zM3 0h1v2h-1z"
    assert svg_path([]) == ""
