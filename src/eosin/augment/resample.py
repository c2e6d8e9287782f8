"""Antialiased resampling of many boxes at once, as two batched matrix products."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eosin.core.transfer import upload

__all__ = ["Interpolation", "resample_boxes"]

Interpolation = Literal["bilinear", "bicubic"]

# Bytes of float pixels that are worked on at a time.
_CHUNK_BYTES = 1 << 29


def resample_boxes(
    images: Tensor, boxes: npt.NDArray[np.int64], size: int, interpolation: Interpolation = "bilinear"
) -> Tensor:
    """Cut one box out of each image and resample all of them, antialiased, to one size.

    Each output pixel is a weighted sum of the inputs under a filter widened by the down-scale: along the rows, then
    along the columns, rounded to 8 bits after each, as Pillow and torchvision do it. Both passes are one matrix product
    a batch, with the weights of every image's own box; pixels outside the box have weight 0. On a GPU that is a handful
    of kernels, however many boxes there are, and the host waits for none.

    Args:
        images: uint8 [B, C, H, W].
        boxes: int64 [B, 4]: top, left, height, width in pixels, inside the image.
        size: Side of the result in pixels.
        interpolation: "bilinear" (triangle) or "bicubic" (a = -0.5).

    Returns:
        uint8 [B, C, size, size].
    """
    batch, channels, height, width = images.shape
    crops = images.new_empty(batch, channels, size, size)
    places = upload(np.ascontiguousarray(boxes, dtype=np.float32), images.device)
    step = max(1, _CHUNK_BYTES // (4 * channels * height * width))
    for start in range(0, batch, step):
        part, place = images[start : start + step].float(), places[start : start + step]
        across = _weights(place[:, 1], place[:, 3], width, size, interpolation)
        down = _weights(place[:, 0], place[:, 2], height, size, interpolation)
        rows = torch.bmm(part.flatten(1, 2), across.transpose(1, 2)).round_().clamp_(0, 255)
        columns = torch.matmul(down[:, None], rows.unflatten(1, (channels, height))).round_().clamp_(0, 255)
        crops[start : start + step] = columns
    return crops


def _weights(first: Tensor, length: Tensor, extent: int, size: int, interpolation: Interpolation) -> Tensor:
    """Return each output's weights over an axis: float32 [B, size, extent], rows summing to 1.

    Args:
        first: float32 [B], where the box begins.
        length: float32 [B], its length in pixels.
        extent: Length of the axis in pixels.
        size: Outputs.
        interpolation: The filter.
    """
    reach = 1.0 if interpolation == "bilinear" else 2.0
    scale = (length / size).view(-1, 1, 1)
    widened = scale.clamp(min=1.0)
    outputs = torch.arange(size, device=first.device, dtype=torch.float32).view(1, -1, 1)
    center = (outputs + 0.5) * scale
    inputs = torch.arange(extent, device=first.device, dtype=torch.float32).view(1, 1, -1) - first.view(-1, 1, 1)
    low = (center - reach * widened + 0.5).floor_().clamp_(min=0.0)
    high = torch.minimum((center + reach * widened + 0.5).floor_(), length.view(-1, 1, 1))
    distance = ((inputs + 0.5 - center) / widened).abs_()
    weights = _triangle(distance) if interpolation == "bilinear" else _cubic(distance)
    weights = torch.where((inputs >= low) & (inputs < high), weights, 0.0)
    return weights / weights.sum(dim=2, keepdim=True)


def _triangle(distance: Tensor) -> Tensor:
    return (1.0 - distance).clamp_(min=0.0)


def _cubic(distance: Tensor) -> Tensor:
    """Keys' cubic convolution with a = -0.5, Pillow's (R. G. Keys, IEEE TASSP 29(6), 1981)."""
    near = (1.5 * distance - 2.5) * distance.square() + 1.0
    far = ((-0.5 * distance + 2.5) * distance - 4.0) * distance + 2.0
    return torch.where(distance < 1.0, near, torch.where(distance < 2.0, far, 0.0))
