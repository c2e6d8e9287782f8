"""An encoder and the contract of the pixels it takes."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from eosin.core.config import Config
from eosin.core.errors import EosinError

__all__ = ["Card", "Encoder", "Feature", "check_features", "normalize"]

Channels = tuple[float, float, float]
Feature = Literal["pooled", "cls", "cls+mean_patch"]
Positive = Annotated[float, Field(gt=0.0)]


class Card(Config):
    """What travels with an encoder's weights: the pixels it expects, and where it comes from."""

    spec: str
    """The string that loads this encoder."""
    architecture: str
    """timm's name of the network without a weights tag, or the scheme's own name, such as "color:stats"."""
    size: Annotated[int, Field(ge=1)]
    """Side of the square input in pixels."""
    mean: Channels
    """Mean of R, G, B in 0..1, subtracted from the input."""
    std: tuple[Positive, Positive, Positive]
    """Standard deviation of R, G, B in 0..1, by which the input is divided."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Filter with which images are brought to `size`."""
    mpp: Positive | None = None
    """µm/px of the training tiles; None where unknown or not pathology."""
    licence: str
    """Licence of the weights as their source states it."""
    width: Annotated[int, Field(ge=1)]
    """Length of the embedding."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Arguments of timm.create_model, beside the architecture, with which the network was built."""
    feature: Feature = "pooled"
    """What the embedding is: as timm pools the network, the class token after the final norm, or the class token
    followed by the mean of the patch tokens."""
    gated: bool = False
    """Whether the source asks for an account and for a licence to be accepted before it gives the weights."""
    reference: str = ""
    """Paper or page that describes the encoder."""


class Encoder(nn.Module):
    """A network (or a fixed function) that turns normalised images into embeddings, with its card.

    Subclasses implement `forward` and, where the network has feature maps, `spatial`.

    Attributes:
        card: The pixel contract and the source.
        backbone: The module that holds the weights; its `state_dict` is what is saved.
    """

    card: Card

    def __init__(self, card: Card, backbone: nn.Module) -> None:
        super().__init__()
        self.card = card
        self.backbone = backbone

    @property
    def width(self) -> int:
        """Length of the embedding."""
        return self.card.width

    def forward(self, images: Tensor) -> Tensor:
        """Embed images.

        Args:
            images: float32 [B, 3, H, W], normalised with the card's mean and standard deviation.

        Returns:
            [B, width].
        """
        raise TypeError(f"{type(self).__name__} does not define forward")

    def spatial(self, images: Tensor) -> list[Tensor]:
        """Return feature maps for dense work, finest first.

        Args:
            images: float32 [B, 3, H, W], normalised with the card's mean and standard deviation.

        Returns:
            Tensors [B, C, h, w].

        Raises:
            EosinError: If this encoder has no feature maps.
        """
        raise TypeError(f"{type(self).__name__} does not define spatial")

    def normalize(self, images: Tensor) -> Tensor:
        """Turn uint8 [B, 3, H, W] RGB into the float32 input of `forward`."""
        return normalize(images, self.card.mean, self.card.std)

    def fingerprint(self) -> str:
        """Identify the function this encoder computes: 16 hexadecimal digits.

        SHA-256 over the pixel contract (architecture and its options, size, mean, std, interpolation; the feature where
        it is not the network's own pooling) and over name, dtype, shape and bytes of every tensor in the order of the
        names. Where the weights came from does not enter.
        """
        contract = self.card.model_dump(mode="json", include=_CONTRACT)
        options = {name: value for name, value in self.card.options.items() if name not in _INITIALISATION}
        if options:
            contract["options"] = options
        if not self._pools_as_the_network():
            contract["feature"] = self.card.feature
        digest = hashlib.sha256(json.dumps(contract, sort_keys=True).encode())
        for name, tensor in sorted(self.backbone.state_dict().items()):
            digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()[:16]

    def _pools_as_the_network(self) -> bool:
        """Whether the card's feature is what the backbone puts out by itself."""
        return self.card.feature == "pooled"


_CONTRACT = {"architecture", "size", "mean", "std", "interpolation"}
# Options that choose how weights are drawn, not what is computed with them.
_INITIALISATION = {"zero_init_last", "weight_init"}


def check_features(features: object, batch: int, card: Card) -> Tensor:
    """Return what a network gave for a batch if it is floating-point [batch, width].

    Args:
        features: What the network returned.
        batch: Number of images it was given.
        card: Its card.

    Raises:
        EosinError: If it is anything else.
    """
    if isinstance(features, Tensor) and features.shape == (batch, card.width) and features.is_floating_point():
        return features
    found = type(features).__name__
    if isinstance(features, Tensor):
        found = f"{str(features.dtype).removeprefix('torch.')} {list(features.shape)}"
    raise EosinError(
        f"{card.spec}: gave {found} for {batch} images instead of floating-point [{batch}, {card.width}]; "
        "is the feature right (?feature=cls or ?feature=cls+mean_patch)?"
    )


def normalize(images: Tensor, mean: Channels, std: Channels) -> Tensor:
    """Turn uint8 [B, 3, H, W] into float32, scaled to 0..1, minus `mean`, divided by `std`."""
    center = torch.tensor(mean, dtype=torch.float32, device=images.device).view(3, 1, 1)
    spread = torch.tensor(std, dtype=torch.float32, device=images.device).view(3, 1, 1)
    return (images.to(torch.float32) / 255).sub_(center).div_(spread)
