"""Attention takes the form that is cheaper on a CPU, and both are one function."""

from __future__ import annotations

import copy

import pytest
import timm
import torch

from eosin.encoders import build_encoder
from eosin.encoders.attention import choose_attention, plain_is_cheaper


def network():
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32, dynamic_img_size=True, depth=2)


@pytest.mark.parametrize(
    ("tokens", "dtype", "mixed", "plain"),
    [
        (37, torch.float32, False, True),
        (197, torch.float32, False, False),
        (197, torch.float32, True, True),
        (257, torch.float32, True, False),
        (37, torch.float64, False, False),
    ],
)
def test_the_choice_is_by_tokens_and_precision(tokens, dtype, mixed, plain):
    seen = torch.zeros(1, tokens, 8, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        assert plain_is_cheaper(seen) == plain
        with torch.no_grad():
            assert not plain_is_cheaper(seen)
    assert not plain_is_cheaper(seen.to("meta"))


def test_values_and_gradients_are_those_of_the_fused_form():
    fused = network()
    chosen = copy.deepcopy(fused)
    choose_attention(chosen)
    images = torch.randn(3, 3, 48, 48)
    results = []
    for whole in (fused, chosen):
        out = whole(images)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        results.append((out.detach(), [p.grad for p in whole.parameters()]))
    assert not any(block.attn.fused_attn for block in chosen.blocks)
    assert all(block.attn.fused_attn for block in fused.blocks)
    for ours, theirs in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-5)


def test_encoders_choose_and_copies_of_them_too():
    encoder = copy.deepcopy(build_encoder("vit_tiny_patch16_224", size=32, mean=(0.5,) * 3, std=(0.5,) * 3))
    blocks = encoder.backbone.blocks
    encoder(torch.randn(1, 3, 32, 32)).sum().backward()
    assert not blocks[0].attn.fused_attn
    with torch.no_grad():
        encoder(torch.randn(1, 3, 32, 32))
    assert blocks[0].attn.fused_attn
