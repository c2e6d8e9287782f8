"""`color:stats` and `color:histogram`: what can be told from color alone, without a network.

An encoder that does not beat them has learnt no tissue.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from eosin.core.errors import EosinError, nearest
from eosin.encoders.base import Card, Encoder
from eosin.encoders.registry import ENCODERS, Options, Scheme, whole_number

__all__ = ["ColorEncoder", "ColorHistogram", "ColorStatistics", "load_color"]

BINS = 16


class ColorStatistics(nn.Module):
    """Mean and (population) standard deviation of each channel: [B, 6]."""

    width = 6

    def forward(self, images: Tensor) -> Tensor:
        """Map float32 [B, 3, H, W] in 0..1 to means of R, G, B, then their standard deviations."""
        variance, mean = torch.var_mean(images, dim=(2, 3), correction=0)
        return torch.cat([mean, variance.sqrt()], dim=1)


class ColorHistogram(nn.Module):
    """Share of the pixels in each of 16 equal bins of R, G and B: [B, 48], each channel's bins sum to 1."""

    width = 3 * BINS

    def forward(self, images: Tensor) -> Tensor:
        """Map float32 [B, 3, H, W] in 0..1 to histograms; a value of 1 falls in the last bin."""
        bins = (images * BINS).long().clamp_(0, BINS - 1).flatten(2)
        counts = torch.zeros(*bins.shape[:2], BINS, dtype=torch.float32, device=images.device)
        counts.scatter_add_(2, bins, torch.ones_like(bins, dtype=torch.float32))
        return (counts / bins.shape[2]).flatten(1)


class ColorEncoder(Encoder):
    """A fixed function of the tile's colors."""

    def forward(self, images: Tensor) -> Tensor:
        """Embed float32 [B, 3, H, W] in 0..1 (the card's mean is 0 and its std 1) as [B, width]."""
        return self.backbone(images)

    def spatial(self, images: Tensor) -> list[Tensor]:
        """Raise an `EosinError`: a color baseline describes the whole tile."""
        raise EosinError(f"{self.card.spec}: has no feature maps; choose a network for dense work")


FEATURES: dict[str, type[ColorStatistics] | type[ColorHistogram]] = {
    "stats": ColorStatistics,
    "histogram": ColorHistogram,
}


def load_color(name: str, options: Options) -> Encoder:
    """Build the color baseline `name`, for tiles of `size` (default 224)."""
    if name not in FEATURES:
        raise EosinError(f"color:{name}: no such color baseline; {nearest(name, FEATURES)}")
    size = whole_number(options, "size", 224, 1)
    backbone = FEATURES[name]()
    card = Card(
        spec=f"color:{name}" + (f"?size={size}" if "size" in options else ""),
        architecture=f"color:{name}",
        size=size,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        licence="none (no weights)",
        width=backbone.width,
    )
    return ColorEncoder(card, backbone)


ENCODERS.register("color")(
    Scheme(
        load=load_color,
        options=("size",),
        examples=("color:stats", "color:histogram?size=96"),
        summary="color statistics of the tile, no network",
    )
)
