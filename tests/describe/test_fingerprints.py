from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from eosin.describe import fingerprints
from eosin.describe.fingerprints import DISTANCE, fingerprint, near_groups


def distance(first, second):
    return (int(first) ^ int(second)).bit_count()


def by_all_pairs(values):
    """Single linkage by comparing every pair."""
    group = list(range(len(values)))
    for first in range(len(values)):
        for second in range(first):
            if distance(values[first], values[second]) <= DISTANCE and group[first] != group[second]:
                old, new = group[first], group[second]
                group = [new if name == old else name for name in group]
    return group


def same_partition(first, second):
    return len({*zip(first, second, strict=True)}) == len(set(first)) == len(set(second))


def flipped(value, bits, generator):
    for bit in generator.choice(64, bits, replace=False):
        value ^= 1 << int(bit)
    return value


def planted(seed, count=150):
    generator = np.random.default_rng(seed)
    values = [int(value) for value in generator.integers(0, 1 << 63, count)]
    for number in range(60):
        values.append(flipped(values[number], number % 9, generator))
    chain = values[0]
    for _ in range(4):
        chain = flipped(chain, DISTANCE, generator)
        values.append(chain)
    return np.array(values, dtype=np.uint64)[generator.permutation(len(values))]


@pytest.mark.parametrize("seed", range(4))
def test_groups_are_those_of_all_pairs(seed):
    values = planted(seed)
    assert same_partition(near_groups(values).tolist(), by_all_pairs(values))


def test_groups_do_not_depend_on_how_many_pairs_are_compared_at_a_time(monkeypatch):
    values = planted(5)
    whole = near_groups(values)
    monkeypatch.setattr(fingerprints, "_PAIRS", 7)
    assert (near_groups(values) == whole).all()


def test_equal_and_no_fingerprints():
    assert len(set(near_groups(np.zeros(1000, dtype=np.uint64)).tolist())) == 1
    assert near_groups(np.empty(0, dtype=np.uint64)).shape == (0,)
    extremes = np.array([0, 2**64 - 1], dtype=np.uint64)
    assert len(set(near_groups(extremes).tolist())) == 2


def test_the_bits_are_the_cosine_transform_above_its_median(tissue):
    image = np.asarray(Image.fromarray(tissue[0]).convert("L"))
    small = image.astype(float).reshape(32, 3, 32, 3).mean(axis=(1, 3))
    places = np.arange(32)
    waves = np.cos(np.pi * (places[None, :] + 0.5) * places[:, None] / 32)
    coefficients = (waves @ small @ waves.T)[1:9, 1:9].ravel()
    bits = "".join("1" if value > np.median(coefficients) else "0" for value in coefficients)
    assert f"{fingerprint(image):064b}" == bits


def test_small_changes_keep_a_picture_near_and_other_pictures_stay_away(tissue):
    grays = [np.asarray(Image.fromarray(pixels).convert("L")) for pixels in tissue]
    known = [fingerprint(image) for image in grays]
    for image, value in zip(grays, known, strict=True):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=40)
        smaller = np.asarray(Image.fromarray(image).resize((72, 72), Image.Resampling.BICUBIC))
        for changed in (
            np.asarray(Image.open(file)),
            smaller,
            gaussian_filter(image, 1),
            (image * 0.9).astype(np.uint8),
        ):
            assert distance(fingerprint(changed), value) <= DISTANCE
    for number, value in enumerate(known):
        assert all(distance(value, other) > 2 * DISTANCE for other in known[:number])
    assert all(0 <= fingerprint(np.full((side, side), 255, dtype=np.uint8)) < 1 << 64 for side in (8, 100))
