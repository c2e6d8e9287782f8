"""Recipes: complete configurations by name, and files of the same form."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from eosin.augment import AugmentConfig
from eosin.core.config import apply_overrides, read_yaml, recipe_file, recipe_files
from eosin.core.errors import EosinError, nearest
from eosin.methods import METHODS
from eosin.pretrain.config import PretrainConfig
from eosin.pretrain.presets import EVERY_VIEW, published_views, without_switches

__all__ = ["load_recipe", "recipe_names"]


def _folder() -> Path:
    return Path(str(resources.files("eosin") / "recipes"))


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with eosin."""
    return recipe_files(_folder())


def load_recipe(name: str, overrides: Mapping[str, Any] | None = None) -> PretrainConfig:
    """Load a recipe and set single fields.

    Args:
        name: A recipe's name, or a YAML file such as a run's `config.yaml`.
        overrides: Values by dotted field name, for example ``{"method.momentum": 0.99}``. With `augment.preset` the
            recipe's views keep where they look and get the preset's operations; a field under `augment.every_view` is
            set in each view. Both come before other fields, whatever their order.

    Raises:
        EosinError: If the recipe or a field is not known, or a value does not fit.
    """
    values: Mapping[str, Any] = read_yaml(recipe_file(name, _folder()))
    overrides = dict(overrides or {})
    _check_augment_fields(overrides)
    if overrides.get("augment.preset") is not None or any(field.startswith(EVERY_VIEW) for field in overrides):
        values, overrides = _with_view_fields(values, overrides)
    return PretrainConfig.parse(apply_overrides(values, overrides), name)


def _check_augment_fields(overrides: Mapping[str, Any]) -> None:
    """Refuse misspelt fields of `augment`, offering `every_view` too, which is written out and no field of its own."""
    for field in overrides:
        room, _, rest = field.partition(".")
        name, _, inner = rest.partition(".")
        if room != "augment" or not rest:
            continue
        if name == "every_view" and not inner:
            raise EosinError(f"--{field}: name a field of the views, such as --{EVERY_VIEW}vertical_flip")
        if name != "every_view" and name not in AugmentConfig.model_fields:
            raise EosinError(f"--{field}: unknown field; {nearest(name, [*AugmentConfig.model_fields, 'every_view'])}")


def _with_view_fields(
    values: Mapping[str, Any], overrides: Mapping[str, Any]
) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """Make way for a preset, and write `augment.every_view` out for each view."""
    method = overrides.get("method.name", (values.get("method") or {}).get("name"))
    if method not in METHODS:
        return values, dict(overrides)  # refused with the configuration
    views = (values.get("augment") or {}).get("views") or {}
    if overrides.get("augment.preset") is not None:
        values = {**values, "augment": {**(values.get("augment") or {}), "views": without_switches(views)}}
    written: dict[str, Any] = {}
    for field, value in overrides.items():
        if field.startswith(EVERY_VIEW):
            name = field.removeprefix(EVERY_VIEW)
            written |= {f"augment.views.{view}.{name}": value for view in views or published_views(method)}
    rest = {field: value for field, value in overrides.items() if not field.startswith(EVERY_VIEW)}
    return values, written | rest
