"""Batches of windows: pixels and nuclei that stay together."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eosin.nuclei.labels import scikit_image

__all__ = ["WindowBatch", "relabel_windows"]

Types = list[npt.NDArray[np.int64]] | None


class WindowBatch(TypedDict):
    """Windows of images with their nuclei.

    Attributes:
        image: uint8 [B, 3, S, S], RGB.
        instances: int32 [B, S, S], on the CPU: 0 outside nuclei, else 1 to N of each window.
        types: Of each window int64 [N + 1], the type of each id, the first 0; None without types.
    """

    image: Tensor
    instances: Tensor
    types: Types


def relabel_windows(instances: Tensor, types: Types) -> tuple[Tensor, Types]:
    """Give each connected part of a nucleus an id of its own, 1 to N in each window; a part keeps its nucleus's type.

    A border can part a nucleus, a mirrored one repeats it. Parts touch by edges, not by corners.

    Args:
        instances: int32 [B, S, S], on the CPU, no id below 0.
        types: Of each window int64, the type of each id that may occur, the first 0.

    Returns:
        Both, with new ids: in the order in which the parts are met, row by row.
    """
    count, height, width = instances.shape
    # One picture of all windows, with a line of background between them: one call labels them all.
    tall = np.zeros((count, height + 1, width), dtype=np.int32)
    tall[:, :height] = instances.numpy()
    flat = tall.reshape(-1, width)
    parts: npt.NDArray[np.int32]
    parts, total = scikit_image("measure").label(flat, background=0, connectivity=1, return_num=True)
    owner = np.zeros(total + 1, dtype=np.int64)
    owner[parts] = flat
    numbers = parts.reshape(tall.shape)[:, :height]
    # Parts are numbered downwards, so each window's come after those of the windows above it.
    last = np.maximum.accumulate(numbers.max(axis=(1, 2), initial=0))
    first = np.concatenate([[0], last[:-1]])
    fresh = np.where(numbers > 0, numbers - first[:, None, None], 0).astype(np.int32)
    if types is None:
        return torch.from_numpy(fresh), None
    named = [
        np.concatenate([[0], kinds[owner[start + 1 : stop + 1]]]).astype(np.int64)
        for kinds, start, stop in zip(types, first, last, strict=True)
    ]
    return torch.from_numpy(fresh), named
