"""Stochastic depth whose masks depend on a tile and not on its batch.

timm's `DropPath` draws from torch's generator, so what a tile loses depends on the tiles before it and on the number of
processes. Here a layer keeps a residual branch of a tile where

    u < 1 - rate,        u uniform, a function of (seed, step, position of the tile, view, layer),

and divides what it keeps by 1 - rate: timm's law, with other draws.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from timm.layers import DropPath
from torch import Tensor, nn

from eosin.core.draws import Draws
from eosin.core.transfer import upload

__all__ = ["PositionalDropPath", "draw_masks", "replace_drop_paths"]

# Some networks call one layer for several branches of a block, ConViT for two. Three calls a pass have masks of their
# own; further ones, as in CoaT, repeat them.
_CALLS = 3


class PositionalDropPath(nn.Module):
    """Drops residual branches by masks that `draw_masks` sets; the identity in evaluation mode.

    Without masks it draws from torch's generator, as timm's layer does. It has no parameters and no state.

    Args:
        rate: Share of the branches that are dropped.
        scale_by_keep: Divide kept branches by 1 - rate.
    """

    masks: Tensor | None
    """bool [rows of the next pass, calls], true where the branch is kept."""

    def __init__(self, rate: float, scale_by_keep: bool = True) -> None:
        super().__init__()
        self.rate = rate
        self.scale_by_keep = scale_by_keep
        self.masks = None
        self.calls = 0

    def forward(self, branch: Tensor) -> Tensor:
        """Drop rows of [N, ...]."""
        if not self.training or self.rate == 0:
            return branch
        keep = 1 - self.rate
        shape = (len(branch),) + (1,) * (branch.ndim - 1)
        if self.masks is None:
            mask = branch.new_empty(shape).bernoulli_(keep)
        else:
            mask = self.masks[:, self.calls % _CALLS].view(shape).to(branch.dtype)
            self.calls += 1
        if self.scale_by_keep and keep > 0:
            mask = mask / keep
        return branch * mask

    def extra_repr(self) -> str:
        """Show the rate."""
        return f"rate={self.rate:.3f}"


def replace_drop_paths(module: nn.Module) -> list[PositionalDropPath]:
    """Put a `PositionalDropPath` of the same rate in the place of each of timm's `DropPath` layers.

    Args:
        module: A network, changed in place.

    Returns:
        The new layers in the order of the network's modules.
    """
    layers = []
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, DropPath):
                layer = PositionalDropPath(child.drop_prob, child.scale_by_keep)
                setattr(parent, name, layer)
                layers.append(layer)
    return layers


def draw_masks(
    layers: Sequence[PositionalDropPath], draws: Draws | None, views: Sequence[int], device: torch.device
) -> None:
    """Set the masks of one forward pass.

    Args:
        layers: What `replace_drop_paths` returned.
        draws: The batch's draws; None leaves drawing to torch's generator.
        views: Numbers of the views in the pass, in the order in which they are concatenated.
        device: Where the pass takes place.
    """
    if not layers or draws is None:
        for layer in layers:
            layer.masks = None
        return
    uniform = np.concatenate([draws.within(f"drop_path/{view}").uniform("layers", len(layers)) for view in views])
    # The 53 random bits of a number serve three calls: its lower bits are uniform too, and independent of the higher.
    bits = (uniform * 2.0**53).astype(np.int64)
    keep = 1 - np.array([layer.rate for layer in layers])
    kept = [(bits & (2**width - 1)) < np.ceil(keep * 2.0**width).astype(np.int64) for width in (53, 36, 19)]
    table = torch.from_numpy(np.stack(kept).transpose(2, 1, 0).copy())  # [layer, row, call]
    for layer, masks in zip(layers, upload(table, device), strict=True):
        layer.masks, layer.calls = masks, 0
