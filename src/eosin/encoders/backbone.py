"""timm networks as encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn

from eosin.core.errors import EosinError, nearest
from eosin.core.memory import lacks_memory
from eosin.encoders.attention import choose_attention
from eosin.encoders.base import Card, Encoder, Feature, check_features
from eosin.encoders.class_token import class_token, reads_class_token_only
from eosin.encoders.forward import first_line
from eosin.encoders.layers import real_arguments, refuse_loading

__all__ = ["TimmEncoder", "build_encoder", "check_architecture", "create_backbone", "embedding_width"]

DEPTH = 4
"""Layers that a vision transformer gives as feature maps: as many as DINO's linear evaluation concatenates."""


class TimmEncoder(Encoder):
    """A timm network without its classifier.

    Its embedding is the card's feature: what timm pools (the average for convolutional networks, the class token for
    most transformers), the class token, or the class token followed by the mean of the patch tokens, registers left
    out.

    Raises:
        EosinError: If the feature needs a class token and the network has none.
    """

    def __init__(self, card: Card, backbone: nn.Module) -> None:
        super().__init__(card, backbone)
        if card.feature != "pooled" and not getattr(backbone, "has_class_token", False):
            raise EosinError(f"{card.spec}: {card.architecture} has no class token; leave ?feature={card.feature} out")
        self._class_token_only = reads_class_token_only(backbone)
        choose_attention(backbone)

    def forward(self, images: Tensor) -> Tensor:
        """Embed float32 [B, 3, H, W], normalised, as [B, width].

        Raises:
            EosinError: If the network gives anything else.
        """
        features = self._embed(images)
        # What a compiler traces has been checked, or is, where it runs as it is.
        return features if torch.compiler.is_compiling() else check_features(features, len(images), self.card)

    def _embed(self, images: Tensor) -> Tensor:
        backbone: Any = self.backbone
        if self.card.feature == "cls+mean_patch":
            tokens = backbone.forward_features(images)
            return torch.cat([tokens[:, 0], tokens[:, backbone.num_prefix_tokens :].mean(dim=1)], dim=1)
        if self._class_token_only:
            return class_token(backbone, images)
        features: Tensor = backbone.forward_features(images)[:, 0] if self.card.feature == "cls" else backbone(images)
        return features

    def _pools_as_the_network(self) -> bool:
        own = "cls" if getattr(self.backbone, "global_pool", None) == "token" else "pooled"
        return self.card.feature in ("pooled", own)

    def spatial(self, images: Tensor) -> list[Tensor]:
        """Return feature maps [B, C, h, w].

        A network with stages gives the last map of each stage, finest first. A transformer of one resolution gives
        the patch tokens of its last four blocks (fewer if it has fewer), each after the final norm, in order of depth.

        Raises:
            EosinError: If timm offers no feature maps for this network.
        """
        backbone: Any = self.backbone
        if not hasattr(backbone, "forward_intermediates"):
            raise EosinError(f"{self.card.architecture}: timm gives no feature maps for this network; choose another")
        arguments: dict[str, Any] = {"intermediates_only": True, "output_fmt": "NCHW"}
        blocks = _single_resolution_blocks(backbone)
        if blocks is not None:
            arguments |= {"indices": min(DEPTH, blocks), "norm": True}
        return list(backbone.forward_intermediates(images, **arguments))


def _single_resolution_blocks(backbone: nn.Module) -> int | None:
    """Count the blocks of a network whose layers all have one resolution; None for a network with stages."""
    info: Sequence[Mapping[str, Any]] = list(getattr(backbone, "feature_info", ()))
    reductions = {layer.get("reduction") for layer in info}
    return len(info) if len(info) > 1 and len(reductions) == 1 else None


def check_architecture(architecture: str, where: str) -> None:
    """Raise an `EosinError` with the nearest valid name unless timm knows the architecture."""
    known = timm.list_models()
    if architecture not in known:
        base = architecture.split(".")[0]
        hint = f"did you mean '{base}'?" if base in known else _nearest_short(architecture, known)
        raise EosinError(f"{where}: timm has no architecture '{architecture}'; {hint}")


def _nearest_short(name: str, known: Sequence[str]) -> str:
    hint = nearest(name, known)
    return hint if hint.startswith("did you mean") else "see timm.list_models() for the names"


