"""How far embeddings move, against loops over images and pairs."""

from __future__ import annotations

import numpy as np
import pytest

from eosin.core.draws import stream_seed
from eosin.evaluate.movement import measure_movement


def cosine_distance(a, b):
    a, b = a.astype(float), b.astype(float)
    return 1 - float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.fixture
def moved():
    generator = np.random.default_rng(0)
    before = generator.normal(size=(18, 5)).astype(np.float32) + 1
    after = before + generator.normal(size=(18, 5)).astype(np.float32)
    return before, after, np.repeat([f"p{number}" for number in range(6)], 3)


def test_values_are_those_of_loops(moved):
    before, after, groups = moved
    found = measure_movement(before, after, groups, resamples=10)
    own = [cosine_distance(a, b) for a, b in zip(before, after, strict=True)]
    pairs = [cosine_distance(a, b) for i, a in enumerate(before) for j, b in enumerate(before) if i != j]
    nearest = [int(np.argmin([cosine_distance(b, a) for a in before])) for b in after]
    itself = np.mean([place == number for number, place in enumerate(nearest)])
    np.testing.assert_allclose(found.distance, own, atol=1e-12)
    assert 0.2 < itself < 1.0
    expected = {"distance": np.mean(own), "between": np.mean(pairs), "recognized": itself}
    expected["movement"] = np.mean(own) / np.mean(pairs)
    assert {name: entry["value"] for name, entry in found.metrics.items()} == pytest.approx(expected, abs=1e-12)


def test_intervals_draw_patients_and_leave_out_an_images_pairs_with_its_copies(moved):
    before, after, groups = moved
    found = measure_movement(before, after, groups, seed=3, resamples=60)
    generator = np.random.default_rng(stream_seed(3, "bootstrap"))
    own = np.array([cosine_distance(a, b) for a, b in zip(before, after, strict=True)])
    movements, distances = [], []
    for drawn in generator.integers(0, 6, size=(60, 6)):
        rows = np.concatenate([np.flatnonzero(groups == f"p{number}") for number in drawn])
        pairs = [cosine_distance(before[i], before[j]) for i in rows for j in rows if i != j]
        distances.append(own[rows].mean())
        movements.append(own[rows].mean() / np.mean(pairs))
    for name, values in (("movement", movements), ("distance", distances)):
        low, high = np.percentile(values, [2.5, 97.5])
        assert found.metrics[name]["low"] == pytest.approx(low, abs=1e-12)
        assert found.metrics[name]["high"] == pytest.approx(high, abs=1e-12)


def test_no_change_is_no_movement(moved):
    before, _, groups = moved
    found = measure_movement(before, before.copy(), groups, resamples=20)
    for name, value in (("distance", 0.0), ("movement", 0.0), ("recognized", 1.0)):
        assert found.metrics[name] == {"value": value, "low": value, "high": value}


def test_scale_of_the_features_does_not_matter(moved):
    before, after, _ = moved
    factors = np.geomspace(1e-30, 1e30, len(before)).astype(np.float32)[:, None]
    one, two = measure_movement(before, after), measure_movement(before * factors, after * factors[::-1])
    for name, entry in one.metrics.items():
        assert two.metrics[name] == pytest.approx(entry, abs=1e-6)


@pytest.mark.parametrize("noise", [0.0, 1e-8])
def test_a_network_whose_embeddings_are_all_alike_does_not_win(noise):
    generator = np.random.default_rng(1)
    before = (1 + noise * generator.normal(size=(20, 8))).astype(np.float32)
    after = (1 + noise * generator.normal(size=(20, 8))).astype(np.float32)
    found = measure_movement(before, after, resamples=20)
    assert found.metrics["movement"]["value"] is None
    assert "alike" in found.metrics["movement"]["reason"]
    np.testing.assert_allclose(found.recognized, 1 / 20)


def test_nearly_alike_embeddings_are_measured_by_their_own_spread():
    generator = np.random.default_rng(1)
    before = 1 + 1e-4 * generator.normal(size=(30, 8))
    after = before + 1e-4 * generator.normal(size=(30, 8))
    found = measure_movement(before.astype(np.float32), after.astype(np.float32), resamples=20)
    # A step of one standard deviation, where two different images are √2 apart: half of their squared distance.
    assert found.metrics["movement"]["value"] == pytest.approx(0.5, abs=0.15)
    assert found.metrics["recognized"]["value"] < 1


def test_digits_survive_where_embeddings_are_nearly_alike():
    generator = np.random.default_rng(2)
    before, after = (1 + 2e-6 * generator.normal(size=(2, 40, 64))).astype(np.float32)
    found = measure_movement(before, after, resamples=1).metrics
    # In extended precision, whose rounding is 2,000 times smaller.
    unit, moved = (part.astype(np.longdouble) for part in (before, after))
    unit, moved = (part / np.sqrt((part**2).sum(axis=1, keepdims=True)) for part in (unit, moved))
    between = ((unit[:, None] - unit) ** 2).sum(axis=2)[~np.eye(40, dtype=bool)].mean() / 2
    assert 1e-12 < between < 1e-11
    assert found["between"]["value"] == pytest.approx(float(between), rel=1e-7)
    expected = ((unit - moved) ** 2).sum(axis=1).mean() / 2 / between
    assert found["movement"]["value"] == pytest.approx(float(expected), rel=1e-7)


def test_equally_near_images_share():
    before = np.array([[1, 0], [1, 0], [0, 1]], dtype=np.float32)
    after = np.array([[1, 0.1], [1, 0.2], [1, 0.3]], dtype=np.float32)
    assert measure_movement(before, after).recognized.tolist() == [0.5, 0.5, 0.0]


def test_features_of_length_zero_are_finite():
    before = np.array([[0, 0], [0, 0], [0, 1], [1, 0]], dtype=np.float32)
    after = np.array([[0, 0], [3, 0], [0, 1], [0, 0]], dtype=np.float32)
    found = measure_movement(before, after, resamples=10)
    assert found.distance.tolist() == pytest.approx([0, 0.5, 0, 0.5])
    assert found.metrics["between"]["value"] == pytest.approx((0 + 4 * 0.5 + 1) / 6)


def test_one_image_has_a_distance_and_no_movement():
    found = measure_movement(np.ones((1, 3), np.float32), np.eye(3, dtype=np.float32)[:1])
    assert found.metrics["distance"]["value"] == pytest.approx(1 - 3**-0.5)
    assert found.metrics["distance"]["low"] is None
    assert "single image" in found.metrics["movement"]["reason"]


def test_features_of_other_images_are_refused():
    with pytest.raises(ValueError, match="not of the same images"):
        measure_movement(np.ones((2, 3), np.float32), np.ones((3, 3), np.float32))
