"""Trunks: what gives HoVer-Net's decoders maps at 1, 1/2, 1/4 and 1/8 of a window, from any encoder.

* `PreactResNet50`: the paper's own, from nothing. A 7 x 7 convolution of stride 1 without max-pooling, then stages of
  3, 4, 6 and 3 pre-activation units with strides 1, 2, 2, 2; pixels are divided by 255 only.
* `ResNetTrunk`: a ResNet of timm with all its weights. The stem's stride becomes 1 and its max-pooling goes, as in the
  paper, so the stages give 1, 1/2, 1/4 and 1/8 in place of 1/4 .. 1/32. The weights are the same and load unchanged;
  each layer sees four times the detail that it was trained on.
* `PyramidTrunk` (`eosin.nuclei.pyramid`): everything else.

A trunk's encoder holds the weights that a frozen phase leaves alone; all other layers are decoder.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from timm.models.resnet import ResNet
from torch import Tensor, nn

from eosin.core.errors import EosinError
from eosin.encoders import Encoder
from eosin.nuclei.config import Freeze, Geometry

__all__ = ["REFERENCE", "PreactResNet50", "ResNetTrunk", "Trunk", "initialize"]

REFERENCE = "preact_resnet50"
"""In place of an encoder's spec: the network of the paper."""


def initialize(part: nn.Module) -> None:
    """Draw the weights of convolutions as the authors do (He et al., 2015), from torch's global generator."""
    for module in part.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class Trunk(nn.Module, ABC):
    """Gives maps at 1, 1/2, 1/4 and 1/8.

    Attributes:
        channels: Of the four maps, finest first.
        uses_all: Whether every weight of the encoder has a share in the maps.
        freeze: None to train the encoder; "full" to leave it as it is; "reference", see `NucleiConfig.freeze`.
    """

    channels: tuple[int, int, int, int]
    uses_all = True

    def __init__(self) -> None:
        super().__init__()
        self.freeze: Freeze | None = None

    @abstractmethod
    def body(self) -> list[nn.Module]:
        """Return the parts that are the encoder; the others learn in every phase."""

    def set_freeze(self, freeze: Freeze | None) -> None:
        """Freeze the encoder, or let it train."""
        self.freeze = freeze
        for part in self.body():
            part.requires_grad_(freeze is None)
        self.train(self.training)

    def train(self, mode: bool = True) -> Trunk:
        """Set the mode; an encoder that is frozen in full stays in evaluation mode."""
        super().train(mode)
        if self.freeze == "full":
            for part in self.body():
                part.eval()
        return self

    @abstractmethod
    def normalize(self, images: Tensor) -> Tensor:
        """Turn uint8 [B, 3, H, W] into the float32 that the encoder takes."""

    @abstractmethod
    def forward(self, images: Tensor) -> list[Tensor]:
        """Return maps [B, C, h, w], finest first."""


