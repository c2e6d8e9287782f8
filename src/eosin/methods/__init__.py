"""Self-supervised methods, one file each; `METHODS` lists them by the name a recipe uses."""

from eosin.methods.base import METHODS, Method, MethodConfig, Setting, Step
from eosin.methods.dino import DINO, DINOConfig
from eosin.methods.moco import MoCo, MoCoConfig

__all__ = ["DINO", "DINOConfig", "METHODS", "Method", "MethodConfig", "MoCo", "MoCoConfig", "Setting", "Step"]
