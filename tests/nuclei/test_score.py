"""A set's scores against the definitions written out image by image; intervals; what is refused."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from PIL import Image

from eosin.core.errors import EosinError
from eosin.nuclei.labels import check_labels, instance_types
from eosin.nuclei.metrics import aji, aji_plus, dice, pq, typed_panoptic
from eosin.nuclei.overlap import overlap
from eosin.nuclei.postprocess import segment
from eosin.nuclei.score import THRESHOLDS, curve, rows, score_image, set_scores
from eosin.nuclei.targets import targets

TYPES = {1: "tumor", 2: "immune", 3: "rare"}


def squares(generator, count, side=48):
    """Nuclei of 6 px on a grid of 8 px, with ids that have gaps, and their types."""
    labels = np.zeros((side, side), np.int32)
    places = generator.choice((side // 8) ** 2, count, replace=False)
    for number, place in enumerate(places):
        y, x = divmod(int(place), side // 8)
        labels[8 * y + 1 : 8 * y + 7, 8 * x + 1 : 8 * x + 7] = 3 * number + 2
    return labels, generator.integers(1, 3, count)


def images(count=6, seed=0):
    """Pairs of a truth and a prediction that misses, adds, cuts and mistypes; the last two lack nuclei."""
    generator = np.random.default_rng(seed)
    made = []
    for number in range(count):
        truth, types = squares(generator, 12)
        predicted, said = truth.copy(), types.copy()
        for nucleus in (2, 5):
            predicted[predicted == nucleus] = 0
        kept = [place for place in range(12) if 3 * place + 2 not in (2, 5)]
        said = said[kept]
        said[generator.random(len(said)) < 0.3] = 1 + number % 3
        predicted[:, ::8] = 0
        cut = generator.random(truth.shape) < 0.2 * number / count
        predicted[cut] = 0
        made.append([truth, types, predicted, said])
    empty = np.zeros_like(truth)
    made[-2] = [empty, np.empty(0, int), made[-2][2], made[-2][3]]
    made[-1] = [empty, np.empty(0, int), empty, np.empty(0, int)]
    return made


def scored(made, **more):
    return [
        score_image(f"i{number}", truth, predicted, types, said, list(TYPES), **{k: v[number] for k, v in more.items()})
        for number, (truth, types, predicted, said) in enumerate(made)
    ]


def test_means_and_sums_by_their_definitions():
    made = images()
    scores = scored(made)
    found = {name: value["value"] for name, value in set_scores(scores, TYPES, resamples=20).items()}
    pairs = [overlap(truth, predicted) for truth, _, predicted, _ in made]
    # The last image has no nucleus at all, the one before only predicted ones.
    for name, compute in (("dice", dice), ("aji", aji), ("aji_plus", aji_plus)):
        assert found[name] == pytest.approx(np.mean([compute(each) for each in pairs[:-1]]))
    counts = [pq(truth, predicted) for truth, _, predicted, _ in made]
    assert found["pq"] == pytest.approx(np.mean([each.pq for each in counts[:-1]]))
    assert found["dq"] == pytest.approx(np.mean([each.dq for each in counts[:-1]]))
    assert found["sq"] == pytest.approx(np.mean([each.sq for each in counts[:-1]]))
    assert found["bpq"] == pytest.approx(np.mean([each.pq for each in counts[:-2]]))
    tp, fp, fn, iou = (sum(getattr(c, n) for c in counts) for n in ("tp", "fp", "fn", "iou_sum"))
    assert found["pq_set"] == pytest.approx(iou / (tp + fp / 2 + fn / 2))

    typed = [typed_panoptic(each, m[1], m[3], list(TYPES)) for each, m in zip(pairs, made, strict=True)]
    pannuke, image = [], []
    for row in typed:
        true = [c.pq for c in row if c.tp + c.fn]
        either = [c.pq for c in row if c.tp + c.fn + c.fp]
        pannuke += [np.mean(true)] if true else []
        image += [np.mean(either)] if either else []
    assert len(pannuke) == 4
    assert len(image) == 5
    assert found["mpq_pannuke"] == pytest.approx(np.mean(pannuke))
    assert found["mpq_image"] == pytest.approx(np.mean(image))
    whole = []
    for place, name in enumerate(TYPES.values()):
        tp, fp, fn, iou = (sum(getattr(row[place], n) for row in typed) for n in ("tp", "fp", "fn", "iou_sum"))
        whole.append(iou / (tp + fp / 2 + fn / 2))
        assert found[f"pq:{name}"] == pytest.approx(whole[-1])
    assert found["mpq_set"] == pytest.approx(np.mean(whole))
    assert len({round(found[name], 6) for name in ("mpq_pannuke", "mpq_image", "mpq_set")}) == 3

    detections = [image.detection for image in scores]
    tp, fp, fn, same = (sum(getattr(d, n) for d in detections) for n in ("pairs", "fp", "fn", "same"))
    assert found["f_d"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
    assert found["type_accuracy"] == pytest.approx(same / tp)
    own = [sum(getattr(d.types[1], n) for d in detections) for n in ("tp", "fp", "fn", "fp_d", "fn_d")]
    assert found["f:immune"] == pytest.approx(2 * own[0] / (2 * own[0] + 2 * own[1] + 2 * own[2] + own[3] + own[4]))


def test_tissues_weigh_the_same_in_pannukes_means():
    scores = scored(images(), tissue=["a", "a", "a", "b", "b", "b"])
    values = [image.panoptic.pq for image in scores]
    found = set_scores(scores, TYPES, resamples=10)
    assert found["bpq"]["value"] == pytest.approx((np.mean(values[:3]) + values[3]) / 2)
    assert found["pq"]["value"] == pytest.approx(np.mean(values[:5]))


def test_intervals_draw_groups():
    made = images(8)
    alone = set_scores(scored(made), TYPES, seed=3)
    again = set_scores(scored(made), TYPES, seed=3)
    assert alone == again
    for name in ("pq", "mpq_set", "f_d"):
        assert alone[name]["low"] < alone[name]["value"] < alone[name]["high"]
    grouped = set_scores(scored(made, group=["p"] * 8), TYPES)
    assert grouped["pq"]["value"] == pytest.approx(alone["pq"]["value"])
    assert grouped["pq"]["low"] is None
    assert "single group" in grouped["pq"]["reason"]
    # The bootstrap of a mean, drawn by hand.
    values = np.array([image.panoptic.pq for image in scored(made)][:7])
    drawn = np.random.default_rng(0).choice(values, (4000, 7)).mean(axis=1)
    assert alone["pq"]["low"] == pytest.approx(np.percentile(drawn, 2.5), abs=0.04)


def test_nothing_to_measure():
    empty = np.zeros((4, 4), np.uint8)
    found = set_scores(
        [score_image("a", empty, empty, [], [], [1]), score_image("b", empty, empty, [], [], [1])], {1: "t"}
    )
    assert all(value["value"] is None for value in found.values())
    assert found["f:t"]["reason"] == "undefined: no nucleus is t"


def test_rows_and_curve():
    scores = scored(images())
    table = rows(scores, TYPES)
    assert table[0]["image"] == "i0"
    assert table[-1]["pq"] is None
    assert table[-1]["pq:tumor"] is None
    assert table[0]["tp"] + table[0]["fn"] == table[0]["truth"] == 12
    points = curve(scores)
    assert [point["threshold"] for point in points] == list(THRESHOLDS)
    assert THRESHOLDS[:2] == (0.5, 0.55)
    assert THRESHOLDS[-1] == 0.95
    assert points[0]["pq"] == pytest.approx(np.mean([image.panoptic.pq for image in scores[:-1]]))
    assert points[-1]["pq"] < points[0]["pq"]
    assert all(a["dq"] >= b["dq"] for a, b in itertools.pairwise(points))
    assert curve(scores[-1:])[0]["pq"] is None


def test_types_may_be_maps():
    truth, types, predicted, said = images()[0]
    lists = score_image("a", truth, predicted, types, said, [1, 2])
    maps = []
    for labels, kinds in ((truth, types), (predicted, said)):
        ids = np.unique(labels)[1:]
        table = np.zeros(labels.max() + 1, int)
        table[ids] = kinds
        maps.append(table[labels])
    assert score_image("a", truth, predicted, *maps, [1, 2]).types == lists.types
    maps[1][truth == 8] += 1
    maps[1][0, 0] = 2
    with pytest.raises(EosinError, match=r"^a \(types of the prediction\): "):
        score_image("a", truth, predicted, *maps, [1, 2])


def test_what_is_refused():
    truth, types, predicted, said = images()[0]
    with pytest.raises(EosinError, match=r"^a \(prediction\): .* of type float64"):
        score_image("a", truth, predicted * 1.0)
    with pytest.raises(EosinError, match=r"^a \(truth\): an RGB picture"):
        score_image("a", np.dstack([truth] * 3), predicted)
    with pytest.raises(EosinError, match="48x47 px and its image 48x48 px"):
        score_image("a", truth, predicted[1:])
    with pytest.raises(EosinError, match="the prediction has no types"):
        score_image("a", truth, predicted, types)
    with pytest.raises(EosinError, match=r"3 types of int64 for 10 nuclei"):
        score_image("a", truth, predicted, types, said[:3])
    one = score_image("a", truth, predicted)
    with pytest.raises(EosinError, match="a: is there twice"):
        set_scores([one, one])
    with pytest.raises(EosinError, match="a: was not scored with the types tumor, immune, rare"):
        set_scores([one], TYPES)
    with pytest.raises(EosinError, match="no images"):
        set_scores([])
    assert math.isfinite(one.metrics["pq"])


def test_real_label_maps_are_taken_and_ideal_maps_of_them_give_them_back(real_data):
    scores = []
    for path in sorted((real_data / "nuclei" / "dsb2018_he" / "labels").iterdir())[:8]:
        labels = np.asarray(Image.open(path))
        wanted = targets(labels)
        found = segment(wanted.np.astype(np.float32), wanted.hv, normalise="fixed")
        scores.append(score_image(path.name, labels, found))
    values = set_scores(scores, resamples=200)
    assert sum(image.truth for image in scores) > 100
    assert values["pq"]["value"] > 0.9
    assert values["dice"]["value"] > 0.97
    for path in sorted((real_data / "nuclei" / "nucls").glob("t*/labels/*.npz")):
        with np.load(path) as file:
            types = instance_types(check_labels(file["inst_map"], path.name), file["type_map"], path.name)
        assert set(types.tolist()) <= {1, 2}
