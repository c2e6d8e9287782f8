"""The stain of single images: average and deviation of each channel, over all pixels or over tissue (Reinhard 2001)."""

from __future__ import annotations

import torch
from torch import Tensor

from eosin.augment.spaces import UNITS, Space, tissue_weight, to_planes_
from eosin.augment.sums import pixel_sums

__all__ = ["LEAST_WEIGHT", "center_", "image_statistics", "tissue_share"]

# Keeps the statistics of an image without tissue finite: they are then those of all its pixels.
LEAST_WEIGHT = 1e-6


def center_(planes: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Subtract each image's channel means, in place.

    Args:
        planes: float32 [B, 3, h, w].
        weight: float32 [B, 1, h, w], how much each pixel counts, not all 0; None counts them all alike.

    Returns:
        Means and population standard deviations, float32 [B, 3, 1, 1].
    """
    if weight is None:
        mean = planes.mean(dim=(2, 3), keepdim=True)
        planes.sub_(mean)
        norm = torch.linalg.vector_norm(planes, dim=(2, 3), keepdim=True)
        return mean, norm.mul_((planes.shape[2] * planes.shape[3]) ** -0.5)
    total = pixel_sums(weight.flatten(2))[..., None, None].reciprocal_()
    scratch = planes * weight
    mean = scratch.sum(dim=(2, 3), keepdim=True).mul_(total)
    planes.sub_(mean)
    torch.mul(planes, planes, out=scratch).mul_(weight)
    return mean, scratch.sum(dim=(2, 3), keepdim=True).mul_(total).sqrt_()


def tissue_share(weight: Tensor) -> Tensor:
    """Return the mean of each image's `tissue_weight`: float32 [B] of [B, 1, h, w]."""
    return pixel_sums(weight.flatten(1)).div_(weight.shape[2] * weight.shape[3])


def image_statistics(images: Tensor, space: Space, tissue_only: bool) -> tuple[Tensor, Tensor]:
    """Measure the stain of images.

    Args:
        images: float32 [B, 3, h, w] RGB in 0..1; left as they are.
        space: Color space to measure in.
        tissue_only: Weight every pixel by its `tissue_weight`; an image without any is measured as a whole.

    Returns:
        float32 [B, 6], averages of the three channels and then their population standard deviations, in the space's
        units; and float32 [B], the share of tissue, 0..1.
    """
    weight = tissue_weight(images)
    share = tissue_share(weight)
    planes = to_planes_(images.clone(memory_format=torch.contiguous_format), space)
    mean, std = center_(planes, weight.add_(LEAST_WEIGHT) if tissue_only else None)
    means = [mean[:, i, 0, 0] * scale + offset for i, (scale, offset) in enumerate(zip(*UNITS[space], strict=True))]
    stds = [std[:, i, 0, 0] * scale for i, scale in enumerate(UNITS[space][0])]
    return torch.stack(means + stds, dim=1), share
