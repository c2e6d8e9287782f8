"""Exact percentiles of the pixels of each image."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eosin.core.transfer import upload

__all__ = ["percentiles"]

# Every so manieth value is in the sample that bounds a tail: few enough to cost nothing, enough to bound it closely.
SAMPLED = 64


def percentiles(values: Tensor, percents: tuple[float, ...], chosen: Tensor | None = None) -> Tensor:
    """Percentiles of each row, interpolated linearly as NumPy does.

    Args:
        values: float32 [B, N].
        percents: In 0..100.
        chosen: bool [B, N], which values count; 0 is returned for a row that has none.

    Returns:
        float64 [B, len(percents)].
    """
    if values.device.type != "cpu":
        return _sorted_percentiles(values, percents, chosen)
    result = np.zeros((len(values), len(percents)))
    for number, row in enumerate(values.numpy()):
        if chosen is not None:
            row = np.compress(chosen[number].numpy(), row)
        if row.size:
            result[number] = [_percentile(row, percent) for percent in percents]
    return torch.from_numpy(result)


def _percentile(row: npt.NDArray[np.float32], percent: float) -> float:
    """One percentile of a row, from the tail it lies in.

    A sample of the values gives a bound beyond which, in all likelihood, lie the percentile and few others; the
    count of those tells whether it does. If not, all values are searched: the result is exact either way.
    """
    rank = percent / 100.0 * (len(row) - 1)
    below = int(rank)
    above = min(below + 1, len(row) - 1)
    first = 0
    if len(row) >= 64 * SAMPLED:
        sample = row[::SAMPLED]
        if 2 * below > len(row):
            needed = len(row) - below
            place = max(0, len(sample) - 1 - 2 * needed // SAMPLED - 8)
            tail = row[row >= np.partition(sample, place)[place]]
            first = len(row) - len(tail)
        else:
            needed = above + 1
            place = min(len(sample) - 1, 2 * needed // SAMPLED + 8)
            tail = row[row <= np.partition(sample, place)[place]]
        if len(tail) >= needed:
            row = tail
        else:
            first = 0
    ends = np.partition(row, (below - first, above - first))
    low, high = float(ends[below - first]), float(ends[above - first])
    return low + (high - low) * (rank - below)


def _sorted_percentiles(values: Tensor, percents: tuple[float, ...], chosen: Tensor | None) -> Tensor:
    """`percentiles` by sorting, without an answer from the device."""
    if chosen is None:
        last = torch.full((len(values), 1), values.shape[1] - 1, dtype=torch.float64, device=values.device)
    else:
        values = torch.where(chosen, values, math.inf)
        last = chosen.sum(1, keepdim=True).double() - 1.0
    ordered = values.sort(dim=1).values
    rank = last.clamp(min=0.0) * (upload(np.array(percents), values.device) / 100.0)
    below = rank.long()
    low = ordered.gather(1, below).double()
    high = ordered.gather(1, torch.minimum(below + 1, last.clamp(min=0.0).long())).double()
    return torch.where(last >= 0.0, low + (high - low) * (rank - below), 0.0)
