"""Encoders from one string, with the contract of the pixels they take."""

# The imports register the schemes.
from eosin.encoders import color, files, random, timm_hub
from eosin.encoders.backbone import build_encoder
from eosin.encoders.base import Card, Encoder
from eosin.encoders.files import save_encoder
from eosin.encoders.registry import ENCODERS, load_encoder

__all__ = [
    "ENCODERS",
    "Card",
    "Encoder",
    "build_encoder",
    "color",
    "files",
    "load_encoder",
    "random",
    "save_encoder",
    "timm_hub",
]
