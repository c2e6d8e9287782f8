"""`timm:NAME`: a network with the weights timm publishes for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from eosin.core.errors import EosinError, nearest
from eosin.encoders.backbone import TimmEncoder, create_backbone, embedding_width
from eosin.encoders.base import Card, Encoder
from eosin.encoders.hub import encoders_home, hub_file
from eosin.encoders.registry import ENCODERS, Options, Scheme, whole_number

__all__ = ["load_timm"]

WEIGHTS = "model.safetensors"


def load_timm(name: str, options: Options) -> Encoder:
    """Load a pretrained timm network; mean, std, size, interpolation and licence are those timm states for it.

    The weights are looked for in `$EOSIN_HOME/encoders/NAME.safetensors`, then in the Hugging Face cache, then at the
    Hugging Face Hub. There is no fallback: without weights there is no encoder.

    Raises:
        EosinError: If timm has no such weights, or they are neither on this machine nor to be had.
    """
    config = _pretrained_config(name)
    full_name = f"{config.architecture}.{config.tag}" if config.tag else config.architecture
    size = whole_number(options, "size", int(config.input_size[-1]), 1)
    placed = encoders_home() / f"{full_name}.safetensors"
    path = hub_file(f"timm:{full_name}", config.hf_hub_id, [config.hf_hub_filename or WEIGHTS], placed)
    assert path is not None
    # The random initial weights are overwritten: drawing them must not move the caller's random state.
    with torch.random.fork_rng(devices=[]):
        backbone = _load(full_name, size, path)
    card = Card(
        spec=f"timm:{full_name}" + (f"?size={size}" if "size" in options else ""),
        architecture=config.architecture,
        size=size,
        mean=config.mean,
        std=config.std,
        # A few cards name a filter that no antialiased tensor resize has, or "random": timm itself then uses bicubic.
        interpolation="bilinear" if config.interpolation == "bilinear" else "bicubic",
        licence=config.license or "unstated by timm",
        width=embedding_width(backbone),
        reference=f"https://huggingface.co/{config.hf_hub_id}",
    )
    return TimmEncoder(card, backbone)


def _pretrained_config(name: str) -> Any:
    architecture, _, tag = name.partition(".")
    if architecture in timm.list_models():
        config = timm.get_pretrained_cfg(architecture, allow_unregistered=True)
        if config is None or not config.hf_hub_id:
            raise EosinError(
                f"timm:{name}: timm publishes no weights for it; `random:{architecture}` builds it untrained"
            )
        tags = [known.partition(".")[2] for known in timm.list_models(f"{architecture}.*", pretrained=True)]
        if not tag or tag in tags:
            return timm.get_pretrained_cfg(name)
        hint = nearest(name, [f"{architecture}.{known}" for known in tags])
        raise EosinError(f"timm:{name}: no such weights; {hint}")
    hint = nearest(name, timm.list_models(pretrained=True) if tag else timm.list_models())
    if not hint.startswith("did you mean"):
        hint = "see timm.list_models(pretrained=True) for the names"
    raise EosinError(f"timm:{name}: timm has no such network; {hint}")


def _load(name: str, size: int, path: Path) -> nn.Module:
    try:
        with safe_open(path, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise EosinError(f"{path}: not a whole safetensors file ({error}); remove it and load again") from None
    try:
        # With its classifier first, so that timm loads every tensor strictly; then without.
        overlay = {"file": str(path), "custom_load": False}
        backbone: Any = create_backbone(name, size, pretrained=True, pretrained_cfg_overlay=overlay)
    except (RuntimeError, KeyError) as error:
        problem = " ".join(str(error).split())[:300]
        raise EosinError(f"{path}: does not hold the weights of {name} ({problem})") from None
    backbone.reset_classifier(0)
    network: nn.Module = backbone
    return network


ENCODERS.register("timm")(
    Scheme(
        load=load_timm,
        options=("size",),
        examples=(),
        summary="a timm network with its published weights",
    )
)
