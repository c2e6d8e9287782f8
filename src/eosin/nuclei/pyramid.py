"""Maps at 1, 1/2, 1/4 and 1/8 from encoders that have none: vision transformers, and networks with a coarse stem.

A transformer of one resolution gives the maps of its last blocks; the deepest becomes the map at 1/8, the one before it
that at 1/4 and so on, each brought up by transposed convolutions of stride 2, as in ViTDet's simple pyramid (Li et al.,
arXiv:2203.16527) and in CellViT (Hörst et al., Medical Image Analysis 2024). Patches of 14 px see the window at 16/14
of its resolution, so that a patch covers 16 px of it.

A network with stages gives its own maps where it has them. Deeper ones are resized and added to that at 1/8, finer ones
are made from its finest by transposed convolutions.

Where the encoder sees nothing finer than 4 px, two convolutions of the image itself are added to the map at 1, as
U-Net-like decoders on transformers do: outlines are finer than patches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eosin.core.errors import EosinError
from eosin.encoders import Encoder
from eosin.encoders.forward import FORWARD_ERRORS, first_line
from eosin.nuclei.config import Geometry
from eosin.nuclei.trunks import Trunk, initialize

__all__ = ["PyramidTrunk"]

_LEVELS = (1, 2, 4, 8)
_EDGE = {"original": 3, "fast": 0}
"""Pixels at each side of the window that the maps do not cover."""


class PyramidTrunk(Trunk):
    """A pyramid on any encoder with feature maps.

    Args:
        encoder: Not changed.
        geometry: Of the decoders.
        window: Side of the input in pixels.
        channels: Of the four maps, finest first.
        pixels: See `NetworkConfig.pixels`.

    Raises:
        EosinError: If the encoder has no feature maps of this window.
    """

    uses_all = False

    def __init__(
        self,
        encoder: Encoder,
        geometry: Geometry,
        window: int,
        channels: tuple[int, int, int, int],
        pixels: bool = True,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.channels = channels
        self.edge = _EDGE[geometry]
        self.covered = window - 2 * self.edge
        patch, coarsest = _patch(encoder), _coarsest(encoder)
        # What a patch covers of the window is a power of 2; the window is resized where its patches are not.
        cell = max(8, _power(patch), _power(coarsest))
        self.seen = math.ceil(self.covered / cell) * cell
        self.side = self.seen * patch // _power(patch)
        shapes = self._shapes()
        strides = [self.seen // side for _, side in shapes]
        self.plan = _plan(strides)
        self.levels = nn.ModuleList(
            _raise(shapes[place][0], wanted, (strides[place] // level).bit_length() - 1)
            for place, wanted, level in zip(self.plan, channels, _LEVELS, strict=True)
        )
        # Maps deeper than the one that becomes that at 1/8, in a network with stages.
        self.below = [place for place, stride in enumerate(strides) if stride > max(8, strides[self.plan[3]])]
        self.deeper = nn.ModuleList(nn.Conv2d(shapes[place][0], channels[3], 1, bias=False) for place in self.below)
        self.image = _image(channels[0]) if pixels and min(strides) > 2 else None
        for part in (self.levels, self.deeper, self.image):
            if part is not None:
                initialize(part)

    @torch.no_grad()
    def _shapes(self) -> list[tuple[int, int]]:
        """Channels and side of each of the encoder's maps."""
        training = self.encoder.training
        self.encoder.eval()
        try:
            maps = self.encoder.spatial(torch.zeros(1, 3, self.side, self.side))
        except FORWARD_ERRORS as error:
            raise EosinError(
                f"{self.encoder.card.spec}: gives no feature maps of {self.side} px ({first_line(error)}); add "
                f"?size={self.side} to it, or use another encoder"
            ) from error
        finally:
            self.encoder.train(training)
        shapes = [(level.shape[1], level.shape[-1]) for level in maps]
        for _, side in shapes:
            if self.seen % side or (self.seen // side) & (self.seen // side - 1):
                raise EosinError(
                    f"{self.encoder.card.spec}: a feature map of {side} px for {self.seen} px is no power of 2; "
                    "use another encoder"
                )
        return shapes

    def body(self) -> list[nn.Module]:
        """Return the encoder."""
        return [self.encoder]

    def normalize(self, images: Tensor) -> Tensor:
        """Turn uint8 [B, 3, H, W] into the encoder's normalised input."""
        return self.encoder.normalize(images)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return maps of what the decoders cover of the window, finest first."""
        covered = images[..., self.edge : self.edge + self.covered, self.edge : self.edge + self.covered]
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.freeze is None):
            found = self.encoder.spatial(self._fitted(images))
        maps = [level(found[place]) for level, place in zip(self.levels, self.plan, strict=True)]
        for place, lateral in zip(self.below, self.deeper, strict=True):
            deep = lateral(found[place])
            maps[3] = maps[3] + F.interpolate(deep, size=maps[3].shape[-2:], mode="bilinear", align_corners=False)
        sides = [self.covered // level for level in _LEVELS]
        maps = [level[..., :side, :side] for level, side in zip(maps, sides, strict=True)]
        if self.image is not None:
            maps[0] = maps[0] + self.image(covered)
        return maps

    def _fitted(self, images: Tensor) -> Tensor:
        """Cut what is covered, with what its patches reach over to the right and below, at the encoder's resolution."""
        end = self.edge + self.seen
        here = images[..., self.edge : end, self.edge : end]
        lacking = self.seen - here.shape[-1]
        if lacking:
            here = F.pad(here, (0, lacking, 0, lacking), mode="reflect")
        if self.side != self.seen:
            side = (self.side, self.side)
            here = F.interpolate(here, size=side, mode="bilinear", align_corners=False, antialias=True)
        return here


def _patch(encoder: Encoder) -> int:
    """Side of the encoder's patches in pixels; 1 for a network without."""
    patch = getattr(getattr(encoder.backbone, "patch_embed", None), "patch_size", 1)
    return int(patch[0] if isinstance(patch, tuple | list) else patch)


def _coarsest(encoder: Encoder) -> int:
    """Stride in pixels of the encoder's deepest map, as timm knows it."""
    infos = getattr(encoder.backbone, "feature_info", ())
    return max((int(info.get("reduction", 1)) for info in infos), default=1)


def _power(number: int) -> int:
    """Return the least power of 2 that is no smaller."""
    return 1 << (number - 1).bit_length()


def _plan(strides: Sequence[int]) -> list[int]:
    """Choose which of an encoder's maps becomes each of the four levels."""
    last = len(strides) - 1
    if len(set(strides)) == 1:
        # Depth in place of resolution: the shallowest maps for the finest levels.
        return [max(0, last - 3 + place) for place in range(4)]
    return [
        max((place for place in range(last + 1) if strides[place] <= level), key=lambda p: strides[p], default=0)
        for level in _LEVELS
    ]


def _raise(given: int, wanted: int, doublings: int) -> nn.Module:
    """Double a map's resolution some times, and bring its channels to those wanted."""
    if doublings < 1:
        return nn.Conv2d(given, wanted, 1, bias=False)
    layers: list[nn.Module] = []
    for left in reversed(range(1, doublings)):
        # Few channels where there are many pixels.
        inner = min(given, wanted << left)
        layers += [
            nn.ConvTranspose2d(given, inner, 2, stride=2, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
        ]
        given = inner
    return nn.Sequential(*layers, nn.ConvTranspose2d(given, wanted, 2, stride=2, bias=False))


def _image(channels: int) -> nn.Module:
    inner = max(8, channels // 4)
    return nn.Sequential(
        nn.Conv2d(3, inner, 3, padding=1, bias=False),
        nn.BatchNorm2d(inner),
        nn.ReLU(inplace=True),
        nn.Conv2d(inner, channels, 3, padding=1, bias=False),
    )
