"""The paired test of means over images, against exhaustive enumeration and scipy's."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import permutation_test

from eosin.core.errors import EosinError
from eosin.evaluate.paired_means import PerImage, paired_means_test


def images(values, groups=None, names=None):
    names = [f"i{row}" for row in range(len(values))] if names is None else names
    return PerImage(names, values, names if groups is None else groups)


def enumerated(first, second, groups):
    """The p value by swapping the two sides of every subset of groups, one subset after the other."""
    known = sorted(set(groups))

    def difference(a, b):
        return np.nanmean(a) - np.nanmean(b)

    observed = abs(difference(first, second))
    extreme = 0
    for swapped in itertools.product([False, True], repeat=len(known)):
        turned = np.array([swapped[known.index(group)] for group in groups])
        value = difference(np.where(turned, second, first), np.where(turned, first, second))
        extreme += abs(value) >= observed - 1e-9
    return extreme / 2 ** len(known)


@pytest.mark.parametrize("seed", range(12))
def test_the_exact_p_value_is_that_of_all_exchanges(seed):
    generator = np.random.default_rng(seed)
    count = int(generator.integers(2, 12))
    groups = [f"g{number}" for number in generator.integers(0, max(1, count - seed % 4), count)]
    first, second = generator.random(count).round(2), generator.random(count).round(2)
    # Images without nuclei on one side only, and one on both.
    if count > 4:
        first[0] = np.nan
        second[1] = np.nan
        first[2] = second[2] = np.nan
    found = paired_means_test([images(first, groups)], [images(second, groups)], "pq")
    assert found.exact
    assert found.difference == pytest.approx(np.nanmean(first) - np.nanmean(second))
    assert found.p == pytest.approx(enumerated(first, second, groups), abs=1e-12)
    assert found.groups == len(set(groups))


def test_where_all_is_defined_it_is_the_sign_flip_test_of_scipy():
    generator = np.random.default_rng(3)
    first = generator.random(11)
    second = first - generator.normal(0.05, 0.1, 11)
    ours = paired_means_test([images(first)], [images(second)], "pq")
    theirs = permutation_test((first - second,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert ours.exact
    assert ours.p == pytest.approx(theirs.pvalue)


def test_many_images_are_flipped_at_random():
    generator = np.random.default_rng(0)
    first = generator.random(300)
    found = paired_means_test([images(first + 0.1)], [images(first)], "pq", permutations=2000)
    assert not found.exact
    assert found.p == pytest.approx(1 / 2001)
    assert found.low == pytest.approx(0.1)
    assert found.high == pytest.approx(0.1)
    same = paired_means_test([images(first)], [images(first)], "pq", permutations=2000)
    assert same.p == 1.0


def test_seeds_are_averaged_and_their_groups_exchanged_together():
    first, second = np.array([0.9, 0.8, 0.7]), np.array([0.5, 0.6, 0.6])
    twice = paired_means_test([images(first), images(first)], [images(second), images(second)], "pq")
    once = paired_means_test([images(first)], [images(second)], "pq")
    # The same three images in two seeds are three units, not six.
    assert (twice.p, twice.groups, twice.seeds) == (once.p, 3, 2)
    assert twice.p == 2 / 8
    other = paired_means_test([images(first), images(second)], [images(second), images(first)], "pq")
    assert other.difference == pytest.approx(0)
    assert other.p == 1.0


def test_the_order_of_images_does_not_matter():
    generator = np.random.default_rng(1)
    first, second = generator.random(8), generator.random(8)
    order = generator.permutation(8)
    names = [f"i{row}" for row in order]
    moved = paired_means_test([images(first)], [images(second[order], names=names)], "pq")
    assert moved == paired_means_test([images(first)], [images(second)], "pq")


def test_other_images_and_nothing_measured_are_refused():
    with pytest.raises(EosinError, match="not scored on the same images"):
        paired_means_test([images([0.1, 0.2])], [images([0.1, 0.2], names=["a", "b"])], "pq")
    with pytest.raises(EosinError, match="pq is undefined"):
        paired_means_test([images([np.nan, np.nan])], [images([0.1, 0.2])], "pq")
    with pytest.raises(EosinError, match="1 seeds of one encoder with 2"):
        paired_means_test([images([0.1])], [images([0.1])] * 2, "pq")
    single = paired_means_test([images([0.5])], [images([0.1])], "pq")
    assert (single.low, single.high, single.p) == (None, None, 1.0)
