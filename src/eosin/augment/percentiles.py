"""Exact percentiles of the pixels of each image."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eosin.core.transfer import upload

__all__ = ["percentiles"]

Values = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

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
        mask = None if chosen is None else chosen[number].numpy()
        count = len(row) if mask is None else int(np.count_nonzero(mask))
        if count:
            result[number] = [_percentile(row, mask, percent / 100.0 * (count - 1), count) for percent in percents]
    return torch.from_numpy(result)


def _percentile(row: Values, mask: Mask | None, rank: float, count: int) -> float:
    """Value at a rank, which need not be whole, among the `count` values of a row that the mask chooses.

    A sample of them gives a bound beyond which, in all likelihood, lie the rank and few others; the number of those
    tells whether it does. If not, all values are searched: the result is exact either way.
    """
    below = int(rank)
    above = min(below + 1, count - 1)
    upper = 2 * below > count
    needed = count - below if upper else above + 1
    tail = _tail(row, mask, needed, upper)
    if len(tail) < needed:
        tail = row if mask is None else np.compress(mask, row)
    first = count - len(tail) if upper else 0
    ends = np.partition(tail, (below - first, above - first))
    low, high = float(ends[below - first]), float(ends[above - first])
    return low + (high - low) * (rank - below)


def _tail(row: Values, mask: Mask | None, needed: int, upper: bool) -> Values:
    """The largest (or smallest) values of a row: about twice as many as are needed, or too few."""
    sample = row[::SAMPLED] if mask is None else row[::SAMPLED][mask[::SAMPLED]]
    place = 2 * needed // SAMPLED + 8
    if place >= len(sample):
        return row[:0]
    if upper:
        place = len(sample) - 1 - place
    bound = np.partition(sample, place)[place]
    inside = row >= bound if upper else row <= bound
    if mask is not None:
        inside &= mask
    return np.compress(inside, row)


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