def create_backbone(architecture: str, size: int, **arguments: Any) -> nn.Module:
    """Build a timm network that takes `size`, and any other size it can, as input.

    Args:
        architecture: timm's name, with a weights tag where weights are loaded.
        size: Side of the input in pixels.
        **arguments: Passed to `timm.create_model`, see `layers.real_arguments`.

    Raises:
        EosinError: If the network cannot take that size, or memory does not suffice.
    """
    attempts: tuple[dict[str, Any], ...] = ({"img_size": size, "dynamic_img_size": True}, {"img_size": size}, {})
    for extra in attempts:
        try:
            backbone = timm.create_model(architecture, **extra, **real_arguments(arguments))
        except TypeError as error:
            # A convolutional network has no such argument.
            if extra and any(name in str(error) for name in extra):
                continue
            raise
        except AssertionError as error:
            raise EosinError(f"{architecture}: does not take images of {size} px ({first_line(error)})") from error
        except (RuntimeError, MemoryError) as error:
            if not lacks_memory(error):
                raise
            raise EosinError(
                f"{architecture}: not enough memory to build it for images of {size} px; give a smaller size or "
                "architecture, or use a larger machine"
            ) from error
        _check_patches(backbone, architecture, size)
        return backbone
    raise AssertionError("the last attempt has no extra argument to fail on")


def _check_patches(backbone: nn.Module, architecture: str, size: int) -> None:
    patch = getattr(getattr(backbone, "patch_embed", None), "patch_size", None)
    if patch is None:
        return
    side = patch[0] if isinstance(patch, (tuple, list)) else int(patch)
    if size % side:
        below, above = size // side * side, (size // side + 1) * side
        sizes = f"{below} or {above}" if below else f"{above}"
        raise EosinError(f"{architecture}: {size} px is no multiple of its {side} px patches; use size {sizes}")


def build_encoder(
    architecture: str,
    *,
    size: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    mpp: float | None = None,
    drop_path: float = 0.0,
    options: Mapping[str, Any] | None = None,
) -> TimmEncoder:
    """Build an untrained encoder; the weights are drawn from torch's global generator.

    Args:
        architecture: timm's name, such as "resnet50" or "vit_small_patch16_224".
        size: Side of the input in pixels; the transformers' position embedding gets this size.
        mean: Mean of R, G, B in 0..1.
        std: Standard deviation of R, G, B in 0..1.
        mpp: µm/px of the training tiles.
        drop_path: Largest rate of stochastic depth (0..1), linear over the blocks.
        options: Further arguments of `timm.create_model`, such as `zero_init_last`.

    Raises:
        EosinError: If timm does not know the name, or the network cannot take the size or an option, or memory does not
            suffice.
    """
    check_architecture(architecture, "encoder")
    refuse_loading(options or {}, architecture)
    arguments = {"drop_path_rate": drop_path} if drop_path else {}
    arguments |= dict(options or {})
    try:
        backbone = create_backbone(architecture, size, num_classes=0, **arguments)
    except TypeError as error:
        if "drop_path_rate" in str(error):
            raise EosinError(f"{architecture}: has no stochastic depth; set drop_path to 0") from None
        refused = next((name for name in options or {} if name in str(error)), None)
        if refused is not None:
            raise EosinError(f"{architecture}: has no option '{refused}'; remove it from encoder.options") from None
        raise
    except (RuntimeError, ValueError, ZeroDivisionError) as error:
        raise EosinError(
            f"{architecture}: cannot be built for images of {size} px ({first_line(error)}); give it another size"
        ) from error
    card = Card(
        spec=architecture,
        architecture=architecture,
        size=size,
        mean=mean,
        std=std,
        mpp=mpp,
        licence="unstated",
        width=embedding_width(backbone),
        options=dict(options or {}),
    )
    return TimmEncoder(card, backbone)


def embedding_width(backbone: nn.Module, feature: Feature = "pooled") -> int:
    """Return the length of the embedding that a timm network without classifier gives."""
    network: Any = backbone
    width = int(getattr(network, "head_hidden_size", None) or network.num_features)
    return 2 * width if feature == "cls+mean_patch" else width
