"""From one string to an encoder."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

from eosin.core.errors import EosinError, nearest
from eosin.core.registry import Registry
from eosin.encoders.base import Channels, Encoder, Feature

__all__ = ["ENCODERS", "Scheme", "channels", "feature_of", "load_encoder", "spec_of", "whole_number"]

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
        spec: `pathology:NAME`, `lunit:NAME`, `timm:NAME`, `hf-hub:OWNER/NAME`, `random:NAME`, `color:NAME`, a run
            directory or a file of weights, with options as `?key=value&key=value`. `docs/encoders.md` lists the
            schemes and their options.

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


def whole_number(options: Options, key: str, default: int, smallest: int, largest: int | None = None) -> int:
    """Read an option that is an integer of at least `smallest`, and at most `largest` where that is given.

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
    if largest is not None and value > largest:
        raise EosinError(f"encoder option {key}={text}: must be at most {largest}")
    return value


def feature_of(options: Options, default: Feature) -> Feature:
    """Read the option `feature`.

    Raises:
        EosinError: If there is no such feature.
    """
    value = options.get("feature", default)
    if value not in get_args(Feature):
        raise EosinError(f"encoder option feature={value}: {nearest(value, get_args(Feature))}")
    return cast(Feature, value)


def channels(options: Options, key: str, default: Channels) -> Channels:
    """Read an option that holds one number for each of R, G, B, in 0..1, separated by slashes or commas.

    Raises:
        EosinError: If it does not.
    """
    if key not in options:
        return default
    try:
        first, second, third = (float(part) for part in options[key].replace(",", "/").split("/"))
    except ValueError:
        first = second = third = -1.0
    smallest = 1e-6 if key == "std" else 0.0
    if not all(smallest <= value <= 1.0 for value in (first, second, third)):
        raise EosinError(f"encoder option {key}={options[key]}: give three numbers in 0..1, such as {key}=0.7/0.5/0.6")
    return first, second, third


def spec_of(name: str, options: Options) -> str:
    """Write a spec with its options."""
    return name + ("?" + "&".join(f"{key}={value}" for key, value in options.items()) if options else "")
