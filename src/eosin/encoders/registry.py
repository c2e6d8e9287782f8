"""From one string to an encoder."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from eosin.core.errors import EosinError, nearest
from eosin.core.registry import Registry
from eosin.encoders.base import Encoder

__all__ = ["ENCODERS", "Scheme", "load_encoder", "whole_number"]

Options = Mapping[str, str]


@dataclass(frozen=True)
class Scheme:
    """One way to name an encoder.

    Attributes:
        load: Maps what stands between the scheme and the options, and the options, to an encoder.
        options: Names of the options it takes.
        examples: Specs that load without a network or a file; empty where there are none.
        summary: What the scheme is for, one line.
    """

    load: Callable[[str, Options], Encoder]
    options: tuple[str, ...]
    examples: tuple[str, ...]
    summary: str


ENCODERS: Registry[Scheme] = Registry("encoder scheme")


def load_encoder(spec: str) -> Encoder:
    """Load an encoder from one string, in evaluation mode on the CPU.

    Args:
        spec: `timm:NAME`, `random:NAME`, `color:NAME`, a run directory or a `.safetensors` file, with options as
            `?key=value&key=value`. `docs/encoders.md` lists the schemes and their options.

    Raises:
        EosinError: If the spec names nothing, an option is unknown, or the weights are absent or damaged.
    """
    if not spec:
        raise EosinError("the encoder spec is empty; give one such as timm:resnet50.a1_in1k or a run directory")
    name, _, query = spec.partition("?")
    scheme, separator, rest = name.partition(":")
    if not separator or os.sep in scheme or Path(name).exists():
        scheme, rest = "file", name
    entry = ENCODERS[scheme]
    options = _options(query, spec, entry)
    return entry.load(rest, options).eval()


def _options(query: str, spec: str, scheme: Scheme) -> dict[str, str]:
    options: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        key, separator, value = part.partition("=")
        if key not in scheme.options:
            raise EosinError(f"{spec}: unknown option '{key}'; {nearest(key, scheme.options)}")
        if not separator or not value:
            raise EosinError(f"{spec}: option '{key}' needs a value: {key}=VALUE")
        options[key] = value
    return options


def whole_number(options: Options, key: str, default: int, smallest: int) -> int:
    """Read an option that is an integer of at least `smallest`.

    Raises:
        EosinError: If it is not.
    """
    text = options.get(key, str(default))
    try:
        value = int(text)
    except ValueError:
        value = smallest - 1
    if value < smallest:
        raise EosinError(f"encoder option {key}={text}: must be a whole number of at least {smallest}")
    return value
