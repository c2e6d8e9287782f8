"""Pre-training: the loop, the collapse watch, the online probe, the recipes."""

from eosin.pretrain.config import PretrainConfig
from eosin.pretrain.loop import Interrupted, pretrain
from eosin.pretrain.recipes import load_recipe, recipe_names

__all__ = ["Interrupted", "PretrainConfig", "load_recipe", "pretrain", "recipe_names"]
