"""Recipes for nuclei: complete configurations by name, and files of the same form."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from eosin.core.config import apply_overrides, read_yaml
from eosin.core.errors import EosinError, nearest
from eosin.nuclei.config import NucleiConfig

__all__ = ["load_nuclei_recipe", "nuclei_recipe_names"]


def _folder() -> Path:
    return Path(str(resources.files("eosin") / "nuclei" / "recipes"))


def nuclei_recipe_names() -> list[str]:
    """Return the names of the recipes that come with eosin."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def load_nuclei_recipe(name: str = "hovernet", overrides: Mapping[str, Any] | None = None) -> NucleiConfig:
    """Load a recipe and set single fields.

    Args:
        name: A recipe's name, or a YAML file such as a run's `config.yaml`.
        overrides: Values by dotted field name, for example ``{"whole.lr": 3e-5}``.

    Raises:
        EosinError: If the recipe or a field is not known, or a value does not fit.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise EosinError(f"{path}: no such recipe file")
    else:
        path = _folder() / f"{name}.yaml"
        if "/" in name or not path.is_file():
            raise EosinError(f"unknown recipe '{name}'; {nearest(name, nuclei_recipe_names())}; a file ends in .yaml")
    return NucleiConfig.parse(apply_overrides(read_yaml(path), dict(overrides or {})), name)
