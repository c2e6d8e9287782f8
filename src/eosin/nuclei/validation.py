"""Whole images through the network, and how well their nuclei are found."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eosin.core.collective import position_in_run, processes, total
from eosin.nuclei.config import PostprocessConfig
from eosin.nuclei.crops import mirrored
from eosin.nuclei.datasets import NucleiImage
from eosin.nuclei.metrics import image_metrics, typed_panoptic
from eosin.nuclei.overlap import overlap
from eosin.nuclei.postprocess import postprocess

if TYPE_CHECKING:
    from eosin.nuclei.model import Maps

__all__ = ["image_maps", "validate"]

_BATCH = 8
"""Windows at a time."""
_NAMES = ("pq", "aji", "dice", "mpq", "found", "true")


def image_maps(maps_of: Callable[[Tensor], Maps], image: npt.NDArray[np.uint8], window: int, output: int) -> Maps:
    """Compute the maps of a whole image, mirrored at its borders, from windows whose outputs tile it.

    Args:
        maps_of: The network, from uint8 [B, 3, window, window].
        image: uint8 [3, H, W].
        window: Side of the input in px.
        output: Side of the output in px.

    Returns:
        Maps with B = 1 of the image's size.
    """
    height, width = image.shape[1:]
    margin = (window - output) // 2
    corners = [(top, left) for top in range(0, height, output) for left in range(0, width, output)]
    rows, columns = -(-height // output) * output, -(-width // output) * output
    parts: list[npt.NDArray[np.float32]] = []
    for first in range(0, len(corners), _BATCH):
        some = corners[first : first + _BATCH]
        windows = [
            image[:, mirrored(top - margin, window, height)][:, :, mirrored(left - margin, window, width)]
            for top, left in some
        ]
        maps = maps_of(torch.from_numpy(np.stack(windows)))
        typed = [] if maps.tp_prob is None else [maps.tp_prob]
        parts.append(np.concatenate([maps.np_prob[:, None], maps.hv, *typed], axis=1))
    outputs = np.concatenate(parts)
    channels = outputs.shape[1]
    grid = outputs.reshape(rows // output, columns // output, channels, output, output)
    whole = grid.transpose(2, 0, 3, 1, 4).reshape(channels, rows, columns)[:, :height, :width]
    whole = np.ascontiguousarray(whole)[None]
    from eosin.nuclei.model import Maps

    return Maps(whole[:, 0], whole[:, 1:3], whole[:, 3:] if channels > 3 else None)


def validate(
    maps_of: Callable[[Tensor], Maps],
    images: Sequence[NucleiImage],
    *,
    window: int,
    output: int,
    settings: PostprocessConfig,
    classes: int,
    device: torch.device,
) -> dict[str, float]:
    """Score images, which the processes of a run share.

    Args:
        maps_of: The network, from uint8 [B, 3, window, window].
        images: At least one.
        window: Side of the input in px.
        output: Side of the output in px.
        settings: Of the post-processing, `scale` filled in.
        classes: Number of types; 0 without.
        device: Where the processes exchange tensors.

    Returns:
        Means over images of `pq`, `aji` and `dice`, with types of `mpq` (over types that are true or predicted in an
        image), and the numbers of nuclei `found` and `true`. An image without nuclei on either side counts in none.
    """
    values = np.full((len(images), len(_NAMES)), math.nan)
    for place in range(position_in_run(), len(images), processes()):
        sample = images[place].read()
        maps = image_maps(maps_of, sample.image, window, output)
        found = postprocess(
            maps.np_prob[0],
            maps.hv[0],
            None if maps.tp_prob is None else maps.tp_prob[0],
            scale=settings.scale or 1.0,
            normalise=settings.normalise,
        )
        pairs = overlap(sample.instances, found.instances)
        scores = image_metrics(pairs)
        mpq = math.nan
        if classes and sample.types is not None:
            said = np.array([nucleus.type for nucleus in found.table], dtype=np.int64)
            counts = typed_panoptic(pairs, sample.types[1:], said, range(1, classes + 1))
            known = [count.pq for count in counts if not math.isnan(count.pq)]
            mpq = float(np.mean(known)) if known else math.nan
        values[place] = (scores["pq"], scores["aji"], scores["dice"], mpq, len(found.table), sample.count)
    known = ~np.isnan(values)
    sums = torch.from_numpy(np.stack([np.where(known, values, 0).sum(axis=0), known.sum(axis=0)])).to(device)
    summed, counted = total(sums).cpu().numpy()
    record = {name: float(summed[_NAMES.index(name)]) for name in ("found", "true")}
    for name in ("pq", "aji", "dice", *(["mpq"] if classes else [])):
        column = _NAMES.index(name)
        record[name] = float(summed[column] / counted[column]) if counted[column] else 0.0
    return record
