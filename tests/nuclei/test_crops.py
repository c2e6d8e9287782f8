"""Windows: mirrored where the image ends, every place in reach, and a pure function of seed and number."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eosin.core.errors import EosinError
from eosin.nuclei.augment import NucleiAugment
from eosin.nuclei.crops import Crops, Places, cut, mirrored
from eosin.nuclei.datasets import NucleiImage, NucleiSample, open_nuclei

READS = []


def drawn(seed, height, width, typed=True):
    rng = np.random.default_rng(seed)
    instances = np.zeros((height, width), np.int32)
    for number in range(1, 6):
        top, left = rng.integers(0, height - 3), rng.integers(0, width - 3)
        instances[top : top + 4, left : left + 4] = number
    present = np.unique(instances)
    instances = np.searchsorted(present, instances).astype(np.int32)
    types = np.concatenate([[0], rng.integers(1, 4, len(present) - 1)]) if typed else None
    READS.append(seed)
    return NucleiSample(rng.integers(0, 256, (3, height, width), dtype=np.uint8), instances, types)


def image(seed, height=30, width=40, typed=True):
    return NucleiImage(f"i{seed}", "train", "g", 0.25, (height, width), partial(drawn, seed, height, width, typed))


@given(start=st.integers(-60, 60), length=st.integers(1, 60), extent=st.integers(1, 20))
def test_mirrored_places(start, length, extent):
    before, after = max(0, -start), max(0, start + length - extent)
    padded = np.pad(np.arange(extent), (before, after), mode="reflect" if extent > 1 else "edge")
    assert (mirrored(start, length, extent) == padded[start + before : start + before + length]).all()


@given(top=st.integers(-40, 40), left=st.integers(-40, 40), size=st.integers(1, 70))
def test_cuts_are_mirrored(top, left, size):
    sample = drawn(1, 30, 40)
    pixels, instances = cut(sample, top, left, size)
    pad = ((110, 110), (110, 110))
    whole = np.pad(sample.instances, pad, mode="reflect")[top + 110 :, left + 110 :][:size, :size]
    assert (instances == whole).all()
    whole = np.pad(sample.image, ((0, 0), *pad), mode="reflect")[:, top + 110 :, left + 110 :][:, :size, :size]
    assert (pixels == whole).all()


@given(inner=st.integers(1, 12), more=st.integers(0, 40))
def test_pixels_are_learned_from_equally_often(inner, more):
    """Counted over all places that are drawn from, in the mirror too, which does not repeat the outermost pixel."""
    extent = 2 * inner + more
    seen = np.zeros(extent)
    for corner in range(-(inner // 2), extent - inner + inner // 2 + 1):
        np.add.at(seen, mirrored(corner, inner, extent), 1)
    assert set(seen[1:-1]) <= {inner, inner + 1, inner + 2}
    assert seen.min() >= inner / 2


def test_places_cover_the_image():
    places = Places([(20, 26), (9, 9), (5, 30)], 8, seed=3)
    assert len(places) == 12 + 4 + 4
    found = places.at(np.arange(4000))
    for number, (height, width) in enumerate([(20, 26), (9, 9), (5, 30)]):
        own = found[found[:, 0] == number]
        assert len(own) == 4000 * (12, 4, 4)[number] / 20
        rows = range(-4, height - 3) if height >= 8 else [-2]
        assert sorted(np.unique(own[:, 1])) == list(rows)
        assert sorted(np.unique(own[:, 2])) == list(range(-4, width - 3))


def test_each_pass_shows_all_in_an_order_of_its_own():
    places = Places([(16, 16), (8, 8), (8, 24)], 8, seed=0)
    first, second = (places.at(np.arange(start, start + 8)) for start in (0, 8))
    assert sorted(first[:, 0]) == sorted(second[:, 0]) == [0, 0, 0, 0, 1, 2, 2, 2]
    assert (first != second).any()
    once = Places([(16, 16), (8, 8), (8, 24)], 8, seed=0, visits="image")
    assert sorted(once.at(np.arange(3))[:, 0]) == [0, 1, 2]


@given(count=st.integers(1, 30), start=st.integers(0, 200), seed=st.integers(0, 3))
def test_places_do_not_depend_on_how_they_are_asked_for(count, start, seed):
    places = Places([(20, 20), (10, 30)], 8, seed=seed)
    together = places.at(np.arange(start, start + count))
    apart = np.concatenate([places.at([start + number]) for number in range(count)])
    assert (together == apart).all()
    assert (places.at(np.arange(40)) != Places(places.shapes, 8, seed=seed + 1).at(np.arange(40))).any()


@pytest.mark.parametrize("augment", [None, NucleiAugment()])
def test_one_process_or_many_make_one_batch(augment):
    crops = Crops([image(0), image(1), image(2, 12, 70)], 24, 16, seed=5, augment=augment)
    samples, positions = np.arange(8) + 30, np.arange(8)
    whole = crops.batch(2, positions, samples)
    assert whole["image"].shape == (8, 3, 24, 24)
    assert whole["instances"].shape == (8, 24, 24)
    parts = [
        pickle.loads(pickle.dumps(crops)).batch(2, positions[part], samples[part]) for part in (slice(3), slice(3, 8))
    ]
    with ThreadPoolExecutor(4) as pool:
        fresh = Crops(crops.images, 24, 16, seed=5, augment=augment)
        parts += pool.map(lambda row: fresh.batch(2, positions[row : row + 1], samples[row : row + 1]), range(8))
    for these in (parts[:2], parts[2:]):
        assert (np.concatenate([part["image"] for part in these]) == whole["image"].numpy()).all()
        assert (np.concatenate([part["instances"] for part in these]) == whole["instances"].numpy()).all()
        kinds = [kind.tolist() for part in these for kind in part["types"]]
        assert kinds == [kind.tolist() for kind in whole["types"]]


def test_the_middle_of_the_window_lies_half_in_the_image():
    """Without augmentation a window is a cut whose middle is the place."""
    crops = Crops([image(4, 21, 33)], 20, 8, seed=1)
    batch = crops.batch(0, np.arange(10), np.arange(10))
    for row, (_, top, left) in enumerate(crops.places.at(np.arange(10)).tolist()):
        expected = cut(drawn(4, 21, 33), top - 6, left - 6, 20)[0]
        assert (batch["image"][row].numpy() == expected).all()
        assert -4 <= top <= 17
        assert -4 <= left <= 29
    larger = Crops([image(4, 21, 33)], 20, 8, seed=1, augment=NucleiAugment())
    assert larger.window == NucleiAugment().window(20)
    assert (larger.places.at(np.arange(9)) == crops.places.at(np.arange(9))).all()


def test_an_image_smaller_than_a_window():
    crops = Crops([image(6, 9, 11)], 32, 20, augment=NucleiAugment())
    batch = crops.batch(0, [0, 1], [0, 1])
    assert batch["image"].shape == (2, 3, 32, 32)
    # Repeated nuclei are nuclei of their own, with the type of the first.
    types = drawn(6, 9, 11).types
    assert all(set(kinds[1:]) <= set(types[1:]) for kinds in batch["types"])
    assert batch["instances"].amax() > len(types) - 1


def test_images_are_read_once_while_there_is_room():
    images = [image(number) for number in range(3)]
    for kept, reads in ((1 << 20, 3), (0, 9)):
        crops = Crops(images, 16, kept_bytes=kept, visits="image")
        READS.clear()
        for step in range(3):
            crops.batch(step, np.arange(3), np.arange(3 * step, 3 * step + 3))
        assert len(READS) == reads


def test_sets_without_types_or_images():
    batch = Crops([image(0, typed=False)], 16).batch(0, [0], [0])
    assert batch["types"] is None
    with pytest.raises(EosinError, match="no images to train on"):
        Crops([], 16)
    changed = NucleiImage("x", "train", "x", None, (31, 40), partial(drawn, 0, 30, 40))
    with pytest.raises(EosinError, match="x: the image has changed"):
        Crops([changed], 16).batch(0, [0], [0])


def test_from_a_set():
    found = open_nuclei("synthetic:?images=5&size=64")
    batch = Crops(found.of("train"), 48, 32, augment=NucleiAugment()).batch(0, np.arange(4), np.arange(4))
    assert batch["instances"].amax() > 3
    assert all(kinds.max() <= len(found.classes) for kinds in batch["types"])
