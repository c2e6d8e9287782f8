"""Splits: groups whole, classes in proportion, both sides covered wherever that is possible."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eosin.tasks import splits
from eosin.tasks.splits import divide, split_hash


def coverage(labels, groups, held) -> int:
    """Classes with several groups that are missing on a side, and classes that are held out but not kept."""
    missing = 0
    for label in np.unique(labels):
        of_class = labels == label
        kept, out = (of_class & ~held).any(), (of_class & held).any()
        if len(np.unique(groups[of_class])) > 1:
            missing += (not kept) + (not out)
        else:
            missing += out
    return missing


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 8), classes=st.integers(1, 4), images=st.integers(1, 30),
       fraction=st.floats(0.1, 0.6))  # fmt: skip
def test_groups_stay_whole_and_coverage_is_the_best_possible(seed, count, classes, images, fraction):
    rng = np.random.default_rng(seed)
    labels, groups = rng.integers(0, classes, images), rng.integers(0, count, images).astype(str)
    held = divide(labels, groups, fraction, seed, "test")
    for group in np.unique(groups):
        assert len(np.unique(held[groups == group])) == 1
    names = np.unique(groups)
    divisions = ((number >> np.arange(len(names))) & 1 for number in range(2 ** len(names)))
    possible = min(coverage(labels, groups, np.isin(groups, names[choice.astype(bool)])) for choice in divisions)
    if possible == 0:
        assert coverage(labels, groups, held) == 0
    for label in np.unique(labels):
        if len(np.unique(groups[labels == label])) == 1:
            assert not held[labels == label].any()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), images=st.integers(2, 24))
def test_looking_at_every_division_finds_a_cover_by_itself(seed, images):
    rng = np.random.default_rng(seed)
    labels, groups = rng.integers(0, 3, images), rng.integers(0, 7, images).astype(str)
    if len(np.unique(groups)) == images:
        return
    searched = divide(labels, groups, 0.3, seed, "test")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits, "_STARTS", 0)
        patch.setattr(splits, "_MORE_STARTS", 0)
        exhausted = divide(labels, groups, 0.3, seed, "test")
    assert coverage(labels, groups, exhausted) <= coverage(labels, groups, searched)
    assert not exhausted.all()


def test_images_are_divided_to_the_nearest_whole_number_of_each_class():
    labels = np.repeat([0, 1, 2, 3], [100, 37, 3, 1])
    held = divide(labels, np.arange(141), 0.2, 0, "test")
    assert np.bincount(labels[held], minlength=4).tolist() == [20, 7, 1, 0]


@pytest.mark.parametrize("seed", range(5))
def test_shares_are_near_with_many_patients(seed):
    rng = np.random.default_rng(seed)
    patient = rng.integers(0, 60, 1500)
    labels = np.where(rng.random(1500) < 0.7, patient % 4, rng.integers(0, 4, 1500))
    held = divide(labels, patient, 0.25, seed, "test")
    assert abs(held.mean() - 0.25) < 0.02
    for label in range(4):
        assert abs(held[labels == label].mean() - 0.25) < 0.03


def test_the_seed_and_the_scope_choose_and_the_order_of_rows_does_not():
    rng = np.random.default_rng(0)
    names = np.array([f"t{i:03d}" for i in range(200)])
    labels, groups = rng.integers(0, 3, 200), rng.integers(0, 30, 200).astype(str)
    for units in (names, groups):
        held = divide(labels, units, 0.3, 1, "test")
        assert np.array_equal(divide(labels, units, 0.3, 1, "test"), held)
        assert not np.array_equal(divide(labels, units, 0.3, 2, "test"), held)
        assert not np.array_equal(divide(labels, units, 0.3, 1, "val"), held)
        order = rng.permutation(200)
        assert np.array_equal(divide(labels[order], units[order], 0.3, 1, "test"), held[order])


def test_one_group_cannot_be_divided():
    assert not divide([0, 1, 0], ["p", "p", "p"], 0.3, 0, "test").any()


def test_hash_knows_the_split_and_not_the_order():
    one = split_hash(["a", "b", "c"], ["train", "val", "test"])
    assert len(one) == 16
    assert split_hash(["c", "a", "b"], ["test", "train", "val"]) == one
    assert split_hash(["a", "b", "c"], ["train", "test", "val"]) != one
    assert split_hash(["a", "b", "d"], ["train", "val", "test"]) != one
