"""HoVer-Net (Graham et al., Medical Image Analysis 2019): three decoders on the feature maps of one encoder.

A trunk (`eosin.nuclei.trunks`) gives maps d0 .. d3 at 1, 1/2, 1/4 and 1/8 of the window. Each decoder goes back up,

    u3 = dense8(conv(up(bottom(d3)) + d2)),   u2 = dense4(conv(up(u3) + d1)),   u1 = conv(up(u2) + d0),

and a 1 x 1 convolution of u1 gives its maps: nucleus or not (2 logits), horizontal and vertical distance, type
(1 + n logits, background first). Skips are added, not concatenated. Convolutions of a decoder but for the last take
no padding, so that a pixel put out never sees a border: the output is the middle of the window. A dense unit
(DenseNet's) is a 1 x 1 convolution to 128 channels and a grouped one to 32, which are appended to what came in.

As the authors' code has it: `original` convolves 5 x 5 and maps 270 px to 80, `fast` 3 x 3 and 256 px to 164. With
`original` the stem takes no padding either, and its maps begin 3 px inside the window.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from eosin.core.errors import EosinError
from eosin.nuclei.config import GEOMETRIES, Geometry
from eosin.nuclei.trunks import Trunk, initialize

__all__ = ["HoverNet", "scaled"]

_UNITS = {3: 8, 2: 4}
"""Dense units on the way up, by level."""

_KERNEL: dict[Geometry, int] = {"original": 5, "fast": 3}
"""Side in pixels of the decoders' convolutions."""


def scaled(channels: int, width: float) -> int:
    """Return a number of channels times the width, a multiple of 8 and at least 8."""
    return max(8, round(channels * width / 8) * 8)


class HoverNet(nn.Module):
    """HoVer-Net on any trunk.

    Args:
        trunk: Gives the maps.
        geometry: Of the decoders; the trunk must be built for it.
        classes: Types of nuclei, background not counted; 0 learns no types.
        width: Factor on the decoders' channels.
        window: Side of the input in pixels, see `NetworkConfig.window`; the published one by default.

    Attributes:
        window: Side of the input in pixels.
        output: Side of the output in pixels, on which the network is trained.
        kept: Side in pixels of what a prediction keeps of an output, in its middle: what has not seen the padding of
            the last convolution, and of that a multiple of 8, so that windows side by side lie alike on all strides.
    """

    def __init__(
        self, trunk: Trunk, geometry: Geometry, classes: int, width: float = 1.0, window: int | None = None
    ) -> None:
        super().__init__()
        published, output = GEOMETRIES[geometry]
        self.window = window or published
        self.output = self.window - published + output
        unpadded = self.output - 2 * (_KERNEL[geometry] // 2)
        self.kept = unpadded // 8 * 8 or unpadded
        self.trunk = trunk
        kernel = _KERNEL[geometry]
        levels = [scaled(channels, width) for channels in (256, 512, 1024)]
        # Maps of the published width need no lateral convolution.
        self.laterals = nn.ModuleList(
            nn.Identity() if given == wanted else _conv(given, wanted, 1)
            for given, wanted in zip(trunk.channels[:3], levels, strict=True)
        )
        self.bottom = _conv(trunk.channels[3], levels[2], 1)
        # In the order of the authors' code, on which the draws of the weights depend.
        outputs = ({"tp": classes + 1} if classes else {}) | {"np": 2, "hv": 2}
        self.decoders = nn.ModuleDict(
            {name: _Decoder(levels, kernel, channels, width) for name, channels in outputs.items()}
        )
        for part in (self.laterals, self.bottom, self.decoders):
            initialize(part)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute the maps of windows.

        Args:
            images: uint8 [B, 3, window, window], RGB.

        Returns:
            "np": [B, 2, output, output] logits, "hv": [B, 2, output, output], and with types "tp": [B, 1 + n, output,
            output] logits.

        Raises:
            EosinError: If the windows are of another size.
        """
        if images.shape[1:] != (3, self.window, self.window):
            raise EosinError(
                f"windows of {list(images.shape[1:])}; this network takes [3, {self.window}, {self.window}]"
            )
        maps = self.trunk(self.trunk.normalize(images).contiguous(memory_format=torch.channels_last))
        deep = self.bottom(maps[3])
        skips = [lateral(level) for lateral, level in zip(self.laterals, maps[:3], strict=True)]
        return {name: decoder(skips, deep) for name, decoder in self.decoders.items()}


class _Decoder(nn.Module):
    """One branch, from maps at 1/8 back to the full size."""

    def __init__(self, levels: Sequence[int], kernel: int, outputs: int, width: float) -> None:
        super().__init__()
        fine, middle, coarse = levels
        first, second, last = (scaled(channels, width) for channels in (256, 128, 64))
        self.u3 = _Up(coarse, first, middle, _UNITS[3], kernel, width)
        self.u2 = _Up(middle, second, fine, _UNITS[2], kernel, width)
        self.u1 = _conv(fine, last, kernel, padding=kernel // 2)
        self.u0 = nn.Sequential(nn.BatchNorm2d(last), nn.ReLU(inplace=True), nn.Conv2d(last, outputs, 1))

    def forward(self, skips: Sequence[Tensor], deep: Tensor) -> Tensor:
        maps = self.u3(_added(_upsampled(deep), skips[2]))
        maps = self.u2(_added(_upsampled(maps), skips[1]))
        maps = self.u1(_added(_upsampled(maps), skips[0]))
        result: Tensor = self.u0(maps)
        return result


class _Up(nn.Sequential):
    """A convolution, dense units, and a 1 x 1 convolution to the channels of the next finer level."""

    def __init__(self, given: int, inner: int, wanted: int, units: int, kernel: int, width: float) -> None:
        growth = scaled(32, width)
        dense = [_DenseUnit(inner + number * growth, growth, kernel, width) for number in range(units)]
        total = inner + units * growth
        super().__init__(
            _conv(given, inner, kernel), *dense, nn.BatchNorm2d(total), nn.ReLU(inplace=True), _conv(total, wanted, 1)
        )


class _DenseUnit(nn.Module):
    """Appends `growth` channels to the middle of its input."""

    def __init__(self, given: int, growth: int, kernel: int, width: float) -> None:
        super().__init__()
        inner = scaled(128, width)
        self.layers = nn.Sequential(
            nn.BatchNorm2d(given),
            nn.ReLU(),
            _conv(given, inner, 1),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            _conv(inner, growth, kernel, groups=4),
        )

    def forward(self, maps: Tensor) -> Tensor:
        new = self.layers(maps)
        return torch.cat([_middle(maps, new.shape[-1]), new], dim=1)


def _conv(given: int, wanted: int, kernel: int, *, padding: int = 0, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(given, wanted, kernel, padding=padding, groups=groups, bias=False)


def _upsampled(maps: Tensor) -> Tensor:
    return nn.functional.interpolate(maps, scale_factor=2.0, mode="nearest")


def _added(maps: Tensor, skip: Tensor) -> Tensor:
    return maps + _middle(skip, maps.shape[-1])


def _middle(maps: Tensor, side: int) -> Tensor:
    """Cut the middle [B, C, side, side] out."""
    start = (maps.shape[-1] - side) // 2
    return maps if not start else maps[..., start : start + side, start : start + side]
