"""Self-supervised methods, one file each; `METHODS` lists them by the name a recipe uses."""

from eosin.methods.base import METHODS, Method, MethodConfig, Setting, Step
from eosin.methods.moco import MoCo, MoCoConfig

__all__ = ["METHODS", "Method", "MethodConfig", "MoCo", "MoCoConfig", "Setting", "Step"]
