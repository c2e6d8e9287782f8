"""Self-supervised methods, one file each; `METHODS` lists them by the name a recipe uses."""

from eosin.methods.barlow_twins import BarlowTwins, BarlowTwinsConfig
from eosin.methods.base import METHODS, Method, MethodConfig, Setting, Step
from eosin.methods.dino import DINO, DINOConfig
from eosin.methods.moco import MoCo, MoCoConfig
from eosin.methods.swav import SwAV, SwAVConfig

__all__ = [
    "DINO",
    "METHODS",
    "BarlowTwins",
    "BarlowTwinsConfig",
    "DINOConfig",
    "Method",
    "MethodConfig",
    "MoCo",
    "MoCoConfig",
    "Setting",
    "Step",
    "SwAV",
    "SwAVConfig",
]
