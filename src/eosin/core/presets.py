"""Where the presets of augmentation are: what reads them needs more, but their names are asked for everywhere."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

__all__ = ["preset_folder", "preset_names"]


def preset_folder() -> Path:
    """Return the folder of the presets, one YAML file each."""
    return Path(str(resources.files("eosin") / "presets"))


def preset_names() -> list[str]:
    """Return the names of the presets."""
    return sorted(path.stem for path in preset_folder().glob("*.yaml"))
