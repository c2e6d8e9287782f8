"""`random:NAME`: an untrained network, the floor under every comparison."""

from __future__ import annotations

import timm
import torch

from eosin.encoders.backbone import build_encoder, check_architecture
from eosin.encoders.base import Encoder
from eosin.encoders.registry import ENCODERS, Options, Scheme, whole_number

__all__ = ["load_random"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# PyTorch's generators take no larger one.
_LARGEST_SEED = 2**64 - 1


def load_random(name: str, options: Options) -> Encoder:
    """Build timm's network `name` with weights drawn from `seed` (default 0) for images of `size`.

    The size defaults to the architecture's own, the normalisation is ImageNet's. The global random state is left as
    it was.
    """
    check_architecture(name, f"random:{name}")
    seed = whole_number(options, "seed", 0, 0, _LARGEST_SEED)
    size = whole_number(options, "size", _default_size(name), 1)
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would reseed the GPUs' generators too.
        torch.default_generator.manual_seed(seed)
        encoder = build_encoder(name, size=size, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    spec = f"random:{name}?seed={seed}&size={size}"
    encoder.card = encoder.card.model_copy(update={"spec": spec, "licence": "none (untrained)"})
    return encoder


def _default_size(name: str) -> int:
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return int(config.input_size[-1]) if config and config.input_size else 224


ENCODERS.register("random")(
    Scheme(
        load=load_random,
        options=("seed", "size"),
        examples=("random:resnet18?size=96", "random:vit_tiny_patch16_224?size=96&seed=1"),
        summary="a timm network with weights drawn from a seed",
    )
)
