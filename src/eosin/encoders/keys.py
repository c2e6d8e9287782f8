"""Names of tensors in the files of others, put into timm's.

Four ways of naming are known besides timm's own (and torchvision's for the ResNets, which is the same):

* `ViTModel` of Hugging Face transformers, as Phikon has it;
* `Dinov2Model` and `Dinov2WithRegistersModel`, as Phikon-v2, Midnight and Hibou have them;
* DINOv2's own (Oquab et al., arXiv 2304.07193; registers: Darcet et al., arXiv 2309.16588);
* Swin of timm before 0.9, in which the stages end, instead of begin, with the downsampling.

The functions are the same up to the order of sums. Two things change their place: query, key and value become one
matrix, and where there are registers the position of the class token, always added to it, becomes a part of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Converted", "timm_names"]

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Converted:
    """Tensors under timm's names.

    Attributes:
        state: The tensors by name.
        antialias: Whether the library the file is for smooths the position embedding when it shrinks it.
    """

    state: dict[str, Tensor]
    antialias: bool = True


def timm_names(state: State) -> Converted:
    """Put the tensors of a network into timm's names; those of an unknown naming are left as they are.

    What has no place in timm's network (a mask token, a pooler) keeps its name.
    """
    if "embeddings.cls_token" in state:
        return _transformers(state)
    if "pos_embed" in state and ("mask_token" in state or "register_tokens" in state):
        return Converted(_dinov2(state))
    if "layers.0.downsample.reduction.weight" in state:
        return Converted(_old_swin(state))
    return Converted(dict(state))


_EMBEDDINGS = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.register_tokens": "register_tokens",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "embeddings.mask_token": "mask_token",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
_VIT = {
    "attention.output.dense": "attn.proj",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
_DINOV2 = {
    "attention.output.dense": "attn.proj",
    "norm1": "norm1",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "mlp.weights_in": "mlp.fc1",
    "mlp.weights_out": "mlp.fc2",
    "mlp.down_proj": "mlp.fc2",
}
_SCALES = {"layer_scale1.lambda1": "ls1.gamma", "layer_scale2.lambda1": "ls2.gamma"}
# Matrices that timm holds as one, in its order.
_JOINED = {
    "attn.qkv": ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    "mlp.fc1": ("mlp.gate_proj", "mlp.up_proj"),
}
_LAYER = re.compile(r"encoder\.layer\.(\d+)\.(.+)")


def _transformers(state: State) -> Converted:
    """Rename the tensors of transformers' ViT and DINOv2 and join query, key and value."""
    is_vit = any(name.endswith("layernorm_before.weight") for name in state)
    parts = _VIT if is_vit else _DINOV2
    renamed: dict[str, Tensor] = {}
    joined: dict[str, list[Tensor | None]] = {}
    for name, tensor in state.items():
        match = _LAYER.fullmatch(name)
        if match is None:
            renamed[_EMBEDDINGS.get(name, name)] = tensor
            continue
        block, rest = f"blocks.{match[1]}.", match[2]
        layer, _, kind = rest.rpartition(".")
        whole = next((whole for whole, pieces in _JOINED.items() if layer in pieces), None)
        if whole is not None:
            pieces = _JOINED[whole]
            joined.setdefault(f"{block}{whole}.{kind}", [None] * len(pieces))[pieces.index(layer)] = tensor
        elif rest in _SCALES:
            renamed[block + _SCALES[rest]] = tensor
        else:
            renamed[f"{block}{parts[layer]}.{kind}" if layer in parts else name] = tensor
    for name, tensors in joined.items():
        present = [tensor for tensor in tensors if tensor is not None]
        renamed[name] = torch.cat(present)
    registers = "register_tokens" in renamed
    # transformers smooths where the network has registers, and where it is a ViT or a DINOv2 without, it does not.
    return Converted(_with_registers(renamed), antialias=registers)


def _dinov2(state: State) -> dict[str, Tensor]:
    """Rename DINOv2's own tensors; blocks may have been chunked (`blocks.0.3.` is block 3)."""
    swaps: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
        (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),
        (r"\.mlp\.w12\.", ".mlp.fc1."),
        (r"\.mlp\.w3\.", ".mlp.fc2."),
    )
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in swaps:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return _with_registers(renamed)


def _with_registers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Fold the position of the class token into it, as timm has it for networks with registers."""
    if "register_tokens" not in state:
        return state
    registers, positions, token = (state.pop(name) for name in ("register_tokens", "pos_embed", "cls_token"))
    return state | {
        "reg_token": registers,
        "cls_token": token + positions[:, :1],
        "pos_embed": positions[:, 1:].clone(),
    }


def _old_swin(state: State) -> dict[str, Tensor]:
    """Move the downsampling from the end of a stage to the start of the next; drop what the network computes itself."""
    computed = ("relative_position_index", "attn_mask")
    return {
        re.sub(r"^layers\.(\d+)\.downsample\.", lambda match: f"layers.{int(match[1]) + 1}.downsample.", name): tensor
        for name, tensor in state.items()
        if not name.endswith(computed)
    }
