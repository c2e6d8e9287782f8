"""Encoders from one string, with the contract of the pixels they take."""

# The imports register the schemes.
from eosin.encoders import color, files, hf_hub, pathology, random, timm_hub
from eosin.encoders.backbone import build_encoder
from eosin.encoders.base import Card, Encoder
from eosin.encoders.files import save_encoder
from eosin.encoders.pathology import Entry, pathology_entries
from eosin.encoders.registry import ENCODERS, load_encoder

__all__ = [
    "ENCODERS",
    "Card",
    "Encoder",
    "Entry",
    "build_encoder",
    "color",
    "files",
    "hf_hub",
    "load_encoder",
    "pathology",
    "pathology_entries",
    "random",
    "save_encoder",
    "timm_hub",
]
