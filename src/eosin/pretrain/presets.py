"""Presets: which augmentation every view of a method gets, by name.

A preset leaves to the method and the recipe where a view looks (count, size, scale, field of view, ratio,
interpolation) and how wide a blur is, which is in pixels of the view; it says what happens to it: flips, stain, jitter,
grayscale, blur, solarize. What it does not name stays as the method's authors published it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from eosin.augment import AugmentConfig, BlurConfig, ViewConfig
from eosin.core.config import Config, apply_overrides, flatten, read_yaml
from eosin.core.errors import EosinError, nearest
from eosin.core.presets import preset_folder, preset_names
from eosin.methods import METHODS

__all__ = ["EVERY_VIEW", "preset_names", "preset_views", "published_views", "with_preset", "without_switches"]

EVERY_VIEW = "augment.every_view."
"""Prefix of a dotted field that is set in every view."""

PLACE = frozenset({"count", "size", "scale", "field_of_view", "ratio", "interpolation"})
"""Fields of a view that presets leave alone."""

# Side in px of a view to look at; larger ones take memory and are shown no larger.
_LARGEST = 1024


class _Preset(Config):
    summary: str
    every_view: dict[str, Any]


def _load(name: Any) -> _Preset:
    path = preset_folder() / f"{name}.yaml"
    if not isinstance(name, str) or "/" in name or not path.is_file():
        raise EosinError(f"field 'augment.preset': unknown preset '{name}'; {nearest(str(name), preset_names())}")
    return _Preset.parse(read_yaml(path), f"preset {name}")


def published_views(method: str) -> dict[str, Any]:
    """Return the views of a method as its authors have them: fields by view, those of `ViewConfig` left out."""
    kind: Any = METHODS[method]
    given = kind.defaults.get("augment", {}).get("views")
    return copy.deepcopy(dict(given)) if given else {name: {"count": count} for name, count in kind.views.items()}


def with_preset(views: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Give every view the fields of a preset.

    Args:
        views: Fields by view.
        name: The preset.

    Raises:
        EosinError: If there is no such preset.
    """
    fields = flatten(_load(name).every_view)
    return {view: apply_overrides(values, fields) for view, values in views.items()}


def without_switches(views: Mapping[str, Any]) -> dict[str, Any]:
    """Return views with the fields that say where they look, and no other."""
    left = {view: {name: value for name, value in fields.items() if name in PLACE} for view, fields in views.items()}
    for view, fields in views.items():
        sigma = (fields.get("blur") or {}).get("sigma")
        if sigma is not None:
            left[view]["blur"] = {"sigma": sigma}
    return left


def preset_views(method: str, preset: str, size: int | None = None) -> AugmentConfig:
    """Return the views that a method gets from a preset.

    Args:
        method: Name in the registry of methods.
        preset: Name of a preset.
        size: Side in px of the largest views, the others in proportion; the authors' if not given.

    Raises:
        EosinError: If the method or the preset is not known, or the size is out of range.
    """
    views = with_preset(published_views(method), preset)
    if size is not None:
        if not 8 <= size <= _LARGEST:
            raise EosinError(f"--size {size}: give a side from 8 to {_LARGEST} px")
        largest = max(fields.get("size", ViewConfig().size) for fields in views.values())
        for fields in views.values():
            fields["size"] = max(1, round(fields.get("size", ViewConfig().size) * size / largest))
            sigma = (fields.get("blur") or {}).get("sigma", BlurConfig().sigma)
            scaled = [value * size / largest for value in sigma]
            fields["blur"] = {**(fields.get("blur") or {}), "sigma": scaled}
    return AugmentConfig.parse({"preset": preset, "views": views}, f"preset {preset}")
