"""Arguments of timm.create_model that a card, being JSON, can only name."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from timm.layers import LayerNorm, SwiGLUPacked
from torch import Tensor, nn

from eosin.core.errors import EosinError, nearest

__all__ = ["LOADING", "ConvStem", "named_layers", "real_arguments", "refuse_loading"]

LOADING = frozenset(
    {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "checkpoint_path", "cache_dir"}
)
"""Arguments of timm.create_model that build nothing: they fetch or read weights, some of them by unpickling."""


class ConvStem(nn.Module):
    """The stem of CTransPath: two strided 3×3 convolutions and a 1×1 one instead of a 4×4 patch embedding.

    Wang et al., Transformer-based unsupervised contrastive learning for histopathological image classification,
    Medical Image Analysis 81 (2022). timm gives it the arguments of its own patch embedding.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 4,
        in_chans: int = 3,
        embed_dim: int = 96,
        norm_layer: Any = None,
        **_: Any,
    ) -> None:
        super().__init__()
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.img_size = (height, width)
        self.patch_size = (4, 4)
        self.grid_size = (height // 4, width // 4)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        narrow = embed_dim // 8
        self.proj = nn.Sequential(
            nn.Conv2d(in_chans, narrow, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(narrow),
            nn.ReLU(inplace=True),
            nn.Conv2d(narrow, 2 * narrow, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(2 * narrow),
            nn.ReLU(inplace=True),
            nn.Conv2d(2 * narrow, embed_dim, 1),
        )
        self.norm = norm_layer(embed_dim) if norm_layer else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Map [B, 3, H, W] to [B, H/4, W/4, C]."""
        tokens: Tensor = self.norm(self.proj(images).permute(0, 2, 3, 1))
        return tokens


_LAYERS: dict[str, dict[str, Any]] = {
    "mlp_layer": {"SwiGLUPacked": SwiGLUPacked},
    "embed_layer": {"ConvStem": ConvStem},
}


def real_arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    """Replace what a card names by what timm takes.

    `mlp_layer` and `embed_layer` are names of layers; `norm_eps` becomes a `norm_layer` with that epsilon.

    Raises:
        EosinError: If a layer is unknown.
    """
    arguments = dict(options)
    for argument, layers in _LAYERS.items():
        name = arguments.get(argument)
        if isinstance(name, str):
            if name not in layers:
                raise EosinError(f"encoder option {argument}: no layer '{name}'; {nearest(name, layers)}")
            arguments[argument] = layers[name]
    if "norm_eps" in arguments:
        arguments["norm_layer"] = partial(LayerNorm, eps=arguments.pop("norm_eps"))
    return arguments


def refuse_loading(options: Mapping[str, Any], where: str) -> None:
    """Refuse options that would make timm read weights from elsewhere; a card may come with a file of anybody's.

    Raises:
        EosinError: If there is one.
    """
    named = sorted(LOADING.intersection(options))
    if named:
        raise EosinError(
            f"{where}: encoder option '{named[0]}' loads other weights instead of building a network; remove it"
        )


def named_layers(options: Mapping[str, Any]) -> list[str]:
    """List the options that only `real_arguments` understands."""
    return [name for name in options if name == "norm_eps" or (name in _LAYERS and isinstance(options[name], str))]
