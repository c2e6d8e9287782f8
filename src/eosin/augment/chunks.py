"""How many images are worked on at a time."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

__all__ = ["CHUNK_PIXELS", "chunks"]

CHUNK_PIXELS = 50_176
"""One image of 224 px: the passes over its pixels then stay in the second-level cache."""


def chunks(images: Tensor) -> Iterator[slice]:
    """Yield slices of the batch: what fits the cache on a CPU, all at once on another device.

    Args:
        images: [B, C, H, W], read for its shape and device only.
    """
    count, _, height, width = images.shape
    step = max(1, CHUNK_PIXELS // max(1, height * width)) if images.device.type == "cpu" else max(1, count)
    for start in range(0, count, step):
        yield slice(start, start + step)
