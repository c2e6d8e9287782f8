from __future__ import annotations

import math

import numpy as np
import pytest

from eosin.describe.words import bytes_of, decimal, listed, percent, share, signed, significant, spread


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 %"),
        (0.0004, "< 0.1 %"),
        (0.05, "5 %"),
        (0.123, "12.3 %"),
        (0.9999, "> 99.9 %"),
        (1, "100 %"),
        (math.nan, "–"),
    ],
)
def test_only_none_is_zero_and_only_all_is_hundred(value, text):
    assert percent(value) == text


def test_a_share_of_nothing_is_a_dash():
    assert share(0, 0) == "–"
    assert share(1, 8) == "12.5 %"


@pytest.mark.parametrize(
    ("value", "text"), [(0.49904, "0.499"), (12345.6, "12,346"), (224.0, "224"), (0.25, "0.25"), (math.inf, "–")]
)
def test_four_digits_and_no_powers_of_ten(value, text):
    assert significant(value) == text


def test_signs():
    assert (signed(0.31), signed(-0.31), signed(-0.01), signed(math.nan)) == ("+0.3", "−0.3", "+0.0", "–")
    assert (decimal(-0.01), decimal(1234.5, 0)) == ("0.0", "1,234")


@pytest.mark.parametrize(
    ("count", "text"), [(12, "12 bytes"), (15_400_000, "15.4 MB"), (999_800, "1,000 kB"), (2.5e12, "2.5 TB")]
)
def test_bytes(count, text):
    assert bytes_of(count) == text


def test_lists_and_spreads():
    assert listed([]) == "–"
    assert listed([("a", 3)]) == "a"
    assert listed([("a", 3), ("b", 2), ("c", 1)], most=2) == "a (3), b (2) and 1 more"
    assert spread(np.array([np.nan]), "px") == "–"
    assert spread(np.array([5.0, 5.0]), "px") == "5 px"
    assert spread(np.arange(101.0), "px") == "median 50, 90 % within 5 to 95, all within 0 to 100 px"
