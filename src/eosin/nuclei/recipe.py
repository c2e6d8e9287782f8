"""Recipes for nuclei: complete configurations by name, and files of the same form."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from eosin.core.config import apply_overrides, read_yaml, recipe_file, recipe_files
from eosin.nuclei.config import NucleiConfig

__all__ = ["load_nuclei_recipe", "nuclei_recipe_names"]


def _folder() -> Path:
    return Path(str(resources.files("eosin") / "nuclei" / "recipes"))


def nuclei_recipe_names() -> list[str]:
    """Return the names of the recipes that come with eosin."""
    return recipe_files(_folder())


def load_nuclei_recipe(name: str = "hovernet", overrides: Mapping[str, Any] | None = None) -> NucleiConfig:
    """Load a recipe and set single fields.

    Args:
        name: A recipe's name, or a YAML file such as a run's `config.yaml`.
        overrides: Values by dotted field name, for example ``{"whole.lr": 3e-5}``.

    Raises:
        EosinError: If the recipe or a field is not known, or a value does not fit.
    """
    return NucleiConfig.parse(apply_overrides(read_yaml(recipe_file(name, _folder())), dict(overrides or {})), name)