class ResNetTrunk(Trunk):
    """A ResNet of timm, its stem at stride 1.

    Args:
        encoder: Changed in place: strides and padding, no weight.
        geometry: `original` convolves the stem without padding.

    Raises:
        EosinError: If the network is no ResNet with four stages.
    """

    def __init__(self, encoder: Encoder, geometry: Geometry) -> None:
        super().__init__()
        self.encoder = encoder
        network: Any = encoder.backbone
        stem = [module for module in network.conv1.modules() if isinstance(module, nn.Conv2d)]
        stem[0].stride = (1, 1)
        if geometry == "original":
            # Three 3 x 3 convolutions take 3 px from each side, as one of 7 x 7 does.
            if sum(int(layer.padding[0]) for layer in stem) != 3:
                raise EosinError(f"{encoder.card.spec}: its stem does not fit --network.geometry original; use fast")
            for layer in stem:
                layer.padding = (0, 0)
        network.maxpool = nn.Identity()
        infos: Sequence[dict[str, Any]] = network.feature_info[1:]
        first, second, third, fourth = (int(info["num_chs"]) for info in infos)
        self.channels = (first, second, third, fourth)

    @staticmethod
    def fits(encoder: Encoder) -> bool:
        """Tell whether an encoder is a ResNet whose stem pools without weights."""
        network: Any = encoder.backbone
        return isinstance(network, ResNet) and isinstance(network.maxpool, nn.MaxPool2d)

    def body(self) -> list[nn.Module]:
        """Return the network."""
        return [self.encoder]

    def normalize(self, images: Tensor) -> Tensor:
        """Turn uint8 [B, 3, H, W] into the encoder's normalised input."""
        return self.encoder.normalize(images)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps after each stage."""
        network: Any = self.encoder.backbone
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.freeze is None):
            maps = network.act1(network.bn1(network.conv1(images)))
            found = []
            for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
                maps = stage(maps)
                found.append(maps)
        return found


class PreactResNet50(Trunk):
    """The pre-activation ResNet-50 of the paper (He et al., "Identity mappings in deep residual networks", 2016).

    Args:
        geometry: `original` convolves the stem without padding.
    """

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.channels = (256, 512, 1024, 2048)
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, padding=0 if geometry == "original" else 3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
        )
        given, stages = 64, []
        for number, (units, inner) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True)):
            stages.append(_Stage(given, inner, units, 1 if number == 0 else 2))
            given = 4 * inner
        self.stages = nn.ModuleList(stages)
        initialize(self)

    def body(self) -> list[nn.Module]:
        """Return all of it."""
        return [self.stem, self.stages]

    def set_freeze(self, freeze: Freeze | None) -> None:
        """Freeze the network; "reference" trains what the authors' code does: the stem and the first stage's ends."""
        super().set_freeze(freeze)
        if freeze == "reference":
            first: Any = self.stages[0]
            for part in (self.stem, first.shortcut, first.last):
                part.requires_grad_(True)

    def normalize(self, images: Tensor) -> Tensor:
        """Divide by 255."""
        return images.to(torch.float32) / 255

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps after each stage."""
        learns = torch.is_grad_enabled()
        with torch.set_grad_enabled(learns and self.freeze != "full"):
            maps = self.stem(images)
            found = [self.stages[0](maps, units_learn=self.freeze is None)]
        with torch.set_grad_enabled(learns and self.freeze is None):
            for stage in self.stages[1:]:
                found.append(stage(found[-1]))
        return found


class _Stage(nn.Module):
    """Pre-activation units around a shortcut, then batch norm and ReLU."""

    def __init__(self, given: int, inner: int, units: int, stride: int) -> None:
        super().__init__()
        wanted = 4 * inner
        self.shortcut = nn.Conv2d(given, wanted, 1, stride=stride, bias=False)
        self.units = nn.ModuleList(
            _unit(given if number == 0 else wanted, inner, stride if number == 0 else 1, first=number == 0)
            for number in range(units)
        )
        self.last = nn.Sequential(nn.BatchNorm2d(wanted), nn.ReLU())

    def forward(self, maps: Tensor, units_learn: bool = True) -> Tensor:
        total = self.shortcut(maps)
        # What comes in is normed and cut at 0 by the stage before.
        given = maps
        for unit in self.units:
            with torch.set_grad_enabled(torch.is_grad_enabled() and units_learn):
                change = unit(given)
            total = total + change
            given = total
        result: Tensor = self.last(total)
        return result


def _unit(given: int, inner: int, stride: int, *, first: bool) -> nn.Sequential:
    layers: list[nn.Module] = [] if first else [nn.BatchNorm2d(given), nn.ReLU()]
    layers += [
        nn.Conv2d(given, inner, 1, bias=False),
        nn.BatchNorm2d(inner),
        nn.ReLU(inplace=True),
        # With stride 2 the authors, as TensorFlow does, add a row and a column at the end alone.
        *([nn.ZeroPad2d((0, 1, 0, 1))] if stride == 2 else []),
        nn.Conv2d(inner, inner, 3, stride=stride, padding=1 if stride == 1 else 0, bias=False),
        nn.BatchNorm2d(inner),
        nn.ReLU(inplace=True),
        nn.Conv2d(inner, 4 * inner, 1, bias=False),
    ]
    return nn.Sequential(*layers)
