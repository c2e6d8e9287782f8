"""The string that names a task: ``scheme:path?option=value&option=value``."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from eosin.core.errors import EosinError
from eosin.tasks.task import TaskOptions

__all__ = ["Options", "parse_options", "split_spec"]

Options = TypeVar("Options", bound=TaskOptions)


def split_spec(spec: str) -> tuple[str, dict[str, str]]:
    """Part a spec into its source and its options.

    Raises:
        EosinError: If an option is not ``key=value`` or is given twice.
    """
    if Path(spec).exists() or "?" not in spec:
        return spec, {}
    source, _, text = spec.rpartition("?")
    options: dict[str, str] = {}
    for part in text.split("&"):
        key, separator, value = part.partition("=")
        if not separator or not key or not value:
            raise EosinError(f"{spec}: '{part}' is no option; options are written ?key=value&key=value")
        if key in options:
            raise EosinError(f"{spec}: option '{key}' is given twice; keep one")
        options[key] = value
    return source, options


def parse_options(model: type[Options], options: dict[str, str], spec: str) -> Options:
    """Check options against a model; an unknown one is refused with the nearest valid name."""
    return model.parse(options, spec)
