"""Which tiles are looked at: a part that stands for the whole, and the same one every time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from eosin.core.draws import permuted, stream_seed
from eosin.describe.columns import Columns

__all__ = ["choose_rows"]

Int64Array = npt.NDArray[np.int64]


def choose_rows(columns: Columns, sample: int, seed: int) -> Int64Array:
    """Choose tiles by systematic sampling: ordered by slide, label and split, within these at random, every n-th.

    Each slide (or, where slides are unknown, each patient) has as many of them as its share of the tiles, rounded up
    or down, and within it each label; so shares in the sample estimate those of the source without weights. Where there
    are more slides than half the sample, tiles come in pairs that are next to each other in the order of slides and
    chance alone: most are then of one slide, without which nothing could be said of how much a slide varies in itself.

    Args:
        columns: Of the source.
        sample: Tiles to choose; 0 or more than there are takes all.
        seed: Seed of the order within a slide.

    Returns:
        int64 [n], ascending.
    """
    total = columns.total
    if sample <= 0 or sample >= total:
        return np.arange(total, dtype=np.int64)
    keys = [permuted(np.arange(total), total, stream_seed(seed, "describe"))]
    origin = columns.slide if columns.slide is not None else columns.patient
    paired = origin is not None and sample >= 2 and 2 * len(origin.names) > sample
    within = () if paired else (columns.split, columns.label)
    keys += [column.codes for column in (*within, origin) if column is not None]
    order = np.lexsort(keys)
    if paired:
        first = _evenly(sample // 2, total)
        # The very first place belongs to no pair: an odd sample takes it.
        places = np.concatenate([first, first + 1, np.zeros(sample % 2, dtype=np.int64)])
    else:
        places = _evenly(sample, total)
    return np.sort(order[places]).astype(np.int64)


def _evenly(count: int, total: int) -> Int64Array:
    """Return the middles of `count` equal parts of `total` places."""
    return (2 * np.arange(count, dtype=np.int64) + 1) * total // (2 * count)
