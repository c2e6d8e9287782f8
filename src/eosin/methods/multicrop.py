"""Several crops of each tile through one network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

__all__ = ["crop_groups", "embed_crops"]


def crop_groups(views: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Group consecutive views of one size.

    Args:
        views: [B, 3, h, w] tensors.
    """
    for _, group in groupby(views, key=lambda view: view.shape[-2:]):
        yield list(group)


def embed_crops(backbone: nn.Module, views: Sequence[Tensor]) -> Tensor:
    """Embed views with one forward pass per crop size, as SwAV's and DINO's multi-crop networks do.

    Args:
        backbone: Maps [N, 3, h, w] to [N, D].
        views: V tensors [B, 3, h, w]; views of one size follow each other.

    Returns:
        [V x B, D], view by view.
    """
    return torch.cat([backbone(torch.cat(group)) for group in crop_groups(views)])
