"""Attention on a CPU by the form that is cheaper there.

PyTorch's fused attention saves memory by not keeping the weights of attention, and computes them again in the backward
pass. For the few tokens of a pathology crop that costs more than it saves: in bfloat16, backward took 7 to 9 times as
long as the plain form for 37 tokens (a 96 px crop in patches of 16) and twice as long for 197 (224 px); in float32
twice as long for 37 and about the same for 197 (one thread of an AVX-512 CPU). Both forms are the same function up to
rounding: the plain one is that of the authors of ViT and DINO.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import Attention
from torch import Tensor, nn

__all__ = ["choose_attention", "plain_is_cheaper"]

# The most tokens for which the plain form is used, by the size of a number in bytes.
_MOST_TOKENS = {2: 256, 4: 64}


def plain_is_cheaper(tokens: Tensor) -> bool:
    """Tell whether plain attention over tokens [B, N, C] is cheaper: on a CPU, with gradients, for few tokens."""
    if tokens.device.type != "cpu" or not torch.is_grad_enabled():
        return False
    mixed = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if mixed else tokens.dtype
    return tokens.shape[1] <= _MOST_TOKENS.get(dtype.itemsize, 0)


def choose_attention(network: nn.Module) -> None:
    """Let each attention layer of a timm transformer choose its form by its input; compiled ones keep the fused one."""
    for module in network.modules():
        if type(module) is Attention and module.fused_attn:
            module.register_forward_pre_hook(_choose)


def _choose(attention: Any, inputs: tuple[Any, ...]) -> None:
    if not torch.compiler.is_compiling():
        attention.fused_attn = not plain_is_cheaper(inputs[0])
