"""The last block of a vision transformer, computed for the class token only, is timm's whole forward pass."""

from __future__ import annotations

import pytest
import timm
import torch

from eosin.encoders import build_encoder
from eosin.encoders.class_token import class_token, reads_class_token_only

OPTIONS = {
    "plain": {},
    "without bias": {"qkv_bias": False},
    "layer scale, normalised queries and keys": {"init_values": 0.1, "qk_norm": True},
    "registers": {"reg_tokens": 2},
    "no class position": {"no_embed_class": True},
}


def network(**options):
    torch.manual_seed(0)
    arguments = {"num_classes": 0, "img_size": 32, "dynamic_img_size": True, "depth": 3} | options
    return timm.create_model("vit_tiny_patch16_224", **arguments)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("size", [32, 64])
def test_equals_the_whole_network(options, size):
    whole = network(**options).double()
    assert reads_class_token_only(whole)
    images = torch.randn(3, 3, size, size, dtype=torch.float64)
    results = []
    for embed in (whole, lambda x: class_token(whole, x)):
        whole.zero_grad()
        tokens = embed(images)
        (tokens * torch.linspace(-1, 1, tokens.numel(), dtype=torch.float64).view_as(tokens)).sum().backward()
        results.append((tokens.detach(), {name: value.grad.clone() for name, value in whole.named_parameters()}))
    (tokens, gradients), (short_tokens, short_gradients) = results
    assert tokens.shape == short_tokens.shape
    torch.testing.assert_close(short_tokens, tokens, rtol=1e-12, atol=1e-12)
    for name, gradient in gradients.items():
        torch.testing.assert_close(short_gradients[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


def test_mixed_precision_gives_what_timm_gives():
    whole = network(qk_norm=True)
    images = torch.randn(2, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        torch.testing.assert_close(class_token(whole, images), whole(images), rtol=0.03, atol=0.03)


@pytest.mark.parametrize(
    "name",
    ["vit_base_patch16_siglip_224", "resnet10t", "eva02_tiny_patch14_224", "deit3_small_patch16_224"],
)
def test_other_networks_are_left_to_timm(name):
    backbone = timm.create_model(name, num_classes=0)
    expected = name.startswith("deit3")  # a plain network with a class token
    assert reads_class_token_only(backbone) == expected


def test_average_pooling_is_left_to_timm():
    assert not reads_class_token_only(network(global_pool="avg", fc_norm=False))


def test_the_encoder_takes_the_short_way(monkeypatch):
    """The last block as a whole is never called, and the embedding is the network's own."""
    encoder = build_encoder("vit_tiny_patch16_224", size=32, mean=(0.5,) * 3, std=(0.2,) * 3, options={"depth": 2})
    images = torch.randn(2, 3, 32, 32)
    expected = encoder.backbone(images)
    called = []
    encoder.backbone.blocks[-1].register_forward_hook(lambda *_: called.append(True))
    torch.testing.assert_close(encoder(images), expected, rtol=1e-4, atol=1e-5)
    assert not called
