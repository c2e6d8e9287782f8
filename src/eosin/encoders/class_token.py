"""The class token of a vision transformer, without computing what nobody reads.

Where the class token alone is read, the last block owes an answer to that token only: keys and values of all tokens,
but one query, one projection and one pass through the MLP. What is left out is five sixths of the last block's matrix
products, forward and backward: a fifteenth of a network of twelve blocks. Values and gradients are the full network's
up to the order of sums.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from eosin.encoders.attention import plain_is_cheaper

__all__ = ["class_token", "reads_class_token_only"]


def reads_class_token_only(backbone: nn.Module) -> bool:
    """Tell whether a network is a plain timm vision transformer that gives its class token.

    Variants with other blocks, another attention or another pooling are left to timm.
    """
    if type(backbone) is not VisionTransformer:
        return False
    network: Any = backbone
    last = network.blocks[-1]
    return (
        network.global_pool == "token"
        and getattr(network, "attn_pool", None) is None
        and bool(network.has_class_token)
        and type(last) is Block
        and type(last.attn) is Attention
        and getattr(last.attn, "gate", None) is None
        and hasattr(last.attn, "norm")
    )


def class_token(backbone: nn.Module, images: Tensor) -> Tensor:
    """Embed images by the class token after the final norm, as `backbone(images)` does.

    Args:
        backbone: A network for which `reads_class_token_only` holds.
        images: float32 [B, 3, H, W], normalised.

    Returns:
        [B, width].
    """
    network: Any = backbone
    tokens = network.norm_pre(network.patch_drop(network._pos_embed(network.patch_embed(images))))
    for block in network.blocks[:-1]:
        tokens = block(tokens)
    return network.forward_head(network.norm(_last_block(network.blocks[-1], tokens)))


def _last_block(block: Any, tokens: Tensor) -> Tensor:
    """Give the first token [B, 1, C] of what a `Block` makes of tokens [B, N, C]."""
    token = tokens[:, :1]
    token = token + block.drop_path1(block.ls1(_attend(block.attn, block.norm1(tokens))))
    return token + block.drop_path2(block.ls2(block.mlp(block.norm2(token))))


def _attend(attention: Any, tokens: Tensor) -> Tensor:
    """Give the first token of a multi-head attention: [B, 1, C] of [B, N, C]."""
    batch, count, _ = tokens.shape
    heads, width = attention.num_heads, attention.head_dim
    split = heads * width
    weight, bias = attention.qkv.weight, attention.qkv.bias
    query = F.linear(tokens[:, :1], weight[:split], None if bias is None else bias[:split])
    pair = F.linear(tokens, weight[split:], None if bias is None else bias[split:])
    query = query.view(batch, 1, heads, width).transpose(1, 2)
    key, value = pair.view(batch, count, 2, heads, width).permute(2, 0, 3, 1, 4).unbind(0)
    # LayerNorm of queries and keys gives float32 under autocast; what is attended with must have one type.
    query, key = attention.q_norm(query).to(value.dtype), attention.k_norm(key).to(value.dtype)
    dropout = attention.attn_drop.p if attention.training else 0.0
    if plain_is_cheaper(tokens):
        weights = ((query * attention.scale) @ key.transpose(-2, -1)).softmax(dim=-1)
        seen = F.dropout(weights, dropout) @ value
    else:
        seen = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
    seen = seen.transpose(1, 2).reshape(batch, 1, split)
    return attention.proj_drop(attention.proj(attention.norm(seen)))
